"""The figures of three separate sessions on this machine: collected, validated, calibrated; all reported, none chosen.

    python benchmarks/three_sessions.py onnxruntime --folder three-sessions/onnxruntime
    python benchmarks/three_sessions.py litert --folder three-sessions/litert --rounds 48 --lease-rounds 16
    python benchmarks/three_sessions.py onnxruntime --cache cold --folder three-sessions/onnxruntime-cold
    python benchmarks/three_sessions.py simulated --folder three-sessions/simulated --runtime-option noise_sigma=0.02

Each session begins with nothing: a state folder, a luts folder and agent processes of its own. It

1. collects the space (`collect --budget 3m`, with `--cache` if that is given);
2. validates that table (`validate`, 60 random and 20 searched networks, another seed in every session);
3. calibrates it with 16 other networks (`calibrate`);
4. judges the calibrated table by the networks of step 2: the same list and the visits of step 2, nothing is timed.

Steps 2 to 4 time in the cache state the table speaks for; each session's figures say which that was.
Every command's JSON is kept in FOLDER/session-N. Stopped at any moment, the same command goes on where it was; what is
finished is never run again, whatever came out. `figures.json` there holds all sessions, and a table is printed;
`readme_rows.py FOLDER...` makes the README's table of several folders.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from lutbuilder.campaign.spec import Target
from lutbuilder_agent.records import Cache

_COMMAND = (sys.executable, "-c", "from lutbuilder.cli.main import main; main()")
_DEFAULT_CACHE = Target(device="", runtime="").cache  # which a table's name leaves out
_CALIBRATION_SEEDS = 1000  # away from the seeds of the validations
Run = Callable[[Sequence[str]], dict[str, Any]]  # a command line of lutbuilder -> what it printed as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What all sessions have in common; another value is another set of sessions, in another folder."""

    runtime: str
    device: str
    space: str
    budget: str
    runtime_option: tuple[str, ...]
    random: int
    searched: int
    rounds: int
    lease_rounds: int
    instances: int
    validate_budget: str
    calibrate: int
    cache: str | None = None  # None: the engine's default


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """One table against one session's networks; fractions, the MAPE with its 95 % interval."""

    mape: float
    mape_lo: float
    mape_hi: float
    bias: float
    worst: float
    spearman: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One session; fractions and seconds."""

    session: int
    seed: int
    cache: str  # what the table speaks for
    collect_s: float
    collect_rounds: int
    stop_reason: str | None
    n_networks: int
    n_instances: int  # of the network with the fewest
    session_scale: float | None
    ops_scale: float | None
    published_by_ops: Errors | None  # the table as published, at the scale told by ops instead of carriers
    published: Errors | None  # the table as published
    pooled: Errors | None  # with the validation's op visits pooled in
    ops_alone: Errors | None  # as published, without its in-situ rows
    calibrated: Errors | None  # as published, calibrated rows
    undrifted: Errors | None  # medians of the validation's visits
    macs_held_out: Errors | None  # baseline
    fastest_mape: float  # of the pooled table, in the fastest and in the slowest tenth of the networks
    slowest_mape: float
    test_retest_floor: float | None
    instance_floor: float | None
    truth_noise: float | None
    run_noise: float | None
    validate_s: float
    networks_sha256: str


def main() -> None:
    """Run what is missing, print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", help="onnxruntime, litert, torch, or simulated")
    parser.add_argument("--folder", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--first", type=int, default=1, help="number and seed of the first: other networks than before")
    parser.add_argument("--device", help="[default: cpu, or simulated for that runtime]")
    parser.add_argument("--space", default="proxyless")
    parser.add_argument("--budget", default="3m", help="of a collection")
    parser.add_argument("--cache", choices=get_args(Cache), help="[default: the engine's]")
    parser.add_argument("--runtime-option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--random", type=int, default=60)
    parser.add_argument("--searched", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=24, help="of a validation")
    parser.add_argument("--lease-rounds", type=int, default=0, help="of a validation: prepare anew after so many")
    parser.add_argument("--instances", type=int, default=3, help="of a validation, in each lease")
    parser.add_argument("--validate-budget", default="30m")
    parser.add_argument("--calibrate", type=int, default=16, help="networks to calibrate with; 0: leave it out")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    given = {field.name: getattr(chosen, field.name) for field in fields(Options)}
    given["device"] = chosen.device or ("simulated" if chosen.runtime == "simulated" else "cpu")
    options = Options(**{**given, "runtime_option": tuple(chosen.runtime_option)})
    try:
        check_options(options, chosen.folder)
        numbers = range(chosen.first, chosen.first + chosen.sessions)
        figures = [run_session(number, options, chosen.folder, lutbuilder) for number in numbers]
    except CommandFailed as failed:
        parser.exit(failed.status, f"{failed}\n")
    body = {"options": asdict(options), "sessions": [asdict(session) for session in figures]}
    write_json(chosen.folder / "figures.json", body)
    print(json.dumps(body) if chosen.json else "\n".join(lines(figures, options)))


class CommandFailed(Exception):
    """A command ended with an error, or the folder belongs to sessions with other options."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def lutbuilder(words: Sequence[str]) -> dict[str, Any]:
    """Run one command and return its JSON; what it says meanwhile goes to this process's stderr."""
    done = subprocess.run([*_COMMAND, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise CommandFailed(f"`lutbuilder {' '.join(words)}` failed; repeat to go on from here", done.returncode)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def check_options(options: Options, folder: Path) -> None:
    """Raise CommandFailed if the folder was begun with other options: figures of both would stand in one table."""
    path, wanted = folder / "options.json", json.loads(json.dumps(asdict(options)))
    if not path.exists():
        write_json(path, wanted)
        return
    found = json.loads(path.read_text())  # begun before there was an option: it had the default
    if changed := [name for name in wanted if found.get(name) != wanted[name]]:
        told = ", ".join(f"{name} {found.get(name)!r}, now {wanted[name]!r}" for name in changed)
        raise CommandFailed(f"{folder} was begun with other options ({told}); choose another --folder", 65)


def run_session(number: int, options: Options, folder: Path, run: Run) -> Figures:
    """Run the steps of a session that have no file yet, and return its figures."""
    home = folder / f"session-{number}"
    networks = home / "networks.json"
    common = ("--state-dir", str(home / "state"), "--luts", str(home / "luts"), "--json")

    def step(name: str, *words: str) -> dict[str, Any]:
        path = home / f"{name}.json"
        if not path.exists():
            print(f"session {number}: {name}", file=sys.stderr, flush=True)
            write_json(path, run((*words, *common)))
        answer: dict[str, Any] = json.loads(path.read_text())
        return answer

    each = [word for option in options.runtime_option for word in ("--runtime-option", option)]
    each += ["--cache", options.cache] if options.cache else []
    collected = step(
        "collect", "collect", "--device", options.device, "--runtime", options.runtime, "--space", options.space,
        "--budget", options.budget, "--seed", str(number), *each,
    )  # fmt: skip  # a command line reads as a line
    table = str(Path(collected["lut"]["path"]).parent)
    timing = (
        "--rounds", str(options.rounds), "--lease-rounds", str(options.lease_rounds), "--instances",
        str(options.instances), "--budget", options.validate_budget, "--seed", str(number),
    )  # fmt: skip  # a command line reads as a line
    validated = step(
        "validate", "validate", table, "--random", str(options.random), "--searched", str(options.searched),
        "--save-networks", str(networks), *timing,
    )  # fmt: skip  # a command line reads as a line
    report, calibrated = validated["report"], None
    if options.calibrate:
        seed = str(_CALIBRATION_SEEDS + number)
        step("calibrate", "calibrate", table, "--nets", str(options.calibrate), "--seed", seed)
        judged = step("calibrated", "validate", table, "--networks", str(networks), *timing)
        if judged["report"]["networks_sha256"] != report["networks_sha256"] or not judged["timed_before"]:
            raise CommandFailed(f"{home}: the calibrated table was not judged by the networks timed in step 2", 70)
        calibrated = judged["report"]["calibrated"]
    return Figures(
        session=number,
        seed=number,
        cache=cache_state(collected["lut"]["name"]),
        collect_s=collected["wall_s"],
        collect_rounds=collected["rounds"],
        stop_reason=collected["stop_reason"],
        n_networks=report["lut_sum"]["n"],
        n_instances=min(network["n_instances"] for network in report["networks"]),
        session_scale=report["session_scale"],
        ops_scale=report.get("ops_scale"),
        published_by_ops=_errors(report.get("published_by_ops")),
        published=_errors(report["published"]),
        pooled=_errors(report["lut_sum"]),
        ops_alone=_errors(report.get("ops_alone")),
        calibrated=_errors(calibrated),
        undrifted=_errors(report["undrifted"]),
        macs_held_out=_errors(report["flops_linear_held_out"]),
        fastest_mape=report["fastest"]["mape"]["value"],
        slowest_mape=report["slowest"]["mape"]["value"],
        test_retest_floor=report["test_retest_floor"],
        instance_floor=report["instance_floor"],
        truth_noise=report["truth_noise"],
        run_noise=report["run_noise"],
        validate_s=report["wall_s"],
        networks_sha256=report["networks_sha256"],
    )


def cache_state(table: str) -> str:
    """Return the cache state that a table speaks for, by its name; see Target.lut_name."""
    last = table.rpartition("-")[2]
    return last if last in get_args(Cache) else _DEFAULT_CACHE


def lines(figures: Sequence[Figures], options: Options) -> list[str]:
    """Return the table: a row a figure, a column a session, and the goal."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    def mape(found: Errors | None) -> str:
        return (
            "-" if found is None else f"{100 * found.mape:.2f} ({100 * found.mape_lo:.2f}-{100 * found.mape_hi:.2f}) %"
        )

    def ratio(figure: Figures, noise: float | None) -> str:
        return "-" if not noise or figure.pooled is None else f"{figure.pooled.mape / noise:.2f}"

    rows: list[tuple[str, str, list[str]]] = [
        ("cache", "", [f.cache for f in figures]),
        ("collection", "<= 180 s", [f"{f.collect_s:.0f} s, {f.collect_rounds} rounds" for f in figures]),
        ("held-out networks, instances of each", "80, >= 3", [f"{f.n_networks}, {f.n_instances}" for f in figures]),
    ]
    tables = (
        ("table as published", "0.70 %", [f.published for f in figures]),
        ("this session's op visits pooled in", "0.70 %", [f.pooled for f in figures]),
        ("table as published, scale told by ops", "", [f.published_by_ops for f in figures]),
        ("table as published, ops as timed alone", "", [f.ops_alone for f in figures]),
        (f"calibrated with {options.calibrate} networks", "0.50 %", [f.calibrated for f in figures]),
        ("medians, no drift model", "", [f.undrifted for f in figures]),
        ("baseline: MACs, held out", "", [f.macs_held_out for f in figures]),
    )
    for name, goal, found in tables:
        if not any(found):
            continue
        rows.append((f"{name}: MAPE", goal and f"<= {goal}", [mape(errors) for errors in found]))
        rows.append(("  bias", "", ["-" if errors is None else percent(errors.bias) for errors in found]))
        worst = ["-" if errors is None else percent(errors.worst) for errors in found]
        rows.append(("  worst network", goal and "<= 3 %", worst))
        spearman = ["-" if errors is None else f"{errors.spearman:.4f}" for errors in found]
        rows.append(("  Spearman", goal and ">= 0.998", spearman))
    rows += [
        ("fastest, slowest tenth (pooled)", "",
         [f"{percent(f.fastest_mape)}, {percent(f.slowest_mape)}" for f in figures]),
        ("excess: pooled MAPE / noise of the truth", "<= 1.5", [ratio(f, f.truth_noise) for f in figures]),
        ("  / noise of one preparation", "", [ratio(f, f.run_noise) for f in figures]),
        ("noise of the truth, of one preparation", "",
         [f"{percent(f.truth_noise)}, {percent(f.run_noise)}" for f in figures]),
        ("test-retest of a network", "", [percent(f.test_retest_floor) for f in figures]),
        ("sd between instances of a network", "", [percent(f.instance_floor) for f in figures]),
        ("session's scale", "", ["-" if f.session_scale is None else f"{f.session_scale:.4f}" for f in figures]),
        ("  told by ops", "", ["-" if f.ops_scale is None else f"{f.ops_scale:.4f}" for f in figures]),
        ("validation", "", [f"{f.validate_s:.0f} s" for f in figures]),
    ]  # fmt: skip  # a row of the table reads as a row
    heads = [f"session {f.session}" for f in figures]
    wide = max(len(cell) for cell in (*heads, *(cell for _, _, cells in rows for cell in cells)))
    first = max(len(name) for name, _, _ in rows)
    shown = [("", "goal", heads), *rows]
    title = f"{options.runtime}, {options.space}: every session that was begun, in order"
    return [title, *(f"{n:<{first}}  {g:>9}  " + "  ".join(f"{c:>{wide}}" for c in cells) for n, g, cells in shown)]


def write_json(path: Path, value: object) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(value, indent=1) + "\n")
    scratch.replace(path)


def _errors(found: dict[str, Any] | None) -> Errors | None:
    """Return what is kept of an Accuracy as JSON."""
    if found is None:
        return None
    return Errors(
        mape=found["mape"]["value"],
        mape_lo=found["mape"]["lo"],
        mape_hi=found["mape"]["hi"],
        bias=found["bias"]["value"],
        worst=found["worst"],
        spearman=found["spearman"]["value"],
    )


if __name__ == "__main__":
    main()
