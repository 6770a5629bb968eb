"""APQ's and HAQ's searches on the tables their papers published where those are at hand, on made-up ones anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lutbuilder import spaces
from lutbuilder.lut.interchange import import_tables
from lutbuilder.nas.budget import AdditiveScore
from lutbuilder.nas.compiled import CompiledSpace, CostTable, FunctionTable, compile_space
from lutbuilder.nas.search import BitEnvironment, Evolution, Genome, Limit, Limits, layer_genes, rollout, search
from lutbuilder.op import OpSpec
from tests.search_spaces import bit_macs, more_is_better, quantile_of

SHARED = Path(__file__).parents[2].parent / "shared/data"


def sources(name: str) -> list[str]:
    """Made-up costs always; the published table where its folder is."""
    return ["made-up", "published"] if (SHARED / name).is_dir() else ["made-up"]


def imported(name: str, format: str, into: str, folder: Path) -> CostTable:
    """The published table as a LUT."""
    paths = [path for path in (SHARED / name).iterdir() if path.suffix in (".dict", ".npy")]
    when = {"created": "2025-01-31T12:00:00Z", "tool_version": "0"}
    return import_tables(paths, format=format, into=into, folder=folder, **when).lut


def quantised_ms(op: OpSpec) -> float:
    return 0.3 if op.kind == "lump" else 0.002 + bit_macs(op) / 1e10


def quantised_mj(op: OpSpec) -> float:
    return 0.5 if op.kind == "lump" else op.in_channels * op.out_channels / op.groups * op.w_bits / 1e6


@pytest.fixture(scope="module", params=sources("apq"))
def apq(request, tmp_path_factory) -> tuple[CompiledSpace, CompiledSpace]:
    """Latency and energy of APQ's space."""
    space = spaces.get("apq")
    if request.param == "made-up":
        tables = (FunctionTable(name="ms", cost=quantised_ms), FunctionTable(name="mj", cost=quantised_mj))
        return compile_space(space, tables[0]), compile_space(space, tables[1], "energy_mj")
    lut = imported("apq", "apq-json", "bitfusion/simulator-mixed-bs1", tmp_path_factory.mktemp("apq"))
    return compile_space(space, lut), compile_space(space, lut, "energy_mj")


def test_apqs_joint_search_keeps_latency_and_energy_and_every_rule(apq):
    ms, mj = apq
    limits = Limits.of(
        Limit(compiled=ms, max_cost=quantile_of(ms, 0.15)), Limit(compiled=mj, max_cost=quantile_of(mj, 0.25))
    )
    genome = Genome.of(ms.space, genes=layer_genes(ms.space))
    how = Evolution(first=50, parents=12, mutated=25, crossed=25, generations=15)
    found = search(limits, more_is_better, how, seed=1, genome=genome)
    assert len(found.history) == 50 + 15 * 50
    archs = found.history.archs
    assert (ms.predict(archs) <= quantile_of(ms, 0.15)).all()
    assert (mj.predict(archs) <= quantile_of(mj, 0.25)).all()
    assert ms.space.allowed(archs).all()
    assert (ms.space.canonical(archs) == archs).all()
    assert found.scores[0] > more_is_better(archs[:50]).max()  # better than the best of the first, uniform ones


@pytest.fixture(scope="module", params=sources("haq"))
def haq(request, tmp_path_factory) -> CompiledSpace:
    """Cycles of HAQ's space, MobileNetV2 at batch 16."""
    space = spaces.get("haq", batch=16)
    if request.param == "made-up":
        return compile_space(space, FunctionTable(name="bit-macs", cost=bit_macs), "cycles")
    return compile_space(
        space, imported("haq", "haq-npy", "bitfusion/simulator-mixed-bs16", tmp_path_factory.mktemp("haq")), "cycles"
    )


@pytest.mark.parametrize("ratio", [0.3, 0.556, 0.8])
def test_haqs_budget_is_kept_and_used_up_by_sweeps_and_by_the_exact_allocation(haq, ratio):
    space = haq.space
    full = haq.predict(np.array([[size - 1 for size in space.sizes]]))[0]  # 8 bits everywhere
    environment = BitEnvironment(limit=Limit(compiled=haq, max_cost=ratio * full))
    actions = np.vstack([np.ones(environment.n_steps), np.random.default_rng(0).random((10, environment.n_steps))])
    archs = rollout(environment, actions)
    assert (haq.predict(archs) <= ratio * full).all()
    assert haq.predict(archs)[0] > (ratio - 0.02) * full
    bits = AdditiveScore(space=space, values=[np.sqrt(np.array(v.values, dtype=float)) for v in space.variables])
    best = environment.best(bits)[None]
    assert haq.predict(best)[0] <= ratio * full
    assert bits.score(best)[0] >= bits.score(archs).max() - 1e-9
