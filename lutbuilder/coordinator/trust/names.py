"""Under which names and addresses this machine is reached, as far as it knows itself."""

from __future__ import annotations

import socket


def own_names() -> tuple[str, ...]:
    """Return loopback's names, the host's, and the address it would use to reach others."""
    host = socket.gethostname()
    return ("localhost", "127.0.0.1", "::1", host, *([outward_address()] if outward_address() else []))


def outward_address() -> str:
    """Return the address of the interface towards the default route, "" without one. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 of RFC 5737: connecting a datagram socket only picks a route
        except OSError:
            return ""
        return str(probe.getsockname()[0])
