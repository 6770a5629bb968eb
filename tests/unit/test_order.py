"""A request travels as JSON and comes back as itself; whatever else comes is refused, and no name leads out of here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.campaign.job import JobKind, JobSpec, JobState, checked_job_id
from lutbuilder.campaign.request import CalibrateRequest, CollectRequest, Progress, ValidateRequest
from lutbuilder.control.api import JobOutcome
from lutbuilder.control.order import Order, Told, lut_words, order_of, told_of, view
from lutbuilder_agent.errors import SpecError

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,20}", fullmatch=True)
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
OPTIONS = st.lists(st.tuples(WORDS, WORDS), max_size=3).map(tuple)
COLLECTS = st.builds(
    CollectRequest,
    device=NAMES,
    space=NAMES,
    runtime=st.none() | NAMES,
    batch=st.integers(1, 4096),
    budget_s=st.floats(0.1, 86_400),
    precision=st.floats(0.0001, 1),
    max_ops=st.none() | st.integers(1, 1000),
    cache=st.sampled_from([None, "hot", "rotating", "flushed"]),
    seed=st.integers(0, (1 << 63) - 1),
    again=st.booleans(),
    wait_s=st.none() | st.floats(0, 100),
    runtime_options=OPTIONS,
)
VALIDATES = st.builds(
    ValidateRequest, lut=st.just("phone/litert-fp32-bs1@3"), space=st.none() | NAMES, n_random=st.integers(0, 10_000)
)
CALIBRATES = st.builds(CalibrateRequest, source=st.just("phone/litert-fp32-bs1"), device=NAMES, runtime_options=OPTIONS)


def spec_of(order: Order) -> JobSpec:
    return JobSpec(kind=order.kind, request=order.to_json())


@given(COLLECTS | VALIDATES | CALIBRATES)
def test_a_request_comes_back_as_itself(request: Any) -> None:
    order = Order(request=request, coordinator="lab:7070")
    assert order_of(spec_of(order)) == order
    assert spec_of(order).kind == type(request).__name__.removesuffix("Request").lower()


def test_folders_and_ports_are_the_coordinators_own_business() -> None:
    request = CollectRequest(luts=Path("/tmp/mine"), state_dir=Path("/tmp/state"), listen="127.0.0.1:1")
    text = Order(request=request).to_json()
    assert "mine" not in text
    assert order_of(spec_of(Order(request=request))).request == CollectRequest()


def test_equal_orders_give_equal_texts_and_others_do_not() -> None:
    assert Order(request=CollectRequest(seed=1)).to_json() == Order(request=CollectRequest(seed=1)).to_json()
    assert Order(request=CollectRequest(seed=1)).to_json() != Order(request=CollectRequest(seed=2)).to_json()


def test_a_space_of_ones_own_travels_as_text() -> None:
    order = Order(request=CollectRequest(space="spaces/mine.toml"), files={"space": "title = 'x'"})
    assert order_of(spec_of(order)) == order


def test_a_path_of_a_list_travels_as_its_name() -> None:
    request = ValidateRequest(lut="a/b", networks=Path("nets.json"))
    assert order_of(spec_of(Order(request=request, files={"networks": "[]"}))).request == request


def body(kind: JobKind = "collect", files: object = None, **values: object) -> JobSpec:
    return JobSpec(kind=kind, request=json.dumps({"request": values, "files": {} if files is None else files}))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (JobSpec(kind="collect", request="{"), "not JSON"),
        (JobSpec(kind="collect", request="[]"), "not a JSON object"),
        (JobSpec(kind="collect", request="[" * 100_000), "not JSON"),
        (JobSpec(kind="collect", request='{"request": []}'), "object of fields"),
        (body(colour="red"), "no field 'colour' here: pip install -U lutbuilder"),
        (body(luts="/etc"), "no field 'luts'"),
        (body(batch=0), "batch of a request is from 1 to 4096"),
        (body(batch="1"), "batch is '1'"),
        (body(batch=True), "batch is True"),
        (body(budget_s=float("nan")), "budget_s of a request is from"),
        (body(budget_s=1e99), "budget_s of a request is from"),
        (body(again=1), "again is 1"),
        (body(cache="warm"), "cache is 'warm'"),
        (body(runtime_options=[["a"]]), "runtime_options is"),
        (body(runtime_options="ab"), "runtime_options is"),
        (body(device="../../x"), "device of a request is a name"),
        (body(space="/etc/passwd.toml"), "space of a request is a name"),
        (body(space="x" * 5000), "at most 4096 characters"),
        (body(runtime="a\0b"), "at most 4096 characters"),
        (body(files={"luts": "x"}), "names a file as 'luts', which is none"),
        (body(files={"space": 3}), "texts by the names of fields"),
        (body(files=[]), "texts by the names of fields"),
        (body("validate"), "lacks its field 'lut'"),
        (body("validate", lut="/etc/passwd"), "not the name of a table"),
        (body("validate", lut="../x/y"), "not the name of a table"),
        (body("validate", lut="a/..@1"), "not the name of a table"),
        (body("validate", lut="a/b", networks="n.json"), "brings the list"),
        (body("validate", lut="a/b", save_networks="../n.json"), "not a path"),
        (JobSpec(kind="collect", request='{"request": {}, "coordinator": "a\\nb"}'), "HOST:PORT"),
    ],
)
def test_what_no_command_writes_is_refused(spec: JobSpec, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        order_of(spec)


@given(st.text(max_size=60))
def test_no_name_of_a_table_leads_out_of_the_folder(text: str) -> None:
    try:
        name, _ = lut_words(text)
    except SpecError:
        return
    assert not Path(name).is_absolute()
    assert ".." not in Path(name).parts
    assert len(Path(name).parts) == 2


@pytest.mark.parametrize("text", ["", "ab", "A" * 8, "a b c d", "../../x", "x" * 65])
def test_the_id_of_a_job_is_a_plain_word(text: str) -> None:
    with pytest.raises(SpecError, match="not the id of a job"):
        checked_job_id(text)


def test_a_title_says_what_a_job_is_about() -> None:
    assert Order(request=CollectRequest(runtime="litert")).title == "proxyless on cpu, litert, batch 1"
    assert Order(request=ValidateRequest(lut="a/b@2")).title == "a/b@2"
    assert Order(request=CalibrateRequest(lut="a/b")).title == "a/b"
    assert Order(request=CalibrateRequest(source="a/b", device="pixel1")).title == "pixel1 from a/b"


STATE = JobState(job_id="abcd", spec=spec_of(Order(request=CollectRequest())), state="running", created_s=1.0)


def test_what_a_runner_tells_of_a_job_is_read_back() -> None:
    told = Told(
        progress=Progress(phase="timing", round=3, eta_s=None, drift=0.1),
        outcome=JobOutcome(published=True, notes=("a", "b")),
        error_code="store",
    )
    state = replace(STATE, progress=told.to_json())
    assert told_of(state) == told
    assert view(state).outcome == told.outcome
    assert view(state, outcome=False).outcome is None


def test_a_job_of_a_newer_lutbuilder_can_be_listed() -> None:
    strange = replace(STATE, spec=body(colour="red"), progress=json.dumps({"progress": {"phase": "timing", "new": 1}}))
    assert view(strange).title == "collect of another version of lutbuilder"
    assert view(strange).progress == Progress(phase="timing")
