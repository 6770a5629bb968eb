"""The status table names every error there is, and an error comes back as itself."""

from __future__ import annotations

import grpc
import pytest

from lutbuilder_agent.errors import LutbuilderError, WireError, all_errors
from lutbuilder_agent.wire.status import STATUS, error_of, status_name, wire_text


def test_the_table_names_exactly_the_codes_there_are() -> None:
    codes = [kind.code for kind in all_errors()]
    assert sorted(codes) == sorted(set(codes))
    assert set(STATUS) == set(codes)


def test_every_status_is_one_grpc_knows_and_none_is_ok() -> None:
    for name in STATUS.values():
        assert grpc.StatusCode[name] is not grpc.StatusCode.OK


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.code)
def test_an_error_comes_back_as_itself(kind: type[LutbuilderError]) -> None:
    sent = kind("what, where, what next")
    assert grpc.StatusCode[status_name(sent)]
    received = error_of(sent.code, wire_text(sent))
    assert type(received) is kind
    assert str(received) == "what, where, what next"


def test_a_code_of_a_newer_coordinator_is_a_wire_error_that_says_so() -> None:
    received = error_of("moon_phase", "the moon is full")
    assert type(received) is WireError
    assert "moon_phase" in str(received)
    assert "pip install -U" in str(received)
