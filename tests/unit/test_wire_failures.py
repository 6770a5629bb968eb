"""Every error of gRPC becomes one of ours, with one line that says what to type next."""

from __future__ import annotations

import threading

import grpc
import pytest

from lutbuilder_agent.errors import (
    LutbuilderError,
    NotAllowed,
    NotAuthenticated,
    ProtocolMismatch,
    StaleLease,
    Unreachable,
    WireError,
)
from lutbuilder_agent.wire.failures import error_from, translated

ADDRESS = "lab:7070"


class Failed(grpc.RpcError):
    """What a gRPC call raises."""

    def __init__(self, status: str, details: str = "its words", code: str = "") -> None:
        self._status, self._details, self._code = status, details, code

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode[self._status]

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("lutbuilder-code", self._code),) if self._code else ()


@pytest.mark.parametrize(
    ("status", "kind", "line"),
    [
        ("UNAVAILABLE", Unreachable, "lutbuilder-agent run --coordinator HOST:PORT"),
        ("DEADLINE_EXCEEDED", Unreachable, "did not answer in time"),
        ("CANCELLED", Unreachable, "ended the call"),
        ("UNIMPLEMENTED", ProtocolMismatch, "pip install -U lutbuilder"),
        ("UNAUTHENTICATED", NotAuthenticated, "lutbuilder security token"),
        ("PERMISSION_DENIED", NotAllowed, "lutbuilder security token --role ROLE"),
        ("RESOURCE_EXHAUSTED", WireError, "lutbuilder collect --max-ops N"),
        ("INTERNAL", WireError, "INTERNAL"),
    ],
)
def test_a_status_says_what_broke_where_and_what_to_type(status: str, kind: type[LutbuilderError], line: str) -> None:
    error = error_from(Failed(status), ADDRESS)
    assert type(error) is kind
    assert ADDRESS in str(error)
    assert line in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("status", list(grpc.StatusCode), ids=lambda status: status.name)
def test_no_status_is_without_an_error_of_ours(status: grpc.StatusCode) -> None:
    assert ADDRESS in str(error_from(Failed(status.name), ADDRESS))


def test_a_stream_that_was_reset_is_asked_for_again_and_no_answer() -> None:
    assert type(error_from(Failed("INTERNAL", "Received RST_STREAM with error code 2"), ADDRESS)) is Unreachable


def test_the_code_of_our_own_error_goes_before_its_status() -> None:
    error = error_from(Failed("UNAVAILABLE", "a newer agent", code="stale_lease"), ADDRESS)
    assert type(error) is StaleLease


def test_a_connection_that_cannot_be_made_is_explained_if_somebody_can() -> None:
    wrong_ca = NotAuthenticated("another CA")
    assert error_from(Failed("UNAVAILABLE"), ADDRESS, lambda: wrong_ca) is wrong_ca
    assert type(error_from(Failed("UNAVAILABLE"), ADDRESS, lambda: None)) is Unreachable
    assert type(error_from(Failed("DEADLINE_EXCEEDED"), ADDRESS, lambda: wrong_ca)) is Unreachable


def test_a_channel_that_was_closed_here_is_unreachable_and_other_value_errors_are_bugs() -> None:
    closed = threading.Event()
    with pytest.raises(ValueError, match="a bug"), translated(ADDRESS, closed):
        raise ValueError("a bug")
    closed.set()
    with pytest.raises(Unreachable, match="closed here"), translated(ADDRESS, closed):
        raise ValueError("Cannot invoke RPC on closed channel!")
