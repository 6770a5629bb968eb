"""`lutbuilder luts rebuild`: the visits beside a table give its rows again, or the command says what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types
import pytest

from lutbuilder import spaces
from lutbuilder.campaign import draft
from lutbuilder.campaign.estimates import summarise
from lutbuilder.campaign.state import STORE_NAME
from lutbuilder.coordinator.store import Store
from lutbuilder.lut import Lut, publish, write_samples
from lutbuilder.lut.store import open_samples
from lutbuilder.rebuild import rebuild
from lutbuilder_agent.errors import LutConflict, LutCorrupt, LutNotFound, SamplesMissing
from tests.desk import NAME, Desk
from tests.lut_examples import example_meta, example_op, example_row

COLLECTING = ("--max-rounds", "8", "--instances", "2", "--runtime-option", "noise_sigma=0.02")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A table in four versions: collected, validated, calibrated, and collected again, which fits all of it anew."""
    desk = Desk(tmp_path_factory.mktemp("measured") / "desk")
    folders = ("--luts", str(desk.luts), "--state-dir", str(desk.state), "--json")
    few = ("--rounds", "6", "--instances", "1", *folders)
    for words in (
        desk.collecting(*COLLECTING, "--carriers", "8"),
        ("validate", NAME, "--random", "4", "--searched", "0", *few),
        ("calibrate", NAME, "--nets", "6", *few),
        desk.collecting(*COLLECTING, "--carriers", "8", "--again"),
    ):
        ended = desk.run(*words)
        assert ended.status == 0, ended.err
    yield desk
    desk.clear()


@pytest.fixture
def luts(measured: Desk, tmp_path: Path) -> Path:
    """A copy of that table that a test may add versions to or damage: without the store, and without an agent."""
    return Path(shutil.copytree(measured.luts, tmp_path / "luts"))


def samples_of(luts: Path, version: int) -> Path:
    return luts / NAME / "samples" / f"v{version:04d}.parquet"


def test_the_same_lutbuilder_makes_the_same_rows_bit_by_bit(measured: Desk, luts: Path) -> None:
    ended = measured.run("luts", "rebuild", NAME, "--luts", str(luts), "--json")
    assert ended.status == 0, ended.err
    assert ended.json["lut"]["version"] == 5
    assert ended.json["fitted_versions"] == [1, 2, 3, 4]
    assert (ended.json["identical"], ended.json["changed"]) == (True, {})
    old, new = (Lut.load(luts / NAME / f"v{version:04d}.parquet") for version in (4, 5))
    assert new.table.equals(old.table)
    assert (new.meta.parent_version, new.meta.parent_sha256) == (4, old.content_hash)
    for field in ("target", "fingerprint", "plan", "sessions", "session_reports", "carriers", "fitted_networks",
                  "calibration", "drift_trace", "conditions", "quality", "spaces"):  # fmt: skip  # one list
        assert getattr(new.meta, field) == getattr(old.meta, field), field
    compared = measured.run("luts", "diff", f"{luts / NAME}@4", f"{luts / NAME}@5", "--json")
    assert {(row["verdict"], row["ratio"]) for row in json.loads(compared.out)["rows"]} == {("SAME", 1.0)}
    assert samples_of(luts, 5).is_file(), "it is as complete as the one before"


def test_a_validation_and_a_calibration_time_the_tables_carriers_again(measured: Desk) -> None:
    with Store.open(measured.state / STORE_NAME) as store:
        specs = {campaign.spec.purpose: campaign.spec for campaign in store.campaigns()}
    first = Lut.load(measured.luts / NAME / "v0001.parquet")
    for purpose in ("collect", "validate", "calibrate"):
        timed = {op.op_id for op in specs[purpose].ops if op.role == "carrier"}
        assert timed == {carrier.op_id for carrier in first.meta.carriers}, purpose
        assert len(timed) == 8


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_can_be_made_again_whatever_came_after_it(luts: Path, version: int) -> None:
    made = rebuild(f"{NAME}@{version}", luts=luts)
    assert made.identical
    assert (made.lut.version, made.lut.meta.parent_version) == (5, version)
    assert made.steps == tuple(range(1, version + 1))
    assert made.lut.meta.validation == made.source.meta.validation


def test_what_was_rebuilt_is_rebuilt_to_itself(luts: Path) -> None:
    first = rebuild(NAME, luts=luts)
    again = rebuild(NAME, luts=luts)
    assert again.source.version == first.lut.version
    assert again.identical
    assert again.lut.version == first.lut.version + 1


def test_other_statistics_change_the_rows_and_leave_the_validation_behind(
    luts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_drift_model(*arguments: Any) -> Any:
        return summarise(*arguments, steady=True)

    monkeypatch.setattr(draft, "summarise", without_drift_model)
    made = rebuild(f"{NAME}@2", luts=luts)
    assert not made.identical
    assert len(made.changed) > 60
    ratios = [made.changed.get(op.op_id, 1.0) or 0.0 for op in spaces.get("proxyless").ops()]
    assert all(0.8 < ratio < 1.25 for ratio in ratios), "another estimate of the same ops"
    assert made.validation_left
    assert made.lut.meta.validation is None
    assert made.source.meta.validation is not None, "versions are immutable"


def test_imputed_rows_are_imputed_again(desk: Desk) -> None:
    ended = desk.run(*desk.collecting("--max-ops", "30", "--instances", "1", "--max-rounds", "8"))
    assert ended.status == 0, ended.err
    made = rebuild(NAME, luts=desk.luts)
    assert made.identical
    assert sum(row.status == "imputed" and row.kind != "identity" for row in made.lut.rows()) == 40


def test_visits_that_a_kill_kept_from_the_table_are_written_by_the_next_collect_with_all_a_rebuild_needs(
    measured: Desk, luts: Path
) -> None:
    samples_of(luts, 4).unlink()
    words = ("--luts", str(luts), "--state-dir", str(measured.state), "--precision", "90%", "--json")
    ended = measured.run("collect", "--device", "simulated", "--runtime-option", "noise_sigma=0.02", *words)
    assert ended.status == 0, ended.err
    assert not ended.json["published"]
    assert rebuild(NAME, luts=luts).identical


# --- What cannot be rebuilt


def test_a_table_without_its_visits_is_refused_and_the_file_named(measured: Desk, luts: Path) -> None:
    samples_of(luts, 3).unlink()
    ended = measured.run("luts", "rebuild", NAME, "--luts", str(luts))
    assert ended.status == 66
    assert ended.error.startswith("error[samples_missing]")
    assert str(samples_of(luts, 3)) in ended.error
    assert "lutbuilder collect --device simulated --space proxyless --runtime simulated --bs 1 --again" in ended.error
    assert rebuild(f"{NAME}@2", luts=luts).identical, "the versions before it need it not"


def test_visits_that_an_earlier_lutbuilder_wrote_are_refused_and_what_they_lack_is_named(luts: Path) -> None:
    path = samples_of(luts, 1)
    table = pq.read_table(path)
    footer = json.loads(table.schema.metadata[b"lutbuilder.samples"])
    del footer["fit"]
    pq.write_table(table.replace_schema_metadata({b"lutbuilder.samples": json.dumps(footer).encode()}), path)
    with pytest.raises(SamplesMissing, match=r"v0001\.parquet .* pairs and networks .* lutbuilder collect "):
        rebuild(f"{NAME}@1", luts=luts)


def test_visits_of_another_table_and_damaged_ones_are_refused(luts: Path) -> None:
    whole = samples_of(luts, 1).read_bytes()
    shutil.copy(samples_of(luts, 2), samples_of(luts, 1))
    with pytest.raises(LutCorrupt, match="does not hold the raw visits of"):
        rebuild(f"{NAME}@1", luts=luts)
    for damaged in (whole[:5000] + bytes(20) + whole[5020:], whole[: len(whole) // 2]):
        samples_of(luts, 1).write_bytes(damaged)
        with pytest.raises(LutCorrupt, match="are damaged"):
            rebuild(f"{NAME}@1", luts=luts)
    assert not (luts / NAME / "v0005.parquet").exists()


def test_imported_rows_are_taken_over_as_they_are(luts: Path) -> None:
    imported = example_row(example_op(kernel=9), evidence="imported", n_visits=0)
    publish([imported], replace(Lut.load(luts / NAME).meta, calibration=None), folder=luts)
    made = rebuild(NAME, luts=luts)
    assert made.identical
    assert made.lut[imported.op] == imported
    assert rebuild(NAME, luts=luts).identical, "what it rests on lies beside it"


def test_a_version_alone_is_enough_where_its_visits_are_all_that_it_rests_on(luts: Path) -> None:
    for version in (1, 2, 3):
        (luts / NAME / f"v{version:04d}.parquet").unlink()
    made = rebuild(NAME, luts=luts)
    assert made.identical
    assert made.steps == (4,)


def test_nothing_that_rests_on_a_missing_version_is_lost_in_silence(luts: Path) -> None:
    fourth = Lut.load(luts / NAME)
    elsewhere = publish([example_row(example_op(kernel=9))], fourth.meta, folder=luts)  # and its visits with it
    kept = open_samples(fourth)
    write_samples(kept.visits(), lut=elsewhere, fit=kept.fit)
    with pytest.raises(SamplesMissing, match=r"^1 ops of .*@5 cannot be made of the visits"):
        rebuild(NAME, luts=luts)


def test_a_table_of_which_nothing_was_measured_has_nothing_to_rebuild(tmp_path: Path) -> None:
    publish([example_row(evidence="imported", n_visits=0)], example_meta(), folder=tmp_path)
    with pytest.raises(SamplesMissing, match=r"no row of .* was measured here"):
        rebuild(example_meta().name, luts=tmp_path)


def test_a_file_elsewhere_is_no_version_and_a_race_is_told(luts: Path, tmp_path: Path) -> None:
    shutil.copy(luts / NAME / "v0001.parquet", tmp_path / "mine.parquet")
    with pytest.raises(LutNotFound, match="its visits have no place beside it"):
        rebuild(str(tmp_path / "mine.parquet"))

    def somebody_publishes(step: str) -> None:
        if step == "publishing":
            publish((), Lut.load(NAME, folder=luts).meta, folder=luts)

    with pytest.raises(LutConflict, match="somebody else published"):
        rebuild(f"{NAME}@1", luts=luts, on_step=somebody_publishes)
