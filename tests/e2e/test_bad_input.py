"""Bad input and bad days, as real processes: each ends with its own status and one clear line, and loses nothing."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types
import pytest

from lutbuilder import spaces
from lutbuilder.lut import Lut
from lutbuilder.lut.schema import FOOTER_KEY, SCHEMA_VERSION, canonical_json, parse_json
from lutbuilder.nas.compiled import compile_space
from lutbuilder_agent.errors import OpNotInLut, ProtocolMismatch
from lutbuilder_agent.records import AgentHello, Fingerprint, RuntimeReport
from lutbuilder_agent.wire.client import CoordinatorClient
from tests.desk import NAME, Desk

SHORT = ("--max-rounds", "8", "--precision", "20%")
# A disk that is full for whatever is written to a file whose path holds the word.
FULL = """
import errno, os
write = os.write
def full(handle, data):
    if {word!r} in os.readlink(f"/proc/self/fd/{{handle}}"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(handle, data)
os.write = full
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk with one table. Tests only read it."""
    made = Desk(tmp_path_factory.mktemp("published") / "desk")
    ended = made.run(*made.collecting(*SHORT))
    assert ended.status == 0, ended.err
    yield made
    made.clear()


# --- what people type


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--device", "v10"), 64, "error[unknown_name]: unknown device 'v10'; did you mean v100"),
        (("--space", "proxyles"), 64, "error[unknown_name]: unknown search space 'proxyles'; did you mean proxyless"),
        (
            ("--runtime", "onnxruntme"),
            64,
            "error[unknown_name]: unknown runtime 'onnxruntme'; did you mean onnxruntime",
        ),
        (("--runtime-option", "crash"), 65, "error[bad_spec]: --runtime-option 'crash' is not NAME=VALUE"),
        (
            ("--runtime-option", "colour=red"),
            1,
            "nothing was measured (failed). unsupported: runtime 'simulated' has no option 'colour'; it has: overhead",
        ),
    ],
)
def test_what_nobody_knows_is_refused_with_what_there_is(
    desk: Desk, words: tuple[str, ...], status: int, says: str
) -> None:
    ended = desk.run(*desk.collecting(*SHORT, *words))
    assert ended.status == status, ended.err
    assert says in ended.error
    assert ended.json["error"]["exit_status"] == status
    assert desk.versions == []
    assert desk.processes() == []


def test_a_runtime_whose_package_is_missing_is_answered_with_the_line_to_type(desk: Desk) -> None:
    hidden = desk.folder / "hidden"
    hidden.mkdir()
    (hidden / "onnxruntime.py").write_text("raise ModuleNotFoundError('hidden by a test', name='onnxruntime')\n")
    desk.path.insert(0, str(hidden))
    ended = desk.run("collect", "--device", "cpu", "--runtime", "onnxruntime", "--state-dir", str(desk.state))
    assert (ended.status, ended.out) == (69, "")
    assert ended.error.startswith("error[runtime_unavailable]: onnxruntime does not run on this machine: ")
    assert "pip install 'lutbuilder-agent[onnx]'" in ended.error
    assert desk.processes() == []


# --- agents


def hello(name: str, **changes: int) -> AgentHello:
    fingerprint = Fingerprint(device="nvidia-a100", facts=())
    runtimes = (RuntimeReport(name="torch-channels_last", version="2"),)
    return AgentHello(name=name, agent_version="9.9.9", fingerprint=fingerprint, runtimes=runtimes, **changes)


def test_a_device_that_is_not_here_is_waited_for_and_an_agent_of_another_protocol_is_turned_away(desk: Desk) -> None:
    process = desk.start("collect", "--device", "v100", "--bs", "8", "--wait", "2s", "--state-dir", str(desk.state))
    assert process.stderr is not None
    told = ""
    while (found := re.search(r"lutbuilder-agent run --coordinator (\S+:\d+)", told)) is None:
        line = process.stderr.readline()
        assert line, told
        told += line
    with CoordinatorClient(found[1]) as client:
        with pytest.raises(ProtocolMismatch, match=r"speaks protocol 7 to 8, .* upgrade the coordinator: pip install"):
            client.register(hello("from-the-future", protocol_min=7, protocol_max=8))
        client.register(hello("lab-1"))
    ended = desk.ended(process)
    assert (ended.status, ended.out) == (75, "")
    assert ended.error.startswith("error[no_agent]: no agent of NVIDIA V100 GPU server came within 2 s")
    assert "agent lab-1 is a nvidia-a100" in ended.error
    assert f"lutbuilder-agent run --coordinator {found[1]}" in ended.error
    known = desk.run("agents", "--state-dir", str(desk.state), "--json").json["agents"]
    assert [agent["name"] for agent in known] == ["lab-1"]


def test_an_agent_that_nobody_answers_gives_up_with_what_to_check(desk: Desk) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        agent = desk.start_agent(
            "run", "--coordinator", address, "--runtimes", "simulated", "--name", "me", "--give-up-after", "0.6"
        )
        ended = desk.ended(agent)
    assert (ended.status, ended.out) == (68, "")
    last = ended.err.rstrip().rpartition("\n")[2]
    assert last.startswith(f"lutbuilder-agent: nobody answers at {address}")
    assert last.endswith("(gave up after 1 s)")
    assert "Traceback" not in ended.err


def test_a_port_in_use_is_said_to_be_and_nothing_is_started(desk: Desk) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = desk.run(*desk.collecting(*SHORT, "--listen", f"127.0.0.1:{port}"))
    assert ended.status == 71
    assert ended.error.startswith(f"error[port_in_use]: cannot listen on 127.0.0.1:{port}: the port is in use")
    assert ended.error.endswith("--listen 127.0.0.1:0")
    assert not (desk.state / "agents").exists()


def test_only_loopback_is_listened_on(desk: Desk) -> None:
    ended = desk.run(*desk.collecting(*SHORT, "--listen", "0.0.0.0:0"))
    assert ended.status == 65
    assert "without TLS only loopback is served" in ended.error


# --- folders that cannot be written


def test_what_could_not_be_published_is_published_later_without_measuring_again(desk: Desk) -> None:
    there, desk.luts = desk.luts, Path("/sys/lutbuilder")  # a filesystem that takes no folder, not even from root
    refused = desk.run(*desk.collecting(*SHORT))
    assert refused.status == 73, refused.err
    assert refused.error.startswith("error[lut_not_writable]: cannot publish into /sys/lutbuilder/simulated/")
    assert "What was measured is kept: repeat the command to publish it" in refused.error
    before = desk.visits()
    assert len({visit.timing.round for visit in before}) == 8

    desk.luts = there
    ended = desk.run(*desk.collecting(*SHORT))
    assert ended.status == 0, ended.err
    assert (ended.json["published"], ended.json["n_measured"], ended.json["resumed"]) == (True, 70, True)
    assert desk.visits() == before
    assert len(desk.lut()) >= 70


def test_a_disk_that_is_full_while_publishing_costs_nothing_but_the_second_command(desk: Desk) -> None:
    full = desk.run(*desk.collecting(*SHORT), first=FULL.format(word=str(desk.luts)))
    assert full.status == 73, full.err
    assert "No space left on device; free some space there" in full.error
    assert desk.versions == [], "no half a table, no scratch file"
    before = desk.visits()

    full = desk.run(*desk.collecting(*SHORT), first=FULL.format(word="/samples/"))
    assert full.status == 73, full.err
    assert desk.versions == [f"{NAME}/v0001.parquet"]
    assert desk.visits() == before

    ended = desk.run(*desk.collecting(*SHORT))
    assert ended.status == 0, ended.err
    assert not ended.json["published"]
    assert desk.versions == [f"{NAME}/samples/v0001.parquet", f"{NAME}/v0001.parquet"]
    assert desk.visits() == before


def test_a_state_folder_that_cannot_be_made_is_named(desk: Desk) -> None:
    desk.state = Path("/sys/lutbuilder")
    ended = desk.run(*desk.collecting(*SHORT))
    assert ended.status == 74
    assert ended.error.startswith("error[store]: cannot make the state folder /sys/lutbuilder: ")
    assert ended.error.endswith("choose one: --state-dir DIR")


def test_a_store_that_is_no_store_is_refused_and_left_alone(desk: Desk) -> None:
    desk.state.mkdir()
    (desk.state / "campaigns.sqlite").write_text("my diary, which must not be lost\n" * 100)
    ended = desk.run(*desk.collecting(*SHORT))
    assert ended.status == 74
    assert "is not a campaign store (no SQLite file); nothing was changed" in ended.error
    assert (desk.state / "campaigns.sqlite").read_text() == "my diary, which must not be lost\n" * 100


# --- tables


def newer(path: Path) -> None:
    table = pq.read_table(path)
    footer = parse_json(table.schema.metadata[FOOTER_KEY])
    footer["schema_version"] = SCHEMA_VERSION + 1
    pq.write_table(table.replace_schema_metadata({FOOTER_KEY: canonical_json(footer)}), path)


def tampered(path: Path) -> None:
    table = pq.read_table(path)
    column = table.schema.get_field_index("latency_ms")
    halved = pa.array([None if ms is None else ms / 2 for ms in table.column("latency_ms").to_pylist()])
    metadata = table.schema.metadata
    table = table.set_column(column, table.schema.field(column), halved)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def foreign(path: Path) -> None:
    pq.write_table(pa.table({"op": ["conv"], "ms": [1.0]}), path)


@pytest.mark.parametrize(
    ("damage", "status", "says"),
    [
        (truncated, 65, "error[lut_corrupt]: {path} is not a parquet file, or was cut short or damaged"),
        (
            foreign,
            65,
            "error[lut_corrupt]: {path} is not a lutbuilder table: it is parquet without lutbuilder's footer",
        ),
        (
            tampered,
            65,
            "error[lut_corrupt]: {path} was changed after it was published: its content hash does not match",
        ),
        (newer, 65, f"error[lut_too_new]: {{path}} is of schema {SCHEMA_VERSION + 1}; this lutbuilder reads up to"),
    ],
)
def test_a_table_is_opened_whole_or_refused(published: Desk, desk: Desk, damage, status, says) -> None:  # type: ignore[no-untyped-def]  # one row of the list above
    path = desk.folder / "table.parquet"
    shutil.copy(published.lut().path, path)
    damage(path)
    ended = desk.run("luts", "show", str(path))
    assert (ended.status, ended.out) == (status, "")
    assert ended.error.startswith(says.format(path=path))


def test_a_table_of_another_batch_size_is_not_taken_for_the_wanted_one(published: Desk) -> None:
    with pytest.raises(OpNotInLut, match=r"is of batch 8, but .* was measured at batch 1.*--bs 8"):
        compile_space(spaces.get("proxyless", batch=8), published.lut())


def test_a_table_of_another_batch_size_under_the_wanted_name_is_refused_before_anything_is_timed(
    published: Desk, desk: Desk
) -> None:
    misplaced = desk.luts / NAME.replace("bs1", "bs8") / "v0001.parquet"
    misplaced.parent.mkdir(parents=True)
    shutil.copy(published.lut().path, misplaced)
    ended = desk.run(*desk.collecting(*SHORT, "--bs", "8"))
    assert ended.status == 65, ended.err
    assert ended.error.startswith("error[lut_conflict]: cannot pool with ")
    assert "target.batch was 1 and is now 8" in ended.error
    assert Lut.load(misplaced).meta.target.batch == 1
    assert desk.visits() == []
