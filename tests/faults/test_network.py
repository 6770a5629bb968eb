"""Networks that delay, lose, double, reorder and break: a served fleet, its agents at the far end of a bad wire.

All are real processes in two network namespaces (tests/netns.py). The simulated device has hardly any noise here:
whatever happens on the way, a table has the rows of a quiet day.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lutbuilder.coordinator.store import RawVisit, StoredReport
from lutbuilder.lut import Row
from lutbuilder_agent.records import Timing
from tests.desk import Desk
from tests.fleet import SMALL_SPACE, STEADY, Lab
from tests.netns import Wire, bad_network, missing

N_OPS = 4  # with the empty calls they are corrected by
ALMOST_EXACT = (
    "--precision",
    "0.001%",
    "--carriers",
    "0",
    "--lease-rounds",
    "0",
    "--runtime-option",
    "noise_sigma=0.0005",
)
# An agent that finds out about a dead connection, and that it is alive again, in a test's time.
HASTY = """
from lutbuilder_agent.link import Backoff
Backoff.__init__.__kwdefaults__["cap_s"] = 0.5
from lutbuilder_agent.wire import client
client.CoordinatorClient.__init__.__kwdefaults__["deadline_s"] = 1 / 3
client._LEASE_MARGIN_S = client.MAX_WAIT_S = 1.0
"""
PORT = 7070
ROUND = re.compile(r"round (\d+): (\d+) visits")
Key = tuple[str, int, str, int]


class Far(Lab):
    """A lab whose coordinator and people are at the near end of a wire; agents are where they are said to be."""

    def __init__(self, folder: Path, wire: Wire) -> None:
        super().__init__(folder)
        self.wire = wire
        self.within = wire.near.within
        self.space = folder / "space.toml"
        self.space.write_text(SMALL_SPACE, encoding="utf-8")
        self.server: subprocess.Popen[str]
        self.ann = self.person("ann")
        self.client: subprocess.Popen[str]
        self.acknowledged: dict[Key, Timing] = {}

    @property
    def serving(self) -> tuple[str, ...]:
        where = ("--listen", f"0.0.0.0:{PORT}", "--insecure-plaintext-to-anyone", "--metrics", "off")
        return ("serve", *where, "--state-dir", str(self.state), "--luts", str(self.served), "--json")

    def begin(self, rounds: int, *words: str, ttl_s: float = 30.0) -> None:
        """Serve, and ask for a table."""
        self.serve_with(ttl_s)
        self.client = self.ann.start(*self.asking(self.ann, *asked(self.space, rounds), *words))

    def serve_with(self, ttl_s: float) -> None:
        given = f"Coordinator.__init__.__kwdefaults__['ttl_s'] = {ttl_s}"
        self.server = self.serve(first=f"from lutbuilder.coordinator.service import Coordinator\n{given}")
        self.address = f"127.0.0.1:{PORT}"

    def far_agent(self, name: str, *, hasty: bool = True) -> subprocess.Popen[str]:
        """Start an agent at the far end; a `hasty` one does not wait half a minute for an answer."""
        program = f"{HASTY if hasty else ''}\nimport sys\nfrom lutbuilder_agent.cli import main\nsys.exit(main())"
        folders = [word for kind in ("cache", "spool") for word in (f"--{kind}-dir", str(self.folder / name / kind))]
        where = ("--coordinator", f"{self.wire.near.address}:{PORT}", "--insecure-plaintext")
        domain = ("--name", name, "--clock-domain", name, "--runtimes", "simulated")
        self.within = self.wire.far.within
        try:
            return self._spawn([sys.executable, "-c", program, "run", *where, *domain, *folders])
        finally:
            self.within = self.wire.near.within

    # --- what happens

    def spooled(self, name: str = "one") -> list[str]:
        """Return the ids of the reports that wait at an agent."""
        folder = self.folder / name / "spool"
        return [path.stem.partition("-")[2] for path in sorted(folder.glob("*.report"))]

    def reports(self) -> tuple[StoredReport, ...]:
        with self.store() as store:
            return store.reports([campaign.campaign_id for campaign in store.campaigns()])

    def leased_to(self) -> list[tuple[str, str]]:
        with self.store() as store:
            return [(lease.agent, lease.lease_id) for lease in store.active_leases()]

    def leases_given(self) -> int:
        with self.store() as store:
            return len(store.leases(active=False))

    def look(self) -> list[RawVisit]:
        """Read all visits: what was there is there, as it was, and nothing is there twice."""
        seen = self.visits()
        now = {(v.session_id, v.timing.round, v.timing.op_id, v.timing.order): v.timing for v in seen}
        assert len(now) == len(seen)
        assert self.acknowledged.items() <= now.items(), "what was acknowledged stays"
        self.acknowledged = now
        return seen

    # --- how it ends

    def ends_as_on(self, quiet_day: dict[tuple[str, str, str], Row], **agents: subprocess.Popen[str]) -> list[str]:
        """Check the table, the store and the agents' spools once all is over; return what the agents said."""
        ended = self.ann.ended(self.client)
        assert ended.status == 0, ended.err
        assert ended.json["published"]
        rows = rows_of(self.ann)
        assert rows.keys() == quiet_day.keys()
        for key, row in rows.items():
            quiet = quiet_day[key]
            assert (row.exec_status, row.reason) == (quiet.exec_status, quiet.reason)
            assert row.latency_ms == pytest.approx(quiet.latency_ms, rel=2e-3, abs=2e-4), row.op.label()
        self.wait_for(lambda: not any(self.spooled(name) for name in agents))
        assert self.leased_to() == [], "no lease is stuck"
        said = []
        for name, agent in agents.items():
            agent.send_signal(signal.SIGTERM)
            told = self.ended(agent)
            assert told.status == 128 + signal.SIGTERM, told.err
            assert "Traceback" not in told.err
            assert not list((self.folder / name).rglob("*.corrupt"))
            said.append(told.err)
        measured = Counter(int(number) for text in said for number, _ in ROUND.findall(text))
        visits = self.look()
        assert Counter(report.round for report in self.reports()) == measured, "every round is there once"
        assert Counter(visit.timing.round for visit in visits) == Counter(
            {number: N_OPS * times for number, times in measured.items()}
        )
        return said

    def assert_nobody_was_lost(self) -> None:
        assert self.leases_given() == 1
        ended = self.terminated(self.server)
        assert ended.status == 0, ended.err
        assert "is lost to" not in ended.err


def asked(space: Path, rounds: int) -> tuple[str, ...]:
    return ("--space", str(space), "--max-rounds", str(rounds), *ALMOST_EXACT)


def rows_of(desk: Desk) -> dict[tuple[str, str, str], Row]:
    return {row.key: row for row in desk.lut().rows()}


@pytest.fixture(scope="module")
def quiet_day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str, str], Row]]:
    """The rows of the same command where nothing goes wrong."""
    desk = Desk(tmp_path_factory.mktemp("quiet") / "desk")
    space = desk.folder / "space.toml"
    space.write_text(SMALL_SPACE, encoding="utf-8")
    ended = desk.run(*desk.collecting(*asked(space, 6), *STEADY))
    assert ended.status == 0, ended.err
    yield rows_of(desk)
    desk.clear()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Far]:
    reason = missing()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with bad_network() as wire:
        made = Far(tmp_path / "lab", wire)
        yield made
        made.clear()


Quiet = dict[tuple[str, str, str], Row]


def test_half_a_second_of_delay_costs_time_and_nothing_else(lab: Far, quiet_day: Quiet) -> None:
    lab.begin(2, *STEADY, "--accept-noisy")
    lab.wire.delay_s = 0.25  # each way
    agent = lab.far_agent("one", hasty=False)
    (said,) = lab.ends_as_on(quiet_day, one=agent)
    assert "Trying again" not in said
    assert [report.late for report in lab.reports()] == [False] * 2
    lab.assert_nobody_was_lost()


def test_packets_that_get_lost_doubled_and_out_of_order_lose_no_round(lab: Far, quiet_day: Quiet) -> None:
    lab.begin(12, *STEADY)
    lab.wire.loss, lab.wire.doubled, lab.wire.shuffle_s = 0.05, 0.05, 0.02
    agent = lab.far_agent("one", hasty=False)
    lab.ends_as_on(quiet_day, one=agent)
    assert min(lab.wire.count["lost"], lab.wire.count["doubled"]) > 3
    assert [report.late for report in lab.reports()] == [False] * 12
    lab.assert_nobody_was_lost()


def test_a_partition_shorter_than_the_ttl_is_measured_through_and_handed_in(lab: Far, quiet_day: Quiet) -> None:
    agent = lab.far_agent("one")
    lab.begin(12, *STEADY)
    lab.wait_for(lambda: lab.rounds() >= 2)
    lab.wire.cut = True
    lab.look()
    lab.wait_for(lambda: len(lab.spooled()) >= 3)
    lab.wire.cut = False
    lab.ends_as_on(quiet_day, one=agent)
    assert [report.late for report in lab.reports()] == [False] * 12
    lab.assert_nobody_was_lost()


def test_a_partition_longer_than_the_ttl_gives_the_batch_away_and_late_results_count_once(
    lab: Far, quiet_day: Quiet
) -> None:
    one = lab.far_agent("one")
    lab.begin(30, *STEADY, ttl_s=1.0)
    lab.wait_for(lambda: lab.rounds() >= 2)
    lab.wire.cut = True
    two = lab.agent("two")
    lab.look()
    lab.wait_for(lambda: [name for name, _ in lab.leased_to()] == ["two"])
    lab.wait_for(lambda: len(lab.spooled()) >= 3)
    lab.look()
    # The first may have arrived as the wire was cut, and only its acknowledgement not: that one is in time.
    cut_off = set(lab.spooled()) - {report.report_id for report in lab.reports()}
    assert len(cut_off) >= 2
    lab.wire.cut = False
    lab.ends_as_on(quiet_day, one=one, two=two)
    late = Counter(report.report_id for report in lab.reports() if report.late)
    assert cut_off <= set(late)
    assert set(late.values()) == {1}


def test_a_cable_pulled_while_an_acknowledgement_is_on_its_way_makes_a_round_come_again_and_count_once(
    lab: Far, quiet_day: Quiet
) -> None:
    agent = lab.far_agent("one")
    lab.begin(12, *STEADY)
    lab.wait_for(lambda: lab.rounds() >= 2)
    lab.wire.to_far_s = 0.3
    committed = lab.rounds()
    lab.wait_for(lambda: lab.rounds() > committed)
    lab.wire.far.link("down")
    lab.look()
    (newest,) = [report.report_id for report in lab.reports()][committed : committed + 1]
    lab.wait_for(lambda: len(lab.spooled()) >= 3)
    assert lab.spooled()[0] == newest, "it is committed, and its agent does not know"
    lab.wire.to_far_s = 0.0
    lab.wire.far.link("up")
    lab.ends_as_on(quiet_day, one=agent)
    assert [report.late for report in lab.reports()] == [False] * 12
    lab.assert_nobody_was_lost()


def test_a_coordinator_killed_and_started_again_behind_a_partition_finds_its_agent_and_the_same_lease(
    lab: Far, quiet_day: Quiet
) -> None:
    agent = lab.far_agent("one")
    lab.begin(16, *STEADY)
    lab.wait_for(lambda: lab.rounds() >= 2)
    lab.wire.cut = True
    lab.look()
    lab.server.kill()
    lab.ended(lab.server)
    lab.serve_with(30.0)
    lab.wait_for(lambda: len(lab.spooled()) >= 3)
    lab.wire.cut = False
    lab.ends_as_on(quiet_day, one=agent)
    assert [report.late for report in lab.reports()] == [False] * 16
    lab.assert_nobody_was_lost()


def test_a_coordinator_stopped_for_longer_than_the_ttl_calls_nobody_lost(lab: Far, quiet_day: Quiet) -> None:
    agent = lab.far_agent("one")
    lab.begin(16, *STEADY, ttl_s=1.0)
    lab.wait_for(lambda: lab.rounds() >= 2)
    lab.server.send_signal(signal.SIGSTOP)
    lab.look()
    time.sleep(2.0)
    lab.wait_for(lambda: len(lab.spooled()) >= 3)
    lab.server.send_signal(signal.SIGCONT)
    lab.ends_as_on(quiet_day, one=agent)
    assert [report.late for report in lab.reports()] == [False] * 16
    lab.assert_nobody_was_lost()
