"""What is kept beside visits: it says all that their fit needs, and visits read back are those of the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutbuilder.campaign.evidence import Evidence, FailedOp, visits_of
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.coordinator.store import Store
from lutbuilder.op import OpSpec
from lutbuilder.stats.records import COLUMNS
from lutbuilder_agent.errors import SpecError
from tests.store_examples import OPS, SPEC, filled, grant, report, session, timing

OTHER = replace(SPEC, repeat=1)
FIRST = OPS[0].ops[0]
SECOND = OpSpec(kind="conv", in_channels=1, out_channels=7, height=8, width=8)
EVIDENCE = Evidence(
    campaign_ids=(SPEC.key, OTHER.key),
    ops=(*OPS, CampaignOp.pair(FIRST, SECOND), CampaignOp.network((FIRST, SECOND)), CampaignOp.carrier((SECOND,))),
    failures=(FailedOp(op_id="x", reason="crashed", detail="signal 11"),),
    agents={"s2": "bob", "s1": "alice"},
    sessions=("s1",),
    purpose="validate",
    precision=0.01,
    reason="budget",
    imputed_space="amc",
    keep_flagged=True,
)


def test_what_is_kept_is_read_back_equal() -> None:
    assert Evidence.from_json(json.loads(json.dumps(EVIDENCE.to_json(), sort_keys=True))) == EVIDENCE


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body.pop("ops"),
        lambda body: body["members"].pop(FIRST.op_id),
        lambda body: body["members"][FIRST.op_id].update(out_channels=9),
        lambda body: body["ops"][0].__setitem__(1, "emperor"),
        lambda body: body.update(purpose="fun"),
        lambda body: body.update(failures=[["x"]]),
    ],
)
def test_what_no_lutbuilder_kept_is_refused(damage: Callable[[dict[str, Any]], Any]) -> None:
    body = json.loads(json.dumps(EVIDENCE.to_json()))
    damage(body)
    with pytest.raises(SpecError):
        Evidence.from_json(body)


def test_visits_read_back_are_those_of_the_store_in_its_order(tmp_path: Path) -> None:
    with filled(Store.open(tmp_path / "campaigns.sqlite")) as store:
        store.create_campaign(OTHER, now_s=1.0)
        session(store, "s2", name="bob")
        assert grant(store, "l2", "s2", campaign_id=OTHER.key) is not None
        for number in range(3):  # two campaigns, their commits interleaved, the second one's first
            places = (timing(place, round=number, throttled=(0, 1)) for place in (3, 1))
            one = {"session_id": "s2", "lease_id": "l2", "campaign_id": OTHER.key, "timings": tuple(places)}
            store.commit_report(report(number, report_id=f"o{number}", **one), now_s=2.0)
            store.commit_report(report(number), now_s=3.0)
        ids = EVIDENCE.campaign_ids
        expected, found = store.visits(ids), visits_of(store.raw_visits(ids), EVIDENCE)
    for name in (field.name for field in fields(expected)):
        there, here = getattr(expected, name), getattr(found, name)
        if name in COLUMNS:
            assert there.dtype == here.dtype, name
            np.testing.assert_array_equal(here, there, err_msg=name)
        else:
            assert here == there, name


def test_visits_that_nothing_names_are_refused_and_none_are_none(tmp_path: Path) -> None:
    with filled(Store.open(tmp_path / "campaigns.sqlite")) as store:
        store.commit_report(report(), now_s=2.0)
        visits = list(store.raw_visits([SPEC.key]))
    for less in (replace(EVIDENCE, agents={}), replace(EVIDENCE, campaign_ids=(OTHER.key,))):
        with pytest.raises(SpecError, match="which nothing names"):
            visits_of(visits, less)
    assert len(visits_of((), EVIDENCE)) == 0
