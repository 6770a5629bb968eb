"""Whether one can listen at an address: asked before gRPC is, which only says that it failed, and logs noise."""

from __future__ import annotations

import errno
import socket

from lutbuilder_agent.errors import LutbuilderError, PortInUse, SpecError


def check_free(address: str, *, option: str) -> None:
    """Raise PortInUse or SpecError, naming the option, if one cannot listen at "host:port" (port 0: any free one)."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        raise _refusal(error, address, option) from error


def in_use(address: str, *, option: str) -> PortInUse:
    """Return the error for a port that somebody has."""
    return PortInUse(
        f"cannot listen on {address}: the port is in use, perhaps by another lutbuilder; "
        f"choose another, or any free one: {option} {address.rpartition(':')[0]}:0"
    )


def _refusal(error: OSError, address: str, option: str) -> LutbuilderError:
    if error.errno == errno.EADDRINUSE:
        return in_use(address, option=option)
    if error.errno == errno.EADDRNOTAVAIL:
        cure = f"this machine has no such address; all that it has: {option} 0.0.0.0:{address.rpartition(':')[2]}"
    elif error.errno == errno.EACCES:
        cure = f"{error.strerror}; ports below 1024 are for root, take another: {option} HOST:PORT"
    else:
        cure = f"{error.strerror or error}; choose another: {option} HOST:PORT"
    return SpecError(f"cannot listen on {address}: {cure}")
