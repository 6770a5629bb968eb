"""What can be read of a damaged store is saved, what cannot is counted, and nothing is invented."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lutbuilder.campaign.job import JobSpec
from lutbuilder.cli.main import app
from lutbuilder.coordinator.store import Store, schema
from lutbuilder.coordinator.store.salvage import Salvage, salvage
from lutbuilder_agent.errors import StoreError
from lutbuilder_agent.records import Failure
from tests.store_examples import OPS, SPEC, dump, filled, grant, raw, report, session, timing

ROUNDS = 120
LONG = tuple(timing(place, samples_ns=tuple(range(1, 201)), preempted=()) for place in range(4))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A closed store of some 480 visits, its journal merged."""
    path = tmp_path / "campaigns.sqlite"
    with Store.open(path) as store:
        filled(store)
        for number in range(ROUNDS):
            visits = tuple(replace(visit, round=number) for visit in LONG)
            store.commit_report(report(number, timings=visits), now_s=3.0 + number)
        store.commit_report(report(0, report_id="odd", timings=(timing(0, start_ns=7),)), now_s=999.0)
        store.record_failure(SPEC.key, "s1", Failure(op_id=OPS[0].op_id, round=0, reason="crashed", detail="x"))
        store.submit_job(JobSpec(kind="collect", request="{}"), job_id="job-1", now_s=1.0)
        store.set_agent("alice", drained=True)
    return path


def _of(saved: Salvage, name: str) -> tuple[int, int, bool]:
    (table,) = [table for table in saved.tables if table.name == name]
    return table.kept, table.lost, table.complete


def _overwrite(path: Path, page: int, raw: bytes = b"\xff" * 4096) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(raw)


def _leaves(path: Path) -> list[int]:
    """Numbers of the pages that hold rows of `visits`: leaves with the heads of several packs of 200 samples."""
    content = path.read_bytes()
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    head = bytes.fromhex("04 01000000 c8000000")
    return [number for number, page in enumerate(pages, start=1) if page[0] == 0x0D and page.count(head) > 2]


def test_a_store_without_damage_is_saved_whole(whole: Path, tmp_path: Path) -> None:
    before = whole.read_bytes()
    saved = salvage(whole, tmp_path / "new.sqlite")
    assert saved.lossless
    assert whole.read_bytes() == before
    with Store.open(whole) as old, Store.open(saved.target) as new:
        left, right = dump(old), dump(new)
        assert {name for name in left if left[name] != right[name]} <= {"meta"}
        assert raw(new) == raw(old)
        assert new.commit_report(report(500), now_s=1.0).n_new == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["campaigns.sqlite", "new.sqlite"]


def test_a_store_of_the_first_release_is_saved_into_one_of_this(root: Path, tmp_path: Path) -> None:
    saved = salvage(root / "tests" / "golden" / "store-schema-1.sqlite", tmp_path / "new.sqlite")
    assert saved.lossless
    with Store.open(saved.target) as new:
        campaign = new.campaigns()[0]
        assert (campaign.rounds, new.progress(campaign.campaign_id).rounds) == (6, {0: 2, 1: 3})
        assert [lease.domain for lease in new.active_leases()] == ["bob"]
        assert new.session("a1").last_report_s == 163.0
    assert not (root / "tests" / "golden" / "store-schema-1.sqlite-wal").exists()


@pytest.mark.parametrize("kept", [0.35, 0.6, 0.9])
def test_of_a_store_that_was_cut_the_rest_is_saved(whole: Path, tmp_path: Path, kept: float) -> None:
    with Store.open(whole) as store:
        visits = raw(store)
    os.truncate(whole, int(whole.stat().st_size * kept))
    with pytest.raises(StoreError, match="lutbuilder store salvage"):
        Store.open(whole)
    saved = salvage(whole, tmp_path / "new.sqlite")
    assert not saved.lossless
    n_kept, n_lost, _ = _of(saved, "visits")
    assert n_kept + n_lost == len(visits)
    assert 0 < n_kept < len(visits)
    with Store.open(saved.target) as new:
        found = raw(new)
        assert len(found) == n_kept
        there = set(found)
        assert [visit for visit in visits if visit in there] == found, "in their order, and none changed"
        assert new.campaign(SPEC.key).rounds == len({(r.session_id, r.round) for r in new.reports([SPEC.key])})
        assert new.next_round(SPEC.key) == ROUNDS


@pytest.mark.parametrize("which", [0, 5, -1])
def test_rows_behind_a_bad_page_are_saved(whole: Path, tmp_path: Path, which: int) -> None:
    with Store.open(whole) as store:
        visits = raw(store)
    leaves = _leaves(whole)
    assert len(leaves) > 10
    _overwrite(whole, leaves[which])
    saved = salvage(whole, tmp_path / "new.sqlite")
    n_kept, n_lost, _ = _of(saved, "visits")
    assert n_kept + n_lost == len(visits)
    assert 0 < n_lost < 60
    with Store.open(saved.target) as new:
        found = raw(new)
        there = set(found)
        assert [visit for visit in visits if visit in there] == found
        assert store_goes_on(new)


def test_two_bad_pages_far_apart_cost_two_pages(whole: Path, tmp_path: Path) -> None:
    leaves = _leaves(whole)
    for which in (2, 4, 9):
        _overwrite(whole, leaves[which])
    kept, lost, _ = _of(salvage(whole, tmp_path / "new.sqlite"), "visits")
    assert kept + lost == 4 * ROUNDS
    assert 0 < lost < 150


def store_goes_on(store: Store) -> bool:
    """Whether an agent may go on with it."""
    store.set_agent("alice", drained=False)
    session(store, "s2")
    assert grant(store, "l9", "s2") is not None
    return store.commit_report(report(900, session_id="s2", lease_id="l9"), now_s=1.0).n_new == 4


def _change(path: Path, statement: str, *values: Any) -> None:
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(statement, values).rowcount > 0
    connection.close()


@pytest.mark.parametrize(
    ("statement", "table", "lost"),
    [
        ("UPDATE visits SET block_ns = block_ns + 1 WHERE visit_no = 7", "visits", 1),
        ("UPDATE visits SET samples = x'ff00ff' WHERE visit_no IN (7, 8)", "visits", 2),
        ("UPDATE visits SET round = 'many' WHERE visit_no = 7", "visits", 1),
        ("UPDATE visits SET op_id = CAST(x'ff' AS TEXT) WHERE visit_no = 7", "visits", 1),
        ("UPDATE visits SET session_id = 'of nobody' WHERE visit_no = 7", "visits", 1),
        ("UPDATE conflicts SET samples = x''", "conflicts", 1),
    ],
)
def test_rows_that_make_no_sense_are_lost(whole: Path, tmp_path: Path, statement: str, table: str, lost: int) -> None:
    _change(whole, statement)
    saved = salvage(whole, tmp_path / "new.sqlite")
    assert _of(saved, table)[1] == lost
    assert not saved.lossless


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE sessions SET facts = '{'", "sessions"),
        ("UPDATE campaigns SET spec = replace(spec, 'toy', 'tox')", "campaigns"),
    ],
)
def test_what_belongs_to_a_lost_campaign_or_session_is_lost(
    whole: Path, tmp_path: Path, statement: str, table: str
) -> None:
    _change(whole, statement)
    saved = salvage(whole, tmp_path / "new.sqlite")
    assert _of(saved, table) == (0, 1, True)
    assert _of(saved, "visits") == (0, 4 * ROUNDS, True)


def test_what_is_in_the_journal_of_a_killed_process_is_saved(tmp_path: Path, root: Path) -> None:
    code = (
        "import os, sys; from tests.store_examples import *\n"
        "store = filled(Store.open(sys.argv[1])); store.commit_report(report(0), now_s=3.0); os._exit(0)"
    )
    path = tmp_path / "campaigns.sqlite"
    subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "agents")])},
        check=True,
    )
    assert path.with_name("campaigns.sqlite-wal").stat().st_size > 0
    assert _of(salvage(path, tmp_path / "new.sqlite"), "visits") == (4, 0, True)


def test_a_file_of_which_nothing_can_be_read_is_refused_and_nothing_is_left(whole: Path, tmp_path: Path) -> None:
    _overwrite(whole, 1)
    with pytest.raises(StoreError, match=r"nothing of .* can be read"):
        salvage(whole, tmp_path / "new.sqlite")
    assert [path.name for path in tmp_path.iterdir()] == ["campaigns.sqlite"]


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.sqlite")
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        salvage(tmp_path / "other.sqlite", tmp_path / "new.sqlite")


def test_nothing_is_overwritten(whole: Path) -> None:
    with pytest.raises(StoreError, match="--into FILE"):
        salvage(whole, whole)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot save .*nowhere.sqlite"):
        salvage(tmp_path / "nowhere.sqlite", tmp_path / "new.sqlite")


# --- the command


def test_the_command_says_what_is_lost_and_how_to_go_on(whole: Path) -> None:
    _overwrite(whole, _leaves(whole)[3])
    done = CliRunner().invoke(app, ["store", "salvage", str(whole)])
    assert done.exit_code == 0, done.output
    assert f"mv {whole}.salvaged {whole}" in done.output
    assert "lost visits can be measured again" in done.output
    with Store.open(f"{whole}.salvaged") as store:
        assert store.campaign(SPEC.key).rounds == ROUNDS


def test_the_command_gives_json(whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.sqlite"
    done = CliRunner().invoke(app, ["store", "salvage", str(whole), "--into", str(target), "--json"])
    body = json.loads(done.stdout)
    assert (body["target"], body["lossless"]) == (str(target), True)
    assert {table["name"] for table in body["tables"]} == set(schema.metadata.tables) - {
        "meta", "alembic_version", "batch_rounds", "coordinators",
    }  # fmt: skip  # a list of names


def test_the_command_finds_this_users_store_and_refuses_clearly(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["store", "salvage", "--state-dir", str(tmp_path)])
    assert done.exit_code == StoreError.exit_status
    assert "error[store]" in done.output
