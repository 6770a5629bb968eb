"""`lutbuilder validate` as users run it: a list fixed before timing, fresh instances, a report of what was timed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lutbuilder import spaces
from lutbuilder.campaign.state import STORE_NAME
from lutbuilder.coordinator.store import Store
from lutbuilder.networks import networks_sha256, read_networks
from tests.desk import NAME, Desk

WORDS = ("--rounds", "8", "--lease-rounds", "4", "--seed", "3", "--json")


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk with a table. Tests only add versions."""
    made = Desk(tmp_path_factory.mktemp("validated") / "desk")
    ended = made.run(*made.collecting("--max-rounds", "8", "--precision", "20%"))
    assert ended.status == 0, ended.err
    yield made
    made.clear()


def test_a_list_is_fixed_timed_in_fresh_instances_and_reported_once_more_without_timing(collected: Desk) -> None:
    desk, listed = collected, collected.folder / "networks.json"
    folders = (str(desk.luts / NAME), "--state-dir", str(desk.state))
    few = ("--random", "2", "--searched", "1", "--save-networks", str(listed))
    first = desk.run("validate", *folders, *WORDS, *few)
    assert first.status == 0, first.err
    report = first.json["report"]
    networks = read_networks(listed, spaces.get("proxyless"), batch=1)
    assert report["networks_sha256"] == networks_sha256(networks)
    assert [network["op_id"] for network in report["networks"]] == [network.op_id for network in networks]
    assert {network["n_instances"] for network in report["networks"]} == {6}, "two leases of three instances each"
    assert (report["table"], report["published_shares_visits"]) == (f"{NAME}@1", False)
    assert report["published"]["mape"]["value"] < 0.02
    carriers = set(desk.lut(1).meta.fitted_networks)
    assert report["n_fitted"] == len(carriers) == 16
    assert carriers.isdisjoint(network.op_id for network in networks)
    assert set(desk.lut(2).meta.fitted_networks) == carriers
    assert report["published_by_ops"] is not None, "the carriers were timed again and told the scale"
    with Store.open(desk.state / STORE_NAME) as store:
        stored = store.campaign(report["campaign_id"])
        assert stored.spec.networks_sha256 == report["networks_sha256"]
        assert stored.created_s <= min(done.committed_s for done in store.reports([stored.campaign_id]))

    before = desk.visits()
    again = desk.run("validate", *folders, *WORDS, "--networks", str(listed))
    assert again.status == 0, again.err
    assert (again.json["timed_before"], desk.visits()) == (True, before)
    second = again.json["report"]
    assert [network["measured_ms"] for network in second["networks"]] == [
        network["measured_ms"] for network in report["networks"]
    ]
    assert (second["table"], second["published_shares_visits"]) == (f"{NAME}@2", True)
    assert again.json["lut"]["version"] == 3

    third = desk.run("validate", *folders, *WORDS, "--networks", str(listed), "--again")
    assert third.status == 0, third.err
    assert not third.json["timed_before"]
    assert third.json["report"]["campaign_id"] != report["campaign_id"]
    added = desk.visits()[len(before) :]
    assert {visit.timing.round for visit in added} == set(range(8))


def test_a_list_that_was_changed_is_refused_before_anything_is_timed(collected: Desk) -> None:
    desk, listed = collected, collected.folder / "changed.json"
    folders = (str(desk.luts / NAME), "--state-dir", str(desk.state))
    archs = spaces.get("proxyless")
    sampled = [archs.decode(row) for row in ([0] * 21, [1] * 21, [2] * 21)]
    listed.write_text(json.dumps({"networks": sampled, "networks_sha256": "ab" * 32}))
    before = desk.visits()
    ended = desk.run("validate", *folders, *WORDS, "--networks", str(listed))
    assert ended.status == 65
    assert "the list was changed after it was saved" in ended.error
    assert desk.visits() == before
