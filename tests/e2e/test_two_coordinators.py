"""Two coordinators on one PostgreSQL share one queue: real processes, and one of the two killed in the middle."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lutbuilder.coordinator.store import Store
from lutbuilder.lower import lower
from lutbuilder.lut import Lut
from lutbuilder_agent.runtimes.simulated import OPTIONS, true_ns
from tests.desk import NAME
from tests.fleet import SMALL_SPACE, STEADY, Lab

# A coordinator that stands still for a second is dead to the other one.
SOON = "from lutbuilder.coordinator.service import Coordinator\nCoordinator.__init__.__kwdefaults__['ttl_s'] = 1.0"
QUIET = ("--precision", "0.001%", "--carriers", "0", "--lease-rounds", "0", "--runtime-option", "noise_sigma=0.0005")


class Side(Lab):
    """One of the coordinators, with its own folder and its own agents, on the store and the tables of both."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self.url = url
        self.served = folder.parent / "served"

    @property
    def serving(self) -> tuple[str, ...]:
        return (*super().serving, "--store", self.url)

    def store(self) -> Store:
        return Store.open(self.url)


@pytest.fixture
def side(tmp_path: Path, postgres_url: str) -> Iterator[Callable[[str], Side]]:
    sides: list[Side] = []

    def make(name: str) -> Side:
        sides.append(Side(tmp_path / name, postgres_url))
        return sides[-1]

    yield make
    for one in sides:
        one.clear()


def spooled(here: Lab, agent: str) -> list[Path]:
    return list((here.folder / agent / "spool").glob("*.report"))


def ended(here: Lab, agent: subprocess.Popen[str]) -> None:
    agent.send_signal(signal.SIGTERM)
    done = here.ended(agent)
    assert (done.status, "Traceback" in done.err) == (128 + signal.SIGTERM, False), done.err


def test_agents_of_both_work_on_one_job_and_the_other_ends_it_when_its_coordinator_is_killed(
    side: Callable[[str], Side],
) -> None:
    a, b = side("a"), side("b")
    server = a.serve(first=SOON)
    one = a.agent("one")
    ann = a.person("ann")
    space = ann.folder / "space.toml"
    space.write_text(SMALL_SPACE, encoding="utf-8")
    words = ("--space", str(space), "--agents", "2", "--max-rounds", "24", *QUIET, *STEADY)
    client = ann.start(*a.asking(ann, *words))
    with b.store() as store:
        a.wait_for(lambda: [job.runner for job in store.jobs()] not in ([], [""]))
        b.serve(first=SOON)  # only now: it would run the job if it were asked for one sooner
        two = b.agent("two")
        b.wait_for(lambda: {lease.agent for lease in store.active_leases()} == {"one", "two"})
        (campaign,) = store.campaigns()
        (job,) = store.jobs()
        first = job.runner

        def sessions() -> Counter[str]:
            return Counter(report.session_id for report in store.reports([campaign.campaign_id]))

        b.wait_for(lambda: len(sessions()) == 2 and min(sessions().values()) >= 2)
        server.kill()
        a.ended(server)
        client.kill()
        before = {v.timing for v in store.raw_visits([campaign.campaign_id])}
        b.wait_for(lambda: store.job(job.job_id).runner not in ("", first))
        attached = ann.run("jobs", "attach", job.job_id, "--coordinator", b.address, "--luts", str(ann.luts), "--json")
        assert attached.status == 0, attached.err
        assert attached.json["published"]
        a.serve(first=SOON)  # for what its agent still has
        a.wait_for(lambda: not spooled(a, "one") and a.ask("leases")["leases"] == [])
        ended(a, one)
        ended(b, two)
        assert spooled(b, "two") == []
        visits = list(store.raw_visits([campaign.campaign_id]))
        assert before <= {v.timing for v in visits}, "what was acknowledged stays"
        assert len({(v.session_id, v.timing.round, v.timing.op_id) for v in visits}) == len(visits)
        assert store.conflicts([campaign.campaign_id]) == ()
        assert store.active_leases() == ()
        assert [(each.state, each.lut) for each in store.jobs()] == [("done", f"{NAME}@1")]
    assert [path.name for path in (b.served / NAME).glob("v*")] == ["v0001.parquet"], "published once"
    lut = Lut.load(ann.luts / NAME)
    for row in lut.rows():
        if row.kind != "identity":
            truth_ms = (true_ns(lower(row.op), {"speed": "0.002"}) - float(OPTIONS["overhead_ns"])) / 1e6
            assert row.latency_ms == pytest.approx(truth_ms, rel=2e-3), row.op.label()
