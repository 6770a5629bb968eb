"""Our evolutionary loop beside pymoo's, the library it might have been: time, networks asked about, the best found.

    python benchmarks/bench_pymoo.py [--generations 500] [--rounds 5] [--json]

OFA's MobileNetV3 space, limit at 30 % of its range, 25 parents, 100 children a generation, an accuracy function that
takes no time. pymoo's GA gets what is ours as far as its interfaces go: the same first networks, parents drawn alike,
our crossover and mutation of whole populations (each child has one of the two, as OFA's have), a vectorised problem,
and the limit as its constraint. Once with its check for duplicates, once without.

CPU time of one thread; all take turns within a round, with a seed of its own, in one process and one environment:
pymoo's, .venv-pymoo in the checkout, which is built first with the numpy that runs this. Without a package index to
install pymoo from, nothing is measured, and the exit status is 69.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # pymoo's environment has neither
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "agents"))  # of the two installed

import numpy as np
from figures import Figures, as_json, not_measured, over, synthetic_table, timed
from numpy.typing import NDArray

from lutbuilder import spaces
from lutbuilder.nas.compiled import CompiledSpace, compile_space
from lutbuilder.nas.search import Evolution, Genome, Limit, Limits, search

PYMOO = "pymoo==0.6.2"
HOME = Path(__file__).resolve().parents[1] / ".venv-pymoo"
SPACE = "ofa_mbv3"
SHARE = 0.3  # of the range from the cheapest to the dearest arch: the limit
HOW = Evolution()
OURS = "lutbuilder.nas.search.search"


def own_python() -> Path:
    """Return the Python of an environment that has pymoo; built once."""
    python, stamp = HOME / "bin" / "python", HOME / "made-of"
    wanted = [PYMOO, *(f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "scipy"))]
    made_of = f"{sys.version} {wanted}"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == made_of:
        return python
    venv.create(HOME, clear=True, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        not_measured(f"{PYMOO} cannot be installed.\n{done.stderr.strip()}")
    stamp.write_text(made_of, encoding="utf-8")
    return python


def megabytes_beside_numpy_and_scipy() -> float:
    """Return what pymoo and all it needs take on disk, numpy and scipy apart."""
    inside = next(Path(p) for p in sys.path if Path(p).name == "site-packages")
    apart = ("numpy", "scipy")
    files = (f for f in inside.rglob("*") if f.is_file() and not f.relative_to(inside).parts[0].startswith(apart))
    return sum(f.stat().st_size for f in files) / 1e6


def accuracy(archs: NDArray[Any]) -> NDArray[np.float64]:
    """Score archs by a sum over what they choose: nothing beside a supernet."""
    return archs @ np.random.default_rng(0).random(archs.shape[1])


class Asked:
    """An accuracy function that counts what it is asked about."""

    def __init__(self, compiled: CompiledSpace, max_cost: float) -> None:
        self._compiled, self._max_cost = compiled, max_cost
        self.archs: list[NDArray[Any]] = []

    def __call__(self, archs: NDArray[Any]) -> NDArray[np.float64]:
        self.archs.append(archs.copy())
        return accuracy(archs)

    def figures(self, spent_s: float) -> dict[str, float]:
        archs = np.concatenate(self.archs).astype(np.int8)
        within = self._compiled.predict(archs) <= self._max_cost
        return {
            "cpu_s": spent_s,
            "scored": len(archs),
            "scored_distinct": len(np.unique(archs, axis=0)),
            "over_the_limit": int((~within).sum()),
            "best_score": float(accuracy(archs[within]).max()),
        }


def ours(compiled: CompiledSpace, max_cost: float, how: Evolution, seed: int) -> dict[str, float]:
    """Return the figures of one search of our own."""
    asked = Asked(compiled, max_cost)
    limits = Limits.of(Limit(compiled=compiled, max_cost=max_cost))
    limits.sample(np.random.default_rng(seed), how.first)  # as pymoo gets its first archs ready made
    spent_s, _ = timed(partial(search, limits, asked, how, seed=seed))
    return asked.figures(spent_s)


def pymoo_ga(
    compiled: CompiledSpace, max_cost: float, how: Evolution, seed: int, *, duplicates: bool
) -> dict[str, float]:
    """Return the figures of one run of pymoo's GA."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.crossover import Crossover
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem
    from pymoo.operators.selection.rnd import RandomSelection
    from pymoo.optimize import minimize

    space = compiled.space
    genome = Genome.of(space)
    asked = Asked(compiled, max_cost)
    rng = np.random.default_rng(seed)
    crossed_share = how.crossed / (how.crossed + how.mutated)
    is_crossed = np.empty(0, np.bool_)  # of the children in the making: crossed ones are not mutated

    class Networks(Problem):  # type: ignore[misc]  # pymoo ships no types
        def __init__(self) -> None:
            highest = np.array(space.sizes) - 1
            super().__init__(n_var=len(space.sizes), n_obj=1, n_ieq_constr=1, xl=0, xu=highest, vtype=int)

        def _evaluate(self, x: NDArray[Any], out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = -asked(x)[:, None]
            out["G"] = compiled.predict(x.astype(np.int8))[:, None] - max_cost

    class Cross(Crossover):  # type: ignore[misc]  # pymoo ships no types
        def _do(self, problem: object, x: NDArray[Any], *args: Any, **kwargs: Any) -> NDArray[Any]:
            nonlocal is_crossed
            mothers, fathers = x.astype(np.int8)
            is_crossed = rng.random(len(mothers)) < crossed_share
            return np.where(is_crossed[:, None], genome.crossed(mothers, fathers, rng), mothers)[None].astype(x.dtype)

    class Mutate(Mutation):  # type: ignore[misc]  # pymoo ships no types
        def _do(self, problem: object, x: NDArray[Any], *args: Any, **kwargs: Any) -> NDArray[Any]:
            return np.where(is_crossed[:, None], x, genome.mutated(x.astype(np.int8), rng))

    limits = Limits.of(Limit(compiled=compiled, max_cost=max_cost))
    algorithm = GA(
        pop_size=how.parents,
        n_offsprings=how.mutated + how.crossed,
        sampling=limits.sample(np.random.default_rng(seed), how.first).astype(int),
        selection=RandomSelection(),
        crossover=Cross(n_parents=2, n_offsprings=1, prob=1.0),
        mutation=Mutate(),
        eliminate_duplicates=duplicates,
    )
    spent_s, _ = timed(partial(minimize, Networks(), algorithm, ("n_gen", how.generations + 1), seed=seed))
    return asked.figures(spent_s)


def measure(generations: int, rounds: int) -> dict[str, Figures]:
    """Return the figures of every contestant."""
    compiled = compile_space(spaces.get(SPACE), synthetic_table())
    low, high = compiled.min_over(), compiled.max_over()
    max_cost = low + SHARE * (high - low)
    contestants = {
        "pymoo, its duplicate check": partial(pymoo_ga, duplicates=True),
        "pymoo, no duplicate check": partial(pymoo_ga, duplicates=False),
        OURS: ours,
    }
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for number in range(rounds + 1):  # the first warms everything
        how = Evolution(generations=generations if number else 20)
        run = {name: search_once(compiled, max_cost, how, number) for name, search_once in contestants.items()}
        for name, figures in run.items():
            if number:
                seen[name].append(figures | {"times_ours": figures["cpu_s"] / run[OURS]["cpu_s"]})
    return {name: over(figures) for name, figures in seen.items()}


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=HOW.generations)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if importlib.util.find_spec("pymoo") is None:
        return subprocess.run([own_python(), __file__, *sys.argv[1:]], check=False).returncode
    figures = measure(given.generations, given.rounds)
    megabytes = megabytes_beside_numpy_and_scipy()
    if given.json:
        print(as_json({"space": SPACE, "generations": given.generations, "megabytes": megabytes, "of": figures}))
        return 0
    print(f"{SPACE}, {given.generations} generations of {HOW.mutated + HOW.crossed}, {PYMOO}, numpy {np.__version__};")
    print(f"CPU time of one thread, medians of {given.rounds} rounds (range)")
    for name, found in figures.items():
        print(name)
        print(f"  CPU time        {found['cpu_s'].text('s', digits=2)}")
        print(f"                  {found['times_ours'].text('x ours')}")
        print(f"  networks scored {found['scored'].text('', digits=0)}")
        print(f"  distinct ones   {found['scored_distinct'].text('', digits=0)}")
        print(f"  over the limit  {found['over_the_limit'].text('', digits=0)}")
        print(f"  best score      {found['best_score'].text('', digits=2)}")
    print(f"pymoo and what it needs take {megabytes:.0f} MB beside numpy and scipy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
