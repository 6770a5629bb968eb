"""The scripts behind the issue's figures: time and errors are counted as they say, and no session is dropped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import take_apart
from benchmarks.error_curve import Point, campaigns, curve, visit_times_s
from benchmarks.take_apart import Group, finished, groups, parts, session, with_fastest
from benchmarks.three_sessions import CommandFailed, Errors, Figures, Options, check_options, lines, run_session
from lutbuilder.campaign.plan import campaign_ops
from lutbuilder.campaign.spec import CampaignOp, CampaignSpec, Target
from lutbuilder.coordinator.store import CampaignState, RawVisit, Store
from lutbuilder.lower import lower
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError, UnknownName
from lutbuilder_agent.records import AgentHello, Fingerprint, Plan, Report, RuntimeReport, Timing
from tests.simulated_visits import log_spread, simulate
from tests.store_examples import timing
from tests.worked_example import EXAMPLE, block, conv

# --- error_curve.py

COLLECTION = CampaignSpec(
    space="example",
    target=Target(device="example-cpu", runtime="onnxruntime"),
    plan=Plan(runtime="onnxruntime"),
    env_id="0123456789abcdef",
    runtime_version="1.20.0",
    ops=campaign_ops(EXAMPLE.ops(), EXAMPLE.ops()),
    budget_s=600.0,
    precision=0.01,
    max_rounds=400,
)
ARCHS = [EXAMPLE.arch_ops(row) for row in np.ndindex(2, 2, 2)]
VALIDATION = replace(
    COLLECTION,
    purpose="validate",
    ops=(*COLLECTION.ops, *{op.op_id: op for op in map(CampaignOp.network, ARCHS)}.values()),
)
OVERHEAD_NS = 30_000.0
START_S = 1000.0


def true_ns(op: CampaignOp) -> float:
    def own(one: OpSpec) -> float:
        return 0.0 if one.kind == "identity" else 1e5 + lower(one).macs / 10

    return OVERHEAD_NS + sum(map(own, op.ops))


class Lab:
    """A store, and rounds of an additive device committed to it at chosen seconds after START_S."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.n_sessions = 0

    def session(self, at_s: float) -> str:
        self.n_sessions += 1
        session_id = f"s{self.n_sessions}"
        hello = AgentHello(
            name="me",
            agent_version="1",
            fingerprint=Fingerprint(device="example-cpu", facts=()),
            runtimes=(RuntimeReport(name="onnxruntime", version="1.20.0"),),
        )
        self.store.open_session(hello, session_id, now_s=START_S + at_s)
        return session_id

    def round(
        self,
        spec: CampaignSpec,
        session: str,
        number: int,
        at_s: float,
        *,
        noise: float = 0.0,
        instance: int | None = None,
    ) -> None:
        rng = np.random.default_rng(number)
        timings = []
        for order, place in enumerate(rng.permutation(len(spec.ops))):
            op = spec.ops[place]
            ns = round(true_ns(op) * np.exp(noise * rng.standard_normal()))
            timings.append(
                Timing(
                    op_id=op.op_id,
                    round=number,
                    order=order,
                    instance=number % 3 if instance is None else instance,
                    start_ns=round(1e9 * at_s) + 10_000_000 * order,
                    samples_ns=(ns,) * 5,
                    warmup_ns=(),
                )
            )
        report = Report(
            report_id=f"{spec.key}-{session}-{number}",
            session_id=session,
            lease_id="lease",
            lease_epoch=1,
            campaign_id=spec.key,
            round=number,
            timings=tuple(timings),
            failures=(),
            round_ns=1_000_000_000,
            timed_ns=900_000_000,
        )
        self.store.commit_report(report, now_s=START_S + at_s)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, CampaignState, CampaignState]:
    """A collection of two sessions of 10 and 6 rounds with a pause of an hour, noisy at first; and its validation."""
    store = Store.open(tmp_path_factory.mktemp("store") / "campaigns.sqlite")
    lab = Lab(store)
    store.create_campaign(COLLECTION, now_s=START_S)
    first = lab.session(0.5)
    for number in range(10):
        lab.round(COLLECTION, first, number, 10.5 + 5 * number, noise=0.1 if number < 5 else 0.0)
    second = lab.session(3600.0)
    for number in range(10, 16):
        lab.round(COLLECTION, second, number, 3602.0 + 5 * (number - 10))
    third = lab.session(4000.0)
    store.create_campaign(VALIDATION, now_s=START_S + 4000.0)
    for number in range(8):
        lab.round(VALIDATION, third, number, 4010.0 + number)
    return store, *campaigns(store, "onnxruntime", None, None)


def test_time_is_counted_from_the_start_of_each_session_and_pauses_are_left_out(
    measured: tuple[Store, CampaignState, CampaignState],
) -> None:
    store, collection, _ = measured
    visits = store.visits([collection.campaign_id])
    times_s = visit_times_s(store, collection, visits)
    by_round = {number: set(times_s[visits.round == number].tolist()) for number in range(16)}
    assert by_round[0] == {10.0}, "half a second passed before the agent registered"
    assert by_round[9] == {55.0}
    assert by_round[10] == {57.0}, "two seconds of the second session"
    assert by_round[15] == {82.0}


def test_a_curve_shows_what_was_known_at_each_moment(measured: tuple[Store, CampaignState, CampaignState]) -> None:
    early, late = curve(*measured, [0.5, 2.0])
    assert (early.rounds, late.rounds) == (5, 16)
    assert (early.minutes, early.measured_minutes) == (0.5, 0.5)
    assert late.measured_minutes == pytest.approx(82 / 60)
    for point in (early, late):
        assert point.n_networks == len(VALIDATION.ops) - len(COLLECTION.ops)
        assert point.n_ops == len(EXAMPLE.ops())
    assert (early.median_half_width, late.median_half_width is None) == (None, False), "no interval below 6 rounds"
    assert early.with_drift_model is not None
    assert late.with_drift_model is not None
    assert early.without is not None
    assert late.with_drift_model.mape.value < early.with_drift_model.mape.value
    assert early.with_drift_model.mape.value < 0.2


def test_a_moment_before_the_first_round_and_a_campaign_nobody_ran_are_refused(
    measured: tuple[Store, CampaignState, CampaignState],
) -> None:
    with pytest.raises(UnknownName, match=r"no round of .* was over after 0\.1 minutes"):
        curve(*measured, [0.1])
    with pytest.raises(UnknownName, match="no measured collect campaign of litert"):
        campaigns(measured[0], "litert", None, None)
    with pytest.raises(UnknownName, match="no measured validate campaign nobody of onnxruntime"):
        campaigns(measured[0], "onnxruntime", None, "nobody")
    assert Point.__doc__


# --- three_sessions.py

OPTIONS = Options(
    runtime="simulated", device="simulated", space="proxyless", budget="3m", runtime_option=("noise_sigma=0.02",),
    random=60, searched=20, rounds=24, lease_rounds=12, instances=3, validate_budget="30m", calibrate=16,
)  # fmt: skip  # one record, three lines
ACCURACY = {
    "n": 80,
    "mape": {"value": 0.006, "lo": 0.005, "hi": 0.007},
    "bias": {"value": -0.001, "lo": -0.002, "hi": 0.001},
    "spearman": {"value": 0.9991, "lo": 0.998, "hi": 0.9996},
    "worst": 0.021,
}


class Recorder:
    """Answers commands as `lutbuilder --json` would, and fails where it was told to."""

    def __init__(self, fail_at: str = "", *, table: str = "d/simulated-fp32-bs1") -> None:
        self.commands: list[list[str]] = []
        self.fail_at = fail_at
        self.table = table

    def __call__(self, words: Sequence[str]) -> dict[str, Any]:
        self.commands.append(list(words))
        if self.fail_at and self.fail_at in words:
            raise CommandFailed("it broke", 1)
        if words[0] == "collect":
            lut = {"name": self.table, "path": "luts/d/n/v0001.parquet"}
            return {"lut": lut, "wall_s": 178.4, "rounds": 130, "stop_reason": "budget"}
        if words[0] == "calibrate":
            return {}
        again = "--networks" in words
        tenth = {"mape": {"value": 0.004, "lo": 0.0, "hi": 0.1}}
        report = {
            **dict.fromkeys(("lut_sum", "published", "undrifted", "flops_linear_held_out"), ACCURACY),
            **dict.fromkeys(("test_retest_floor", "instance_floor", "truth_noise", "run_noise"), 0.004),
            **dict.fromkeys(("fastest", "slowest"), tenth),
            "calibrated": ACCURACY if again else None,
            "ops_alone": None,
            "networks": [{"n_instances": 6}, {"n_instances": 5}],
            "session_scale": 1.01,
            "ops_scale": 1.01,
            "published_by_ops": None,
            "wall_s": 300.0,
            "networks_sha256": "ab" * 32,
        }
        return {"report": report, "timed_before": again}


def test_a_session_collects_validates_calibrates_and_judges_by_the_networks_timed_first(tmp_path: Path) -> None:
    run = Recorder()
    found = run_session(2, OPTIONS, tmp_path, run)
    collect, validate, calibrate, judge = run.commands
    assert [words[0] for words in run.commands] == ["collect", "validate", "calibrate", "validate"]
    home = tmp_path / "session-2"
    for words in run.commands:
        assert words[words.index("--state-dir") + 1] == str(home / "state")
        assert words[words.index("--luts") + 1] == str(home / "luts")
    assert collect[collect.index("--runtime-option") + 1] == "noise_sigma=0.02"
    assert validate[validate.index("--save-networks") + 1] == judge[judge.index("--networks") + 1]
    for name in ("--seed", "--rounds", "--lease-rounds", "--instances", "--budget"):
        assert validate[validate.index(name) + 1] == judge[judge.index(name) + 1], "or the visits would not be found"
    assert validate[validate.index("--seed") + 1] == "2"
    assert calibrate[calibrate.index("--nets") + 1] == "16"
    assert (found.session, found.n_instances, found.collect_s) == (2, 5, 178.4)
    assert found.calibrated == Errors(
        mape=0.006, mape_lo=0.005, mape_hi=0.007, bias=-0.001, worst=0.021, spearman=0.9991
    )


def test_what_is_finished_is_not_run_again_and_what_failed_is(tmp_path: Path) -> None:
    broken = Recorder(fail_at="calibrate")
    with pytest.raises(CommandFailed, match="it broke"):
        run_session(1, OPTIONS, tmp_path, broken)
    rest = Recorder()
    first = run_session(1, OPTIONS, tmp_path, rest)
    assert [words[0] for words in rest.commands] == ["calibrate", "validate"]
    nothing = Recorder()
    assert run_session(1, OPTIONS, tmp_path, nothing) == first
    assert nothing.commands == []


def test_a_cache_state_is_asked_for_once_and_told_by_the_table(tmp_path: Path) -> None:
    run = Recorder(table="d/simulated-fp32-bs1-t2-cold")
    cold = run_session(1, replace(OPTIONS, cache="cold"), tmp_path / "cold", run)
    assert [words[words.index("--cache") + 1] for words in run.commands if "--cache" in words] == ["cold"]
    assert "--cache" in run.commands[0], "what follows times in the state of the table it is given"
    usual = run_session(1, OPTIONS, tmp_path / "usual", run := Recorder())
    assert not any("--cache" in words for words in run.commands)
    assert (cold.cache, usual.cache) == ("cold", "rotating")
    told = next(line for line in lines([cold], OPTIONS) if line.startswith("cache"))
    assert told.split() == ["cache", "cold"]


def test_calibration_may_be_left_out(tmp_path: Path) -> None:
    run = Recorder()
    assert run_session(1, replace(OPTIONS, calibrate=0), tmp_path, run).calibrated is None
    assert [words[0] for words in run.commands] == ["collect", "validate"]


def test_a_calibrated_table_judged_by_other_networks_is_no_figure(tmp_path: Path) -> None:
    def run(words: Sequence[str]) -> dict[str, Any]:
        answer = Recorder()(words)
        return {**answer, "timed_before": False} if "--networks" in words else answer

    with pytest.raises(CommandFailed, match="not judged by the networks timed in step 2"):
        run_session(1, OPTIONS, tmp_path, run)


def test_a_folder_belongs_to_one_set_of_options(tmp_path: Path) -> None:
    check_options(OPTIONS, tmp_path)
    check_options(OPTIONS, tmp_path)
    with pytest.raises(CommandFailed, match=r"rounds 24, now 48\); choose another --folder") as refused:
        check_options(replace(OPTIONS, rounds=48), tmp_path)
    assert refused.value.status == 65
    stored = json.loads((tmp_path / "options.json").read_text())
    assert stored["rounds"] == 24
    with pytest.raises(CommandFailed, match=r"cache None, now 'cold'\)"):
        check_options(replace(OPTIONS, cache="cold"), tmp_path)
    del stored["cache"]
    (tmp_path / "options.json").write_text(json.dumps(stored))
    check_options(OPTIONS, tmp_path)  # begun before there was that option


def test_the_table_has_a_column_for_every_session_and_the_goals(tmp_path: Path) -> None:
    figures: list[Figures] = [run_session(number, OPTIONS, tmp_path, Recorder()) for number in (1, 2, 3)]
    shown = lines(figures, OPTIONS)
    assert all(f"session {number}" in shown[1] for number in (1, 2, 3))
    (pooled,) = [line for line in shown if line.startswith("this session's op visits pooled in: MAPE")]
    assert pooled.count("0.60 (0.50-0.70) %") == 3
    assert "<= 0.70 %" in pooled
    (excess,) = [line for line in shown if line.startswith("excess")]
    assert excess.count("1.50") == 3
    without = lines([replace(one, calibrated=None) for one in figures], OPTIONS)
    assert not any("calibrated" in line for line in without)


# --- take_apart.py

CHOICES = product((16, 24), (3, 5, 7), ((), (3,), (5,), (7,)))
CHAINS = [(conv(3, w), block(w, k, 2), *(block(32, more, 1) for more in last)) for w, k, last in CHOICES]
SHUFFLED = [CHAINS[place] for place in np.random.default_rng(7).permutation(len(CHAINS))]
CARRIERS = [CampaignOp.carrier(ops) for ops in SHUFFLED[:6]]
CALIBRATION, JUDGED = ([CampaignOp.network(ops) for ops in some] for some in (SHUFFLED[6:12], SHUFFLED[12:]))
CHAIN_OPS = list(dict.fromkeys(op for ops in CHAINS for op in ops))
COLD = replace(
    COLLECTION,
    target=Target(device="example-cpu", runtime="onnxruntime", cache="cold"),
    ops=(*campaign_ops(CHAIN_OPS, CHAIN_OPS), *CARRIERS),
)
JUDGES = replace(COLD, purpose="validate", ops=(*COLD.ops, *JUDGED))
HELD = (block(24, 7, 2).label(), block(32, 7, 1).op_id)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session's folder of an additive device, whose table was published 2 % high."""
    home = tmp_path_factory.mktemp("three") / "session-1"
    with Store.open(home / "state" / "campaigns.sqlite") as store:
        lab = Lab(store)
        for spec, rounds in (
            (COLD, 9),
            (JUDGES, 6),
            (replace(COLD, purpose="calibrate", ops=(*COLD.ops[: -len(CARRIERS)], *CALIBRATION)), 6),
        ):
            store.create_campaign(spec, now_s=START_S)
            here = lab.session(0.0)
            for number in range(rounds):
                lab.round(spec, here, number, 1.0 + 5 * number, noise=0.002, instance=number)
    networks = [
        {"op_id": net.op_id, "measured_ms": true_ns(net) / 1e6, "published_ms": 1.02 * true_ns(net) / 1e6}
        for net in JUDGED
    ]
    calibrated = {"mape": {"value": 0.003}, "bias": {"value": 0.001}}
    (home / "validate.json").write_text(json.dumps({"report": {"networks": networks}}))
    (home / "calibrated.json").write_text(json.dumps({"report": {"calibrated": calibrated}}))
    return home


def test_a_session_is_taken_apart_from_what_it_left_and_nothing_is_written_there(taken: Path) -> None:
    before = {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()}
    found = session(taken, pair=HELD, draws=2)
    assert {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()} == before
    assert found.mape == pytest.approx(0.02)
    assert found.parts.bias == pytest.approx(np.log(1.02) ** 2), "all of the error is bias"
    assert found.parts.mean_square == pytest.approx(found.parts.bias)
    assert 0.0 < found.parts.chance < 0.002**2, "a network has the noise of many ops, and 9 preparations"
    assert found.again.mape < 0.005, "made again it is not 2 % high"
    assert found.by_fastest == found.again, "all calls of a visit of this device take as long"
    assert found.calibrations is not None
    assert found.calibrations.published == (0.003, 0.001)
    for mape, _ in (found.calibrations.again, found.calibrations.without_ends):
        assert mape < 0.01
    assert found.calibrations.again != found.calibrations.without_ends
    assert [group.holds for group in found.groups] == ["A and B", "A alone", "B alone", "neither"]
    assert sum(group.n for group in found.groups) == len(JUDGED)
    assert "noise of the truth" in take_apart.lines([found])[1]


def test_the_fastest_undisturbed_call_counts_of_an_op_and_not_of_a_whole_network() -> None:
    visits = simulate(log_spread(2), rounds=1, seed=0, instances=1).visits
    ops = (CampaignOp.of(ARCHS[0][0]), CARRIERS[0])
    calls = {"samples_ns": (90, 40, 50, 60, 70), "preempted": (1,)}
    made = [replace(timing(number, **calls), op_id=op.op_id) for number, op in enumerate(ops)]
    raw = [RawVisit(campaign_id="c", session_id="s", timing=one) for one in made]
    assert with_fastest(visits, ops, raw).block_ns.tolist() == [50.0, visits.block_ns[1]]


def test_the_parts_of_an_error_are_told_apart_and_add_up() -> None:
    rng = np.random.default_rng(1)
    pattern, noise = 0.01 * rng.standard_normal(4000), 0.02 * rng.standard_normal((4000, 3))
    by_lease = 0.005 + pattern[:, None] + noise + [0.03, -0.03, 0.0]  # a lease has a level of its own
    found = parts(by_lease.mean(axis=1), by_lease, 1e-5)
    assert found.truth == pytest.approx(0.02**2 / 3, rel=0.1)
    assert found.rest == pytest.approx(0.01**2 - 1e-5, rel=0.1)
    assert found.truth is not None
    assert found.mean_square == pytest.approx(found.bias + found.truth + found.chance + found.rest)
    one = parts(by_lease[:, 0], by_lease[:, :1], 0.0)
    assert one.truth is None, "one lease says nothing of what leases differ by"


def test_networks_are_grouped_by_which_of_two_ops_they_hold() -> None:
    networks = [CampaignOp.network(ops) for ops in ARCHS]
    small, large = ARCHS[0][1], ARCHS[-1][2]
    more = np.array([0.1 * (small in ops) + 0.01 * (large in ops) for ops in ARCHS])
    found = groups((small.op_id, large.label()), networks, more)
    assert found == (
        Group(holds="A and B", n=0, more=None),
        Group(holds="A alone", n=2, more=pytest.approx(0.1)),
        Group(holds="B alone", n=2, more=pytest.approx(0.01)),
        Group(holds="neither", n=4, more=0.0),
    )
    with pytest.raises(SpecError, match="no op of the networks is nobody: --pair"):
        groups((small.op_id, "nobody"), networks, more)


def test_sessions_that_are_not_finished_are_named_and_left_out(
    taken: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (taken.parent / "session-10").mkdir()
    assert finished(taken.parent) == [taken]
    assert "session-10 is not finished; left out" in capsys.readouterr().err
    with pytest.raises(UnknownName, match="no finished session of three_sessions"):
        finished(tmp_path)
