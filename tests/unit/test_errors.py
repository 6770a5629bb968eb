"""The error tree: codes and statuses people and scripts rely on, and messages that say what to type."""

from __future__ import annotations

import re

import pytest

from lutbuilder_agent import errors
from lutbuilder_agent.errors import LutbuilderError, OpNotInLut, UnknownName, all_errors, unknown_name


def test_every_error_has_a_code_of_its_own():
    codes = [error.code for error in all_errors()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_released_codes_and_exit_statuses_stay():
    assert {error.code: error.exit_status for error in all_errors()} == {
        "internal": 70,
        "bad_spec": 65,
        "bad_shape": 65,
        "infeasible": 65,
        "unknown_name": 64,
        "missing_extra": 69,
        "runtime_unavailable": 69,
        "unsupported_op": 69,
        "bad_message": 76,
        "protocol_mismatch": 76,
        "unreachable": 68,
        "port_in_use": 71,
        "unknown_session": 76,
        "stale_lease": 76,
        "artifact_corrupt": 76,
        "not_authenticated": 77,
        "not_allowed": 77,
        "trust": 78,
        "no_agent": 75,
        "campaign_failed": 1,
        "store": 74,
        "lut": 66,
        "lut_not_found": 66,
        "lut_corrupt": 65,
        "lut_too_new": 65,
        "lut_conflict": 65,
        "lut_not_writable": 73,
        "lut_noisy": 65,
        "samples_missing": 66,
        "bad_table": 65,
        "op_not_in_lut": 66,
        "interrupted": 130,
    }


def test_the_tree_at_the_top_of_the_file_names_every_error():
    drawn = set(re.findall(r"\+-- (\w+)", errors.__doc__ or "")) | {"LutbuilderError"}
    assert drawn == {error.__name__ for error in all_errors()}


def test_every_error_is_caught_as_one():
    assert all(issubclass(error, LutbuilderError) for error in all_errors())


def test_a_missing_op_reads_as_text_not_as_a_quoted_key():
    assert str(OpNotInLut("conv 3x224x224 is not in it")) == "conv 3x224x224 is not in it"


@pytest.mark.parametrize(("typed", "meant"), [("onnxruntme", "onnxruntime"), ("LiteRT", "litert"), ("torh", "torch")])
def test_a_mistyped_name_is_answered_with_the_nearest_one(typed, meant):
    error = unknown_name("runtime", typed, ["onnxruntime", "litert", "torch"])
    assert isinstance(error, UnknownName)
    assert f"did you mean {meant}?" in str(error)
    assert repr(typed) in str(error)


def test_a_name_near_to_nothing_gets_the_list_alone():
    message = str(unknown_name("device", "zzz", ["cpu", "v100"]))
    assert message == "unknown device 'zzz'; known: cpu, v100"
