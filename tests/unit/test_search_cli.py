"""`lutbuilder search` and the request behind it: from words to a search, and from a search to words."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.cli import values
from lutbuilder.cli.main import app
from lutbuilder.cli.search import LINE_EVERY_S, SearchView, load_accuracy
from lutbuilder.lower import lower
from lutbuilder.lut import Lut, Row, publish
from lutbuilder.nas.compiled import compile_space
from lutbuilder.nas.search import Progress
from lutbuilder.nas.search.request import METHODS, ColumnLimit, SearchRequest, run
from lutbuilder.networks import read_networks
from lutbuilder_agent.errors import Infeasible, OpNotInLut, SpecError, UnknownName
from tests.lut_examples import example_meta, example_row
from tests.search_spaces import bit_macs, more_is_better


def row(op) -> Row:
    return example_row(
        op, latency_ms=0.02 + lower(op).macs / 4e7, latency_lo_ms=None, latency_hi_ms=None, p90_ms=None,
        call_overhead_ms=0.01, energy_mj=0.1 + lower(op).params / 1e6, method="isolated",
    )  # fmt: skip  # one row, three lines


@pytest.fixture(scope="module")
def lut(tmp_path_factory) -> Lut:
    """Latency by MACs and energy by parameters of every op of ProxylessNAS."""
    rows = [row(op) for op in spaces.get("proxyless").ops()]
    return publish(rows, example_meta(spaces=("proxyless",)), folder=tmp_path_factory.mktemp("luts"))


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Return a function that runs a command line in a folder with mine.py and gives (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def accuracy(archs):\n    return 50.0 + archs.astype(float).mean(axis=1)\n"
        "class Held:\n    @staticmethod\n    def inside(archs):\n        return archs[:, 0].astype(float)\n"
        "number = 3\n"
    )
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def go(line: str):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app(shlex.split(line), prog_name="lutbuilder")
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return go


# --- What people type


@pytest.mark.parametrize(
    ("text", "column", "amount"),
    [
        ("12ms", "latency_ms", 12),
        ("900us", "latency_ms", 0.9),
        ("900µs", "p90_ms", 0.9),
        (" 1.5 MS ", "latency_ms", 1.5),
        ("2s", "latency_ms", 2000),
        ("500ns", "latency_hi_ms", 0.0005),
        ("30mJ", "energy_mj", 30),
        ("0.5J", "energy_mj", 500),
        ("1200000", "cycles", 1_200_000),
    ],
)
def test_amounts_are_read_in_the_unit_of_their_column(text, column, amount):
    assert values.amount(text, option="--limit", column=column) == pytest.approx(amount)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        *((text, "latency_ms") for text in ("12", "12mJ", "ms", "-3ms", "1e3ms", "nanms", "", "1.2.3ms")),
        ("12ms", "cycles"),
        ("30ms", "energy_mj"),
    ],
)
def test_what_is_no_amount_is_answered_with_how_to_write_one(text, column):
    with pytest.raises(SpecError, match=rf"--limit .* is no amount of {column}; write it as"):
        values.amount(text, option="--limit", column=column)


def test_an_accuracy_function_is_found_where_it_is_named(cli):
    assert load_accuracy("mine:accuracy")(np.full((2, 3), 4)).tolist() == [54.0, 54.0]
    assert load_accuracy("mine:Held.inside")(np.full((2, 3), 4)).tolist() == [4.0, 4.0]
    assert load_accuracy("tests.search_spaces:more_is_better") is more_is_better


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mine", "is not MODULE:FUNCTION; write it as mine:accuracy"),
        ("mine:", "is not MODULE:FUNCTION"),
        ("nowhere_at_all:f", "importing nowhere_at_all raised ModuleNotFoundError"),
        ("broken:f", "importing broken raised ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("mine:accurcy", "has no attribute 'accurcy'"),
        ("mine:number", "is no function but 3"),
    ],
)
def test_what_is_no_accuracy_function_is_answered_with_why(cli, text, says):
    with pytest.raises(SpecError, match=re.escape(says)):
        load_accuracy(text)


# --- The command


def test_a_search_shows_its_best_networks_and_keeps_the_limit(cli, lut):
    status, out, err = cli(
        f"search proxyless {lut.path} --limit 9ms --accuracy mine:accuracy --generations 5 --population 20 --top 3"
    )
    assert (status, err) == (0, "")
    assert "evolution search of proxyless" in out
    assert "9 ms of latency_ms" in out
    assert len(re.findall(r"layer1=k", out)) == 3


def test_json_holds_everything_and_the_seed_fixes_it(cli, lut):
    line = (
        f"search proxyless {lut.path} --limit 9000us --also energy_mj=11mJ --accuracy mine:accuracy --generations 4 "
        "--population 16 --seed 5 --json"
    )
    one, again, other = (json.loads(cli(text)[1]) for text in (line, line, line.replace("--seed 5", "--seed 6")))
    del one["wall_s"], again["wall_s"]
    assert one == again
    assert one["archs"] != other["archs"]
    assert one["limits"] == [
        {"column": "latency_ms", "max_cost": 9.0, "min_cost": None},
        {"column": "energy_mj", "max_cost": 11.0, "min_cost": None},
    ]
    space = spaces.get("proxyless")
    for found in one["archs"]:
        encoding = np.array(found["encoding"])[None]
        for column, most in (("latency_ms", 9.0), ("energy_mj", 11.0)):
            cost = compile_space(space, lut, column).predict(encoding)[0]
            assert found["costs"][column] == pytest.approx(cost)
            assert cost <= most
        assert (space.encode(found["arch"]) == encoding[0]).all()
    assert one["n_scored"] == 16 + 4 * 16


def test_a_search_is_resumed_from_its_file(cli, lut, tmp_path):
    line = f"search proxyless {lut.path} --limit 9ms --accuracy mine:accuracy --population 16 --json"
    whole = json.loads(cli(f"{line} --generations 25")[1])
    assert cli(f"{line} --generations 12 --resume state.npz")[0] == 0
    resumed = json.loads(cli(f"{line} --generations 25 --resume state.npz")[1])
    assert (tmp_path / "state.npz").exists()
    assert resumed["archs"] == whole["archs"]
    status, out, err = cli(f"{line} --generations 25 --resume state.npz --seed 2")
    assert (status, json.loads(out)["error"]["code"]) == (65, "bad_spec")
    assert "is the state of another search: its seed is 1, this one's 2" in err


@pytest.mark.parametrize("method", ["evolution", "joint", "pareto"])
def test_every_method_for_any_space_runs(cli, lut, method):
    status, out, _ = cli(
        f"search proxyless {lut.path} --method {method} --limit 9ms --at-least 6ms --accuracy mine:accuracy "
        "--generations 2 --population 16 --json"
    )
    found = json.loads(out)
    assert status == 0
    assert all(6.0 <= arch["costs"]["latency_ms"] <= 9.0 for arch in found["archs"])
    if method == "pareto":
        costs = [arch["costs"]["latency_ms"] for arch in found["archs"]]
        assert len(costs) > 3
        assert costs == sorted(costs)


def test_what_was_found_becomes_a_list_of_networks_to_validate(cli, lut, tmp_path):
    status, _, err = cli(
        f"search proxyless {lut.path} --limit 9ms --accuracy mine:accuracy --generations 2 --population 16 --top 3 "
        "--save-networks best.json"
    )
    assert (status, err) == (0, "wrote 3 networks to best.json\n")
    networks = read_networks(tmp_path / "best.json", spaces.get("proxyless"), batch=1)
    assert [network.group for network in networks] == ["searched"] * 3


def test_a_limit_that_never_binds_is_noted(cli, lut):
    status, out, err = cli(
        f"search proxyless {lut.path} --limit 10s --accuracy mine:accuracy --generations 1 --population 8 --json"
    )
    assert status == 0
    assert err.startswith("note: the limit of 10000 never binds")
    assert json.loads(out)["notes"][0].startswith("the limit of 10000 never binds")


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (
            "--limit 12 --accuracy mine:accuracy",
            65,
            "--limit '12' is no amount of latency_ms; write it as 12ms or 900us",
        ),
        ("--limit 1us --accuracy mine:accuracy", 65, "error[infeasible]: no arch of 'proxyless'"),
        ("--limit 9ms --accuracy mine", 65, "is not MODULE:FUNCTION"),
        ("--limit 9ms --accuracy mine:accuracy --method evolve", 64, "unknown search method 'evolve'; did you mean"),
        ("--limit 9ms --accuracy mine:accuracy --bucket 1ms", 65, "buckets are of the method pareto, not of evolution"),
        ("--limit 9ms --accuracy mine:accuracy --also energy_mj", 65, "--also 'energy_mj' is not NAME=VALUE"),
        ("--limit 9ms --accuracy mine:accuracy --column nonsense_ms", 64, "no numeric column 'nonsense_ms'"),
        ("--limit 9ms --accuracy mine:accuracy --method bits", 65, "'layer1' of 'proxyless' is no bit width"),
        ("--limit 9ms --accuracy mine:accuracy --method netadapt --population 8", 65, "netadapt has no population"),
        ("--limit 9ms --accuracy mine:accuracy --method channels --at-least 3ms", 65, "a highest cost alone"),
        ("--accuracy mine:accuracy", 2, "--limit"),
        ("--limit 9ms", 2, "--accuracy"),
    ],
)
def test_bad_input_is_one_clear_line(cli, lut, options, status, says):
    code, out, err = cli(f"search proxyless {lut.path} {options}")
    assert says in err
    assert (code, out) == (status, "")


def test_the_example_accuracy_searches(cli, lut, root, monkeypatch):
    monkeypatch.chdir(root / "examples")
    monkeypatch.delitem(sys.modules, "accuracy_by_size", raising=False)
    status, out, _ = cli(
        f"search proxyless {lut.path} --limit 6ms --accuracy accuracy_by_size:accuracy --generations 20 --json"
    )
    found = json.loads(out)["archs"]
    assert status == 0
    assert 5.5 < found[0]["costs"]["latency_ms"] <= 6.0  # more arithmetic is better: the budget is used
    assert found[0]["score"] > 70


# --- The request


def request_of(lut: Lut, **changes) -> SearchRequest:
    limit = ColumnLimit(column="latency_ms", max_cost=9.0)
    made = {
        "space": spaces.get("proxyless"),
        "lut": lut,
        "accuracy": more_is_better,
        "limits": (limit,),
        "generations": 1,
    }
    return SearchRequest(**{**made, **changes})


def test_an_op_that_the_table_lacks_is_named(lut):
    with pytest.raises(OpNotInLut, match=r"ops of space 'proxyless-w1\.3' are not in"):
        run(request_of(lut, space=spaces.get("proxyless-w1.3")))


def test_unknown_methods_and_limits_no_method_keeps_are_refused(lut):
    with pytest.raises(UnknownName, match="known: evolution, joint, pareto, bits, channels, netadapt"):
        request_of(lut, method="random")
    two = (ColumnLimit(column="latency_ms", max_cost=9.0), ColumnLimit(column="energy_mj", max_cost=9.0))
    with pytest.raises(SpecError, match="bits keeps one limit"):
        request_of(lut, method="bits", limits=two)
    with pytest.raises(Infeasible):
        run(request_of(lut, limits=(ColumnLimit(column="latency_ms", max_cost=0.1),)))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> Lut:
    """Latency by MACs of every op of the AMC space on its ladder of widths."""
    rows = [row(op) for op in spaces.get("amc-ladder").ops()]
    return publish(rows, example_meta(spaces=("amc-ladder",)), folder=tmp_path_factory.mktemp("luts"))


@pytest.mark.parametrize("method", ["channels", "netadapt"])
def test_pruning_methods_end_within_half_the_latency(pruned, method):
    space = spaces.get("amc-ladder")
    half = ColumnLimit(column="latency_ms", max_cost=0.5 * compile_space(space, pruned).max_over())
    base = request_of(pruned, space=space, method=method, limits=(half,), generations=None)
    outcome = run(base if method == "netadapt" else replace(base, generations=3, population=16))
    kept = outcome.costs[0] <= half.max_cost
    assert kept[-1]
    assert outcome.ended == ("limit" if method == "netadapt" else "generations")
    assert method == "netadapt" or kept.all()


def test_netadapt_that_does_not_reach_the_limit_says_so_and_fails(cli, pruned, monkeypatch):
    line = f"search amc-ladder {pruned.path} --method netadapt --limit 7ms --accuracy mine:accuracy --generations 2"
    status, out, _ = cli(line)
    assert status == 1
    assert "NOT within the limit: the iterations ran out" in out
    assert json.loads(cli(f"{line} --json")[1])["ended"] == "iterations"


def test_a_bit_search_runs_on_cycles(tmp_path):
    space = spaces.get("haq")
    rows = [
        example_row(op, latency_ms=None, latency_lo_ms=None, latency_hi_ms=None, p90_ms=None, method="isolated",
                    cycles=int(bit_macs(op) / 1e4) + 1,
                    reason="no clock given", stop_reason=None)
        for op in space.ops()
    ]  # fmt: skip  # one row, three lines
    lut = publish(rows, example_meta(spaces=("haq",)), folder=tmp_path)
    full = compile_space(space, lut, "cycles").max_over()
    limit = ColumnLimit(column="cycles", max_cost=0.5 * full)
    outcome = run(request_of(lut, space=space, method="bits", limits=(limit,), generations=2, population=8))
    assert (outcome.costs <= 0.5 * full).all()


def test_every_method_has_a_line_of_help(root):
    help_text = (root / "lutbuilder" / "cli" / "search.py").read_text(encoding="utf-8")
    assert all(method in help_text for method in METHODS)


# --- Progress


def test_lines_come_at_most_every_few_seconds_and_know_what_is_left():
    now = [0.0]
    stream = io.StringIO()
    view = SearchView(stream, unit=" ms", clock=lambda: now[0])
    for generation in range(101):
        now[0] = generation * LINE_EVERY_S / 10
        view.update(
            Progress(generation=generation, generations=200, n_scored=100 * generation, best_score=75.5, best_cost=11.9)
        )
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1] == "[generation 100/200] 50s elapsed, eta 50s, 10000 scored, best 75.5 at 11.9 ms"


def test_the_time_left_of_a_resumed_search_counts_its_own_generations():
    now = [0.0]
    stream = io.StringIO()
    view = SearchView(stream, clock=lambda: now[0])
    for generation, now_s in ((90, 0.0), (95, 10.0)):
        now[0] = now_s
        view.update(Progress(generation=generation, generations=100, n_scored=1, best_score=1.0, best_cost=1.0))
    assert stream.getvalue() == "[generation 95/100] 10s elapsed, eta 10s, 1 scored, best 1 at 1\n"
