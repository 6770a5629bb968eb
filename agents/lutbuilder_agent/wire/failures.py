"""What gRPC's errors mean: each becomes one of ours, with one line that says what to type next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from lutbuilder_agent.errors import (
    LutbuilderError,
    NotAllowed,
    NotAuthenticated,
    ProtocolMismatch,
    Unreachable,
    WireError,
)
from lutbuilder_agent.wire.api import CONTROL_BYTES, REPORT_BYTES
from lutbuilder_agent.wire.status import CODE_KEY, error_of

Explain = Callable[
    [], LutbuilderError | None
]  # what is wrong with a connection, if anything that waiting does not heal
_RESET = "RST_STREAM"


def never_explained() -> LutbuilderError | None:
    """Know nothing more about a connection that failed."""
    return None


@contextmanager
def translated(address: str, closed: threading.Event, explain: Explain = never_explained) -> Iterator[None]:
    """Raise our error for any error of gRPC, on the way out of a `with`."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_from(error, address, explain) from error
    except ValueError as error:
        if closed.is_set():  # grpc's word for a call on a closed channel
            raise Unreachable(f"the connection to {address} was closed here") from error
        raise


def error_from(error: Any, address: str, explain: Explain = never_explained) -> LutbuilderError:
    """Return our error for a grpc.RpcError: the code it carries, else what its status says."""
    for key, value in error.trailing_metadata() or ():
        if key == CODE_KEY:
            return error_of(
                value if isinstance(value, str) else value.decode("ascii", "replace"), error.details() or ""
            )
    status, details = error.code(), error.details() or "no details"
    again = "is it running, and is the address right? lutbuilder-agent run --coordinator HOST:PORT"
    if status == grpc.StatusCode.UNAVAILABLE:
        return explain() or Unreachable(f"nobody answers at {address}: {details}; {again}")
    if status == grpc.StatusCode.CANCELLED or (status == grpc.StatusCode.INTERNAL and _RESET in details):
        return Unreachable(f"{address} ended the call: {details}; {again}")
    if status == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable(f"{address} did not answer in time; {again}")
    if status == grpc.StatusCode.UNIMPLEMENTED:
        return ProtocolMismatch(
            f"{address} does not know this call ({details}): it is no lutbuilder coordinator, or an older one; "
            "there: pip install -U lutbuilder"
        )
    if status == grpc.StatusCode.UNAUTHENTICATED:
        return NotAuthenticated(
            f"{address} does not know who this is: {details}; get a line to join with where it runs: "
            "lutbuilder security token"
        )
    if status == grpc.StatusCode.PERMISSION_DENIED:
        return NotAllowed(
            f"{address} does not allow this: {details}; ask whoever runs it for a token of another role: "
            "lutbuilder security token --role ROLE"
        )
    if status == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return WireError(
            f"a message to or from {address} is too large (RESOURCE_EXHAUSTED: {details}); reports may have "
            f"{REPORT_BYTES} bytes, all else {CONTROL_BYTES}. Measure fewer ops at once: lutbuilder collect --max-ops N"
        )
    return WireError(f"{address} answered {status.name}: {details}")
