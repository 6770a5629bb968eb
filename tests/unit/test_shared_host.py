"""A host that shares its coordinator chooses among agents of many kinds, and spends only what its campaigns cost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lutbuilder.campaign.controllers import Controllers
from lutbuilder.campaign.host import ALONE, Host
from lutbuilder.campaign.request import CollectRequest, Progress
from lutbuilder.campaign.shared import Shared, SharedHost
from lutbuilder.coordinator.artifacts import ArtifactShelf
from lutbuilder.coordinator.service import Coordinator
from lutbuilder.coordinator.store import Store
from lutbuilder.devices import elsewhere
from lutbuilder_agent.errors import CampaignFailed, Interrupted, NoAgent, SpecError, UnknownName
from lutbuilder_agent.records import AgentHello, Fingerprint, RuntimeReport
from tests.store_examples import HELLO, SPEC, report

TOML = """
title = "mine"
"""


def hello(name: str, *, device: str = "lab-cpu-1", runtime: str = "onnxruntime", fact: str = "1") -> AgentHello:
    return AgentHello(
        name=name,
        agent_version="1",
        fingerprint=Fingerprint(device=device, facts=(("cpu.model", fact),)),
        runtimes=(RuntimeReport(name=runtime, version="1"), RuntimeReport(name="torch", available=False, reason="no")),
    )


@dataclass
class Bench:
    """A store with a coordinator, and openings on them."""

    store: Store
    stack: ExitStack
    told: list[Progress] = field(default_factory=list)
    began: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    coordinator: Coordinator = field(init=False)
    controllers: Controllers = field(init=False)

    def __post_init__(self) -> None:
        self.controllers = Controllers(self.store, on_demand=True)
        self.coordinator = Coordinator(
            self.store, ArtifactShelf(), self.controllers.decide, narrow=self.controllers.narrow, coordinator_id="me"
        )

    def check(self) -> None:
        if self.stop.is_set():
            raise Interrupted("told to stop")

    def opening(self, **changes: Any) -> Shared:
        made = Shared(
            store=self.store,
            coordinator=self.coordinator,
            controllers=self.controllers,
            address="lab:7070",
            waits=self,
            began=self.began.append,
        )
        return replace(made, **changes)

    def host(self, **changes: Any) -> SharedHost:
        opening = self.opening(**changes)
        made: Host = self.stack.enter_context(
            opening.host(elsewhere("cpu", ()), "onnxruntime", listen="", state_dir=None, on_progress=self.told.append)
        )
        assert isinstance(made, SharedHost)
        made.look_every_s = 0.005
        return made

    def find(self, device: str = "cpu", runtime: str = "onnxruntime", *, wait_s: float = 0.0, **changes: Any) -> str:
        found = self.opening().device(device)
        return self.host(**changes).find_agent(found, runtime, wait_s=wait_s).name


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack.enter_context(Store.open(tmp_path / "campaigns.sqlite")), stack)


def test_an_agent_that_can_run_it_is_found_at_once_and_nobody_is_told_to_start_one(bench: Bench) -> None:
    bench.coordinator.register(hello("pi"))
    assert bench.find() == "pi"
    assert bench.told == []


def test_without_one_it_says_what_to_type_and_waits(bench: Bench) -> None:
    came = threading.Timer(0.05, lambda: bench.coordinator.register(hello("pi")))
    came.start()
    assert bench.find(wait_s=30.0) == "pi"
    came.join()
    (told,) = bench.told
    assert told.phase == "waiting"
    assert "lutbuilder-agent run --coordinator lab:7070" in told.message


def test_waiting_ends_when_the_job_is_told_to(bench: Bench) -> None:
    bench.stop.set()
    with pytest.raises(Interrupted, match="told to stop"):
        bench.find(wait_s=30.0)


def test_agents_of_several_devices_are_not_mixed_up_for_one(bench: Bench) -> None:
    bench.coordinator.register(hello("pi", device="pi-5"))
    bench.coordinator.register(hello("tower", device="xeon-7"))
    with pytest.raises(SpecError, match="agents of 2 devices, pi-5, xeon-7: say which one is meant: --device pi-5"):
        bench.find()
    assert bench.find("xeon-7") == "tower"
    assert bench.find("pi-5") == "pi"


def test_of_one_device_the_environment_of_most_agents_is_chosen(bench: Bench) -> None:
    for name, fact in (("a", "old"), ("b", "new"), ("c", "new")):
        bench.coordinator.register(hello(name, fact=fact))
    assert bench.find() == "b"


def test_a_job_that_goes_on_takes_no_other_environment(bench: Bench) -> None:
    bench.coordinator.register(hello("other", fact="other"))
    mine = hello("mine", fact="mine")
    with pytest.raises(NoAgent, match=f"the job began in {mine.fingerprint.env_id}"):
        bench.find(env_id=mine.fingerprint.env_id)
    bench.coordinator.register(mine)
    assert bench.find(env_id=mine.fingerprint.env_id) == "mine"


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ({"drained": True}, "agent pi is drained: lutbuilder agents resume pi"),
        (
            {"quarantined": "3 ops in a row"},
            r"agent pi is quarantined \(3 ops in a row\): lutbuilder agents release pi",
        ),
    ],
)
def test_an_agent_that_takes_no_leases_is_not_chosen(bench: Bench, flag: dict[str, Any], says: str) -> None:
    bench.coordinator.register(hello("pi"))
    bench.store.set_agent("pi", **flag)
    with pytest.raises(NoAgent, match=says):
        bench.find()


def test_a_runtime_that_runs_nowhere_is_waited_for_not_refused(bench: Bench) -> None:
    bench.coordinator.register(hello("pi"))
    with pytest.raises(NoAgent, match="agent pi cannot run torch: no"):
        bench.find(runtime="torch")


def test_agents_of_another_coordinator_count_once_they_are_seen_alive(bench: Bench) -> None:
    bench.store.open_session(hello("old"), "s-old", now_s=1.0)
    known = frozenset(agent.session_id for agent in bench.store.agents())
    with pytest.raises(NoAgent):
        bench.find(known_sessions=known)
    bench.store.open_session(hello("new"), "s-new", now_s=2.0)
    assert bench.find(known_sessions=known) == "new"


def test_a_campaign_of_two_agents_that_was_begun_goes_on_with_the_one_that_is_left(bench: Bench) -> None:
    spec = replace(SPEC, agents=2)
    for name in ("attic", "cellar"):
        bench.store.open_session(replace(HELLO, name=name), f"before-{name}", now_s=1.0)
    bench.coordinator.register(replace(HELLO, name="cellar"))
    host = bench.host(known_sessions=frozenset({"before-attic"}))
    bench.store.create_campaign(spec, now_s=1.0)
    with pytest.raises(NoAgent, match="1 of 2 agents came"):
        host.await_agents(spec, wait_s=0.01)
    bench.store.commit_report(replace(report(), campaign_id=spec.key, session_id="before-attic"), now_s=2.0)
    host.await_agents(spec, wait_s=0.01)
    with pytest.raises(NoAgent, match="1 of 2 agents came"):
        host.await_agents(replace(spec, repeat=1), wait_s=0.01)


def test_a_device_is_named_as_anywhere_or_by_the_silicon_of_an_agent(bench: Bench) -> None:
    bench.coordinator.register(hello("pi", device="pi-5"))
    opening = bench.opening()
    assert opening.device("v100").name == "v100"
    assert opening.device("cpu").name == "cpu"
    assert (opening.device("pi-5").name, opening.device("pi-5").local) == ("pi-5", False)
    with pytest.raises(UnknownName, match="did you mean pi-5"):
        opening.device("pi5")


def test_a_file_is_a_space_only_if_it_came_with_the_job(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML, encoding="utf-8")
    assert bench.opening().space("proxyless").name == "proxyless"
    with pytest.raises(SpecError, match="a file of another machine"):
        bench.opening().space(str(tmp_path / "mine.toml"))
    with pytest.raises(SpecError, match=r"mine\.toml"):
        bench.opening(spaces={"mine.toml": "no toml at all ["}).space("mine.toml")


def test_a_campaign_cancelled_by_hand_ends_the_command(bench: Bench) -> None:
    host = bench.host()
    ended = threading.Timer(0.05, lambda: bench.coordinator.finish(SPEC.key, "wrong device", state="cancelled"))
    ended.start()
    with pytest.raises(CampaignFailed, match=r"was cancelled \(wrong device\)"):
        host.run(SPEC)
    ended.join()
    assert bench.began == [SPEC.key]


def test_a_campaign_gets_the_priority_of_its_job(bench: Bench) -> None:
    host = bench.host(priority=7)
    bench.stop.set()
    with pytest.raises(Interrupted):
        host.run(SPEC)
    assert bench.store.campaign(SPEC.key).priority == 7


def test_busy_time_is_of_the_campaigns_not_of_the_clock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    host = bench.host()
    monkeypatch.setattr(bench.controllers, "busy_s", lambda campaign_id: 12.5)
    bench.stop.set()
    for _ in range(2):
        with pytest.raises(Interrupted):
            host.run(SPEC)
    assert host.busy_s() == 25.0


def test_commands_are_retyped_as_whoever_asked_would(bench: Bench) -> None:
    request = CollectRequest(seed=3, luts=Path("/srv/luts"))
    shared = bench.opening(coordinator_address="lab:7070")
    assert shared.retyped(request, "--accept-noisy") == (
        "lutbuilder collect --seed 3 --accept-noisy --coordinator lab:7070"
    )
    assert ALONE.retyped(request, "--accept-noisy") == "lutbuilder collect --seed 3 --luts /srv/luts --accept-noisy"
