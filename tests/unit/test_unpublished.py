"""A campaign that was measured and not published is published, not measured again; also where sessions are shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from lutbuilder.campaign.collect import unpublished
from lutbuilder.coordinator.store import Store
from lutbuilder.lut import Lut, publish
from tests.lut_examples import example_meta, example_row
from tests.store_examples import SPEC, filled, report

ENDED_S = 1000.7


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "campaigns.sqlite") as opened:
        filled(opened).commit_report(report(), now_s=2.0)
        opened.finish_campaign(SPEC.key, "precision", ENDED_S)
        yield opened


def table(folder: Path, *, sessions: tuple[str, ...], made_s: float) -> Lut:
    created = datetime.fromtimestamp(made_s, timezone.utc).isoformat()
    return publish([example_row()], replace(example_meta(sessions=sessions), created=created), folder=folder)


def test_one_that_is_in_no_table_is_to_be_published(store: Store, tmp_path: Path) -> None:
    assert unpublished(SPEC, store, None) == SPEC
    assert unpublished(SPEC, store, table(tmp_path, sessions=("other",), made_s=2000.0)) == SPEC


def test_one_whose_table_was_made_after_it_is_measured_again(store: Store, tmp_path: Path) -> None:
    made = table(tmp_path, sessions=("s1", "other"), made_s=1000.0)  # in the second it ended: whole seconds are kept
    assert unpublished(SPEC, store, made) == replace(SPEC, repeat=1)


def test_one_whose_session_is_in_a_table_made_before_it_ended_is_to_be_published(store: Store, tmp_path: Path) -> None:
    made = table(tmp_path, sessions=("s1",), made_s=999.0)  # another campaign's, measured in the same session
    assert unpublished(SPEC, store, made) == SPEC
