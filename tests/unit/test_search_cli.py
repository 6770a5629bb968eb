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
from lutbuilder.nas.search import Progress, StateFile
from lutbuilder.nas.search.request import METHODS, ONE_LIMIT, ColumnLimit, SearchRequest, fitting, run
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


def test_amounts_are_written_as_people_read_them():
    assert values.amount_text(5.999432, "latency_ms") == "5.99943 ms"
    assert values.amount_text(5.999999, "latency_ms", digits=10) == "5.999999 ms"
    assert values.amount_text(9_992_837.0, "cycles") == "9,992,837"


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
        ("mine", "is not MODULE:NAME; write it as mine:accuracy"),
        ("mine:", "is not MODULE:NAME"),
        ("nowhere_at_all:f", "no nowhere_at_all.py in "),
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
    told = rf"searching proxyless by the costs of {lut.name}@1\n\[generation 0/5\] .*, 20 scored, best .* ms\n"
    assert (status, bool(re.fullmatch(told, err))) == (0, True)
    assert "evolution search of proxyless" in out
    assert "9 ms of latency_ms" in out
    assert len(re.findall(r"layer1\.\.layer21=k", out)) == 3


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
        {"column": "latency_ms", "max_cost": 9.0, "min_cost": None, "confidence": None},
        {"column": "energy_mj", "max_cost": 11.0, "min_cost": None, "confidence": None},
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


def test_networks_count_as_below_the_limit_only_at_the_confidence_asked_for(cli, root, tmp_path, monkeypatch):
    space = spaces.get("proxyless")
    rows = [
        replace(row(op), latency_lo_ms=0.9 * row(op).latency_ms, latency_hi_ms=1.1 * row(op).latency_ms)
        for op in space.ops()
    ]
    lut = publish(rows, example_meta(spaces=("proxyless",)), folder=tmp_path)
    compiled = compile_space(space, lut)
    by_size = (root / "examples" / "accuracy_by_size.py").read_text(encoding="utf-8")  # more arithmetic is better
    (tmp_path / "accuracy_by_size.py").write_text(by_size, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "accuracy_by_size", raising=False)
    line = f"search proxyless {lut.path} --limit 6ms --accuracy accuracy_by_size:accuracy --generations 20"

    def sure(told: dict) -> list[bool]:
        archs = np.array([arch["encoding"] for arch in told["archs"]])
        return compiled.uncertainty.surely_below(archs, 6.0, confidence=0.99).tolist()

    told = json.loads(cli(f"{line} --confidence 99% --json")[1])
    assert told["limits"][0]["confidence"] == 0.99
    assert all(sure(told))
    assert not any(sure(json.loads(cli(f"{line} --json")[1])))
    assert "6 ms of latency_ms, with 99 % confidence" in cli(f"{line} --confidence 0.99")[1]
    for confidence, says in (("0.3", "confidence is from 0.5 to below 1"), ("95", "did you mean 95%?")):
        status, out, err = cli(f"{line} --confidence {confidence}")
        assert (status, out, says in err) == (65, "", True)


def test_rows_without_an_interval_are_no_ground_for_confidence(cli, lut):
    status, _, err = cli(f"search proxyless {lut.path} --limit 9ms --accuracy mine:accuracy --confidence 0.95")
    assert status == 66
    assert "has no interval of latency_ms for 70 of the 70 ops of space 'proxyless'" in err


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
    assert (status, err.splitlines()[2:]) == (0, ["wrote 3 networks to best.json"])
    networks = read_networks(tmp_path / "best.json", spaces.get("proxyless"), batch=1)
    assert [network.group for network in networks] == ["searched"] * 3


def test_what_was_found_is_shown_even_if_it_cannot_be_saved(cli, lut, tmp_path):
    with (tmp_path / "mine.py").open("a") as mine:
        mine.write("from pathlib import Path\n")
        mine.write("def meddles(archs):\n    Path('best.json').write_text('taken')\n    return accuracy(archs)\n")
    status, out, err = cli(
        f"search proxyless {lut.path} --limit 9ms --accuracy mine:meddles --generations 2 --population 16 --json "
        "--save-networks best.json"
    )
    assert (status, len(json.loads(out)["archs"]) > 0) == (65, True)
    assert "error[bad_spec]: best.json is there already and holds something else" in err


@pytest.mark.parametrize("resumed", [True, False])
def test_a_stopped_search_says_what_is_kept_and_what_to_type(cli, lut, tmp_path, monkeypatch, resumed):
    with (tmp_path / "mine.py").open("a") as mine:
        mine.write(
            "calls = []\ndef stops(archs):\n    calls.append(1)\n    if len(calls) == 15:\n"
            "        raise KeyboardInterrupt\n    return accuracy(archs)\n"
        )
    line = f"search proxyless {lut.path} --limit 9ms --accuracy mine:stops --population 16 --generations 25 --json"
    line += " --resume state.npz" * resumed
    monkeypatch.setattr(sys, "argv", ["lutbuilder", *shlex.split(line)])
    status, out, err = cli(line)
    assert (status, json.loads(out)["error"]["code"]) == (130, "interrupted")
    if not resumed:
        assert "error[interrupted]: stopped by Ctrl-C; nothing is kept; with --resume FILE a search can go on" in err
        return
    told = re.search(r"state\.npz holds the search after generation (\d+)\. Go on: lutbuilder (.*)\n", err)
    assert told is not None
    assert int(told[1]) == StateFile(path=tmp_path / "state.npz").generation()
    assert int(told[1]) >= 10
    assert json.loads(cli(told[2])[1])["archs"] == json.loads(cli(line.replace("state", "other"))[1])["archs"]


def test_a_search_stopped_at_once_says_that_nothing_is_kept(cli, lut, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def stops(archs):\n    raise KeyboardInterrupt\n")
    monkeypatch.setattr(sys, "argv", ["lutbuilder", "search", "..."])
    status, _, err = cli(f"search proxyless {lut.path} --limit 9ms --accuracy mine:stops --resume state.npz")
    assert status == 130
    assert "nothing is kept, the first networks were not scored yet. Start again: lutbuilder search ..." in err
    assert not (tmp_path / "state.npz").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--limit 9ms --column nosuch", "has no column 'nosuch'; it has latency_ms, energy_mj, macs, params: take one, "
         "as --column latency_ms"),
        ("--limit 9 --column n_visits", "has no column 'n_visits'; it has latency_ms"),
        ("--limit 9 --column cycles", "has no cycles. It has latency_ms, energy_mj, macs, params: take one, as "
         "--column latency_ms, or collect where cycles can be measured"),
        ("--limit 9ms --also foo", "has no column 'foo'; it has latency_ms, energy_mj, macs, params: take one, as "
         "--also latency_ms=12ms"),
        ("--limit 9ms --also energy_mj", "--also 'energy_mj' is not NAME=VALUE; write it as energy_mj=30mJ"),
    ],
)  # fmt: skip  # an option and what is said of it
def test_a_column_that_is_not_there_is_answered_with_those_that_are(cli, lut, options, says):
    status, out, err = cli(f"search proxyless {lut.path} {options} --accuracy mine:accuracy")
    assert says in err
    assert (status in (64, 65, 66), out) == (True, "")


def test_a_limit_that_never_binds_is_noted(cli, lut):
    status, out, err = cli(
        f"search proxyless {lut.path} --limit 10s --accuracy mine:accuracy --generations 1 --population 8 --json"
    )
    assert status == 0
    assert "\nnote: the limit of 10000 never binds" in err
    assert json.loads(out)["notes"][0].startswith("the limit of 10000 never binds")


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (
            "--limit 12 --accuracy mine:accuracy",
            65,
            "--limit '12' is no amount of latency_ms; write it as 12ms",
        ),
        ("--limit 1us --accuracy mine:accuracy", 65, "error[infeasible]: no arch of 'proxyless'"),
        ("--limit 9ms --accuracy mine:accuracy --also latency_ms=8ms", 65, "latency_ms is limited twice"),
        ("--limit 9ms --accuracy mine", 65, "is not MODULE:NAME"),
        ("--limit 9ms --accuracy mine:accuracy --method evolve", 64, "unknown search method 'evolve'; did you mean"),
        ("--limit 9ms --accuracy mine:accuracy --bucket 1ms", 65, "buckets are of the method pareto, not of evolution"),
        ("--limit 9ms --at-least 10ms --accuracy mine:accuracy", 65, "--at-least 10ms is above --limit 9ms"),
        ("--limit 9ms --accuracy mine.py:accuracy", 65, "write it as mine:accuracy for a file mine.py"),
        ("--limit 9ms --accuracy mine:accuracy --resume mine.py/state.npz", 65, "--resume mine.py/state.npz cannot be"),
        ("--limit 9ms --accuracy mine:accuracy --resume .", 65, "--resume . is a folder; name a file in it"),
        ("--limit 9ms --accuracy mine:accuracy --save-networks mine.py/best.json", 65, "best.json cannot be written: "),
        ("--limit 9ms --accuracy mine:accuracy --save-networks mine.py", 65, "mine.py is there already; name another"),
        (
            "--limit 9ms --accuracy mine:accuracy --method bits",
            65,
            "bits searches haq, and spaces like them; 'proxyless' is searched by evolution, joint, pareto",
        ),
        ("--limit 9ms --accuracy mine:accuracy --method netadapt --population 8", 65, "netadapt has no population"),
        ("--accuracy mine:accuracy", 2, "--limit"),
        ("--limit 9ms", 2, "--accuracy"),
    ],
)
def test_bad_input_is_one_clear_line(cli, lut, options, status, says):
    code, out, err = cli(f"search proxyless {lut.path} {options}")
    assert says in err
    assert (code, out) == (status, "")
    assert "scored" not in err


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
        request_of(lut, space=spaces.get("haq"), method="bits", limits=two)
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
    assert len(outcome.archs) == 1 or method == "channels"
    assert (outcome.costs[0] <= half.max_cost).all()
    assert outcome.ended == ("limit" if method == "netadapt" else "generations")


def test_netadapt_that_does_not_reach_the_limit_offers_no_network_and_fails(cli, pruned, tmp_path):
    line = f"search amc-ladder {pruned.path} --method netadapt --limit 7ms --accuracy mine:accuracy --generations 2"
    status, out, err = cli(f"{line} --save-networks best.json")
    assert status == 1
    assert "w0" not in out
    assert re.search(r"note: no network within the limit, the last one costs \d+.* ms: the iterations ran out", err)
    assert not (tmp_path / "best.json").exists()
    told = json.loads(cli(f"{line} --json")[1])
    assert (told["ended"], told["archs"], len(told["notes"])) == ("iterations", [], 1)


def test_netadapt_gives_the_network_it_reaches_the_limit_with(cli, pruned, tmp_path):
    half = 0.5 * compile_space(spaces.get("amc-ladder"), pruned).max_over()
    line = f"search amc-ladder {pruned.path} --method netadapt --limit {half:.6f}ms --accuracy mine:accuracy --json"
    found = json.loads(cli(line)[1])
    assert [arch["costs"]["latency_ms"] <= half for arch in found["archs"]] == [True]
    assert found["generations"] > 5


def test_a_table_of_cycles_says_so_and_a_bit_search_runs_on_it(cli, tmp_path):
    space = spaces.get("haq")
    rows = [
        example_row(op, latency_ms=None, latency_lo_ms=None, latency_hi_ms=None, p90_ms=None, method="isolated",
                    cycles=int(bit_macs(op) / 1e4) + 1,
                    reason="no clock given", stop_reason=None)
        for op in space.ops()
    ]  # fmt: skip  # one row, three lines
    lut = publish(rows, example_meta(spaces=("haq",)), folder=tmp_path)
    for limit in ("9000000", "5ms"):
        status, _, err = cli(f"search haq {lut.path} --method bits --limit {limit} --accuracy mine:accuracy")
        assert status == 66
        assert "has no latency_ms. It has cycles, macs, params: take one, as --column cycles, or say how long a " in err
        assert "--clock-mhz 200" in err
    told = r"1858 ops that ran: .*, and 1853 more \(no clock given\)\. It has cycles, "
    with pytest.raises(OpNotInLut, match=told) as why:
        compile_space(space, lut)
    assert len(str(why.value)) < 500
    full = compile_space(space, lut, "cycles").max_over()
    limit = ColumnLimit(column="cycles", max_cost=0.5 * full)
    outcome = run(request_of(lut, space=space, method="bits", limits=(limit,), generations=2, population=8))
    assert (outcome.costs <= 0.5 * full).all()


@pytest.mark.parametrize("method", ["bits", "channels", "netadapt"])
def test_a_method_names_the_spaces_it_is_for_and_the_methods_of_this_one(lut, method):
    for name in ONE_LIMIT[method]:
        for variant in spaces.SPACES[name].variants:
            assert method in fitting(spaces.get(f"{name}-{variant}"))
    by_size = spaces.get("attentivenas")
    told = {"bits": "haq", "channels": "amc and netadapt", "netadapt": "amc and netadapt"}[method]
    with pytest.raises(SpecError, match=f"{method} searches {told}, and spaces like them; 'proxyless' is searched by"):
        request_of(lut, method=method)
    assert fitting(spaces.get("proxyless")) == ("evolution", "joint", "pareto")
    assert fitting(spaces.get("amc-ladder")) == ("evolution", "joint", "pareto", "channels", "netadapt")
    assert "bits" not in fitting(by_size)


def test_methods_of_one_limit_keep_it_as_it_is(pruned):
    space = spaces.get("amc-ladder")
    base = ColumnLimit(column="latency_ms", max_cost=9.0)
    for limit, says in (
        (replace(base, min_cost=1.0), "a highest cost alone"),
        (replace(base, confidence=0.9), "evolution, joint and pareto keep it at a confidence"),
    ):
        with pytest.raises(SpecError, match=says):
            request_of(pruned, space=space, method="channels", limits=(limit,))


def test_every_method_has_a_line_of_help(root):
    help_text = (root / "lutbuilder" / "cli" / "search.py").read_text(encoding="utf-8")
    assert all(method in help_text for method in METHODS)


# --- Progress


def test_lines_come_at_most_every_few_seconds_and_know_what_is_left():
    now = [0.0]
    stream = io.StringIO()
    view = SearchView(stream, clock=lambda: now[0])
    for generation in range(101):
        now[0] = generation * LINE_EVERY_S / 10
        view.update(
            Progress(generation=generation, generations=200, n_scored=100 * generation, best_score=75.5, best_cost=11.9)
        )
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[generation 0/200] 0s elapsed, 0 scored, best 75.5 at 11.9 ms"
    assert len(lines) == 11
    assert lines[-1] == "[generation 100/200] 50s elapsed, eta 50s, 10000 scored, best 75.5 at 11.9 ms"


def test_the_time_left_of_a_resumed_search_counts_its_own_generations():
    now = [0.0]
    stream = io.StringIO()
    view = SearchView(stream, clock=lambda: now[0])
    for generation, now_s in ((90, 0.0), (95, 10.0)):
        now[0] = now_s
        view.update(Progress(generation=generation, generations=100, n_scored=1, best_score=1.0, best_cost=1.0))
    assert stream.getvalue().splitlines() == [
        "[generation 90/100] 0s elapsed, 1 scored, best 1 at 1 ms",
        "[generation 95/100] 10s elapsed, eta 10s, 1 scored, best 1 at 1 ms",
    ]
