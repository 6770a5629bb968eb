"""Evolutionary search: limits are never violated, the seed fixes everything, a killed search ends like any other."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.nas.search import ByBucket, Evolution, Genome, Limit, Limits, StateFile, search
from lutbuilder.nas.search.evolution import Schedule
from lutbuilder.nas.search.scoring import Archive, score
from lutbuilder_agent.errors import ShapeError, SpecError
from tests.search_spaces import costs, more_is_better, ofa_like, quantile_of
from tests.small_spaces import every_arch, priced_spaces

PROPERTY = settings(max_examples=30, deadline=None)  # no deadline: a busy machine is no failure
OFA = ofa_like()
MS = costs(OFA)
MJ = compile_space(
    OFA, FunctionTable(name="energy", cost=lambda op: (op.kernel + 5) * op.out_channels / 100), "energy_mj"
)
LIMIT = Limit(compiled=MS, max_cost=quantile_of(MS, 0.3))
SMALL = Evolution(first=20, parents=6, mutated=10, crossed=10, generations=6)
BUCKETS = ByBucket(first=24, mutated=8, crossed=8, generations=6, step=(MS.max_over() - MS.min_over()) / 20)


def same(one, other) -> bool:
    """Whether two searches found the same, and scored the same on their way."""
    pairs = [(one.archs, other.archs), (one.scores, other.scores), (one.costs, other.costs)]
    pairs += [(one.history.archs, other.history.archs), (one.history.scores, other.history.scores)]
    return one.generations == other.generations and all(np.array_equal(a, b) for a, b in pairs)


# --- Hard limits


@pytest.mark.filterwarnings("ignore::lutbuilder.nas.search.LimitNeverBinds")
@PROPERTY
@given(priced_spaces(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99), st.booleans())
def test_no_arch_ever_scored_violates_a_limit(priced, share, also_share, seed, by_bucket):
    space, table = priced
    ms = compile_space(space, table)
    mj = compile_space(
        space, FunctionTable(name="mj", cost=lambda op: float(op.out_channels % 5), runs=table.runs), "energy_mj"
    )
    assume(np.isfinite(ms.min_over()))
    limits = (
        Limit(compiled=ms, max_cost=quantile_of(ms, share)),
        Limit(compiled=mj, max_cost=quantile_of(mj, also_share)),
    )
    archs = every_arch(space)
    feasible = archs[limits[0].budget.holds(ms.predict(archs)) & limits[1].budget.holds(mj.predict(archs))]
    assume(len(feasible))
    how = ByBucket(first=5, mutated=3, crossed=3, generations=4, step=0.1) if by_bucket else SMALL
    found = search(Limits.of(*limits), more_is_better, how, seed=seed)
    scored = {tuple(row) for row in found.history.archs.tolist()}
    assert scored <= {tuple(row) for row in feasible.tolist()}
    assert len(scored) == len(found.history)
    assert found.costs == pytest.approx(np.stack([ms.predict(found.archs), mj.predict(found.archs)]), abs=1e-12)
    assert (found.costs[0] <= limits[0].budget.bounds[1]).all()
    assert found.scores == pytest.approx(more_is_better(found.archs))


def test_both_limits_of_a_window_are_kept():
    window = Limit(compiled=MS, min_cost=quantile_of(MS, 0.4), max_cost=quantile_of(MS, 0.5))
    found = search(window, more_is_better, SMALL, seed=1)
    assert found.history.costs.min() >= window.min_cost
    assert found.history.costs.max() <= window.max_cost
    assert len(found.history) > 100


def test_a_small_space_is_searched_to_the_end_and_its_best_arch_found():
    space = ofa_like(1)
    compiled = costs(space)
    limit = Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.2))
    archs = every_arch(space)
    feasible = archs[limit.budget.holds(compiled.predict(archs))]
    found = search(limit, more_is_better, Evolution(generations=500), seed=0)
    assert found.exhausted
    assert len(found.history) == len(feasible)
    assert found.scores[0] == more_is_better(feasible).max()
    assert (np.diff(found.scores) <= 0).all()


def test_a_search_that_cannot_list_what_is_left_is_never_called_exhausted(monkeypatch):
    monkeypatch.setattr("lutbuilder.nas.budget.LISTABLE", 0)
    space = ofa_like(1)
    compiled = costs(space)
    limit = Limit(compiled=compiled, max_cost=quantile_of(compiled, 0.05))
    n_feasible = int(limit.budget.holds(compiled.predict(every_arch(space))).sum())
    asked: list[int] = []

    def accuracy(archs):
        asked.append(len(archs))
        return more_is_better(archs)

    found = search(limit, accuracy, Evolution(generations=30), seed=0)
    assert not found.exhausted
    assert (found.generations, sum(asked), min(asked) > 0) == (30, n_feasible, True)
    assert len(found.history) == n_feasible < 150


def test_a_schedule_says_how_archs_vary_and_which_are_kept():
    with pytest.raises(TypeError, match="abstract"):
        Schedule(first=1, mutated=1, crossed=1, generations=1)


def test_a_search_finds_better_archs_than_as_many_random_ones():
    found = search(LIMIT, more_is_better, Evolution.sized(40, 30), seed=3)
    random = Limits.of(LIMIT).sample(np.random.default_rng(3), len(found.history))
    assert found.scores[0] > more_is_better(random).max()


def test_an_arch_is_scored_once_and_a_generation_in_one_call():
    asked: list[np.ndarray] = []

    def accuracy(archs):
        asked.append(archs.copy())
        archs[:] = 0  # what a user's function does to its argument stays its own
        return np.arange(len(archs), dtype=float)

    found = search(LIMIT, accuracy, SMALL, seed=4)
    assert len(asked) == 1 + SMALL.generations
    everything = np.concatenate(asked)
    assert len(np.unique(everything, axis=0)) == len(everything) == len(found.history)


def test_of_equally_accurate_archs_the_cheaper_is_kept():
    found = search(LIMIT, lambda archs: np.zeros(len(archs)), Evolution.sized(30, 40), seed=5)
    assert (np.diff(found.costs[0]) >= 0).all()
    assert found.costs[0, 0] < quantile_of(MS, 0.02)


# --- The seed


@pytest.mark.parametrize("how", [SMALL, BUCKETS])
def test_the_seed_fixes_everything(how):
    one, again, other = (search(LIMIT, more_is_better, how, seed=seed) for seed in (6, 6, 7))
    assert same(one, again)
    assert not same(one, other)


# --- Buckets


def test_the_best_arch_of_every_bucket_is_kept():
    found = search(Limit(compiled=MS, max_cost=quantile_of(MS, 0.9)), more_is_better, BUCKETS, seed=8)
    buckets = np.rint(found.history.costs[0] / BUCKETS.step)
    assert np.rint(found.costs[0] / BUCKETS.step).tolist() == sorted(set(buckets.tolist()))
    for bucket, best in zip(np.rint(found.costs[0] / BUCKETS.step), found.scores, strict=True):
        assert best == found.history.scores[buckets == bucket].max()


def test_the_front_holds_what_nothing_beats_in_score_and_cost():
    found = search(Limit(compiled=MS, max_cost=quantile_of(MS, 0.9)), more_is_better, BUCKETS, seed=8)
    front = found.front().tolist()
    assert len(front) > 3
    for row in range(len(found.archs)):
        cheaper = (found.costs[0] <= found.costs[0, row]) & (found.scores >= found.scores[row])
        beaten = (cheaper & ((found.costs[0] < found.costs[0, row]) | (found.scores > found.scores[row]))).any()
        assert beaten == (row not in front)


# --- Progress and resume


@pytest.mark.parametrize("how", [SMALL, BUCKETS])
@pytest.mark.parametrize("last", range(7))
def test_a_killed_search_ends_as_if_it_had_not_been(how, last, tmp_path):
    class Killed(Exception):
        pass

    def kill(progress):
        if progress.generation == last:
            raise Killed

    whole = search(LIMIT, more_is_better, how, seed=9)
    state = StateFile(path=tmp_path / "state.npz", every=2)
    with pytest.raises(Killed):
        search(LIMIT, more_is_better, how, seed=9, on_progress=kill, state=state)
    assert same(search(LIMIT, more_is_better, how, seed=9, state=state), whole)
    assert same(search(LIMIT, more_is_better, how, seed=9, state=state), whole)  # finished: read, not searched again
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_a_process_killed_while_scoring_leaves_a_state_that_is_whole(root, tmp_path):
    code = """
import os, sys
from lutbuilder.nas.search import StateFile, search
from tests.search_spaces import more_is_better
from tests.unit.test_search_evolution import LIMIT, SMALL
from pathlib import Path
calls = 0
def accuracy(archs):
    global calls
    calls += 1
    if calls == 6:
        os._exit(9)
    return more_is_better(archs)
accuracy.__module__, accuracy.__qualname__ = more_is_better.__module__, more_is_better.__qualname__
search(LIMIT, accuracy, SMALL, seed=10, state=StateFile(path=Path(sys.argv[1]), every=3))
"""
    path = os.pathsep.join([str(root), str(root / "agents")])
    state = tmp_path / "state.npz"
    done = subprocess.run(
        [sys.executable, "-c", code, str(state)], env={**os.environ, "PYTHONPATH": path}, cwd=root, check=False
    )
    assert done.returncode == 9
    heard: list[int] = []
    found = search(
        LIMIT,
        more_is_better,
        SMALL,
        seed=10,
        state=StateFile(path=state),
        on_progress=lambda p: heard.append(p.generation),
    )
    assert heard == [3, 4, 5, 6]
    assert same(found, search(LIMIT, more_is_better, SMALL, seed=10))


def test_the_state_is_written_when_seconds_are_over_and_when_anything_ends_the_search(tmp_path):
    now = [0.0]
    path = tmp_path / "state.npz"
    state = StateFile(path=path, every=1000, every_s=30.0, clock=lambda: now[0])
    seen: list[int | None] = []

    def accuracy(archs):
        seen.append(StateFile(path=path).generation())
        now[0] += 12.0
        if len(seen) == 6:
            raise KeyboardInterrupt
        return more_is_better(archs)

    accuracy.__module__, accuracy.__qualname__ = more_is_better.__module__, more_is_better.__qualname__
    with pytest.raises(KeyboardInterrupt):
        search(LIMIT, accuracy, SMALL, seed=15, state=state)
    assert seen == [None, 0, 0, 0, 3, 3]  # 36 s after the first
    assert state.generation() == 4  # the fifth was being scored
    heard: list[int] = []
    found = search(LIMIT, more_is_better, SMALL, seed=15, state=state, on_progress=lambda p: heard.append(p.generation))
    assert heard == [4, 5, 6]
    assert same(found, search(LIMIT, more_is_better, SMALL, seed=15))


def test_a_finished_search_can_be_continued_for_longer(tmp_path):
    state = StateFile(path=tmp_path / "state.npz")
    longer = Evolution(first=20, parents=6, mutated=10, crossed=10, generations=11)
    search(LIMIT, more_is_better, SMALL, seed=11, state=state)
    found = search(LIMIT, more_is_better, longer, seed=11, state=state)
    assert same(found, search(LIMIT, more_is_better, longer, seed=11))
    with pytest.raises(SpecError, match="of generation 11, the search is to end at 6: ask for as many or more"):
        search(LIMIT, more_is_better, SMALL, seed=11, state=state)


def test_the_state_of_another_search_is_refused_by_the_first_thing_that_differs(tmp_path):
    state = StateFile(path=tmp_path / "state.npz")
    search(LIMIT, more_is_better, SMALL, seed=12, state=state)
    dearer = Limit(compiled=MS, max_cost=LIMIT.max_cost * 1.01)
    with pytest.raises(SpecError, match="another search: its seed is 12, this one's 13"):
        search(LIMIT, more_is_better, SMALL, seed=13, state=state)
    with pytest.raises(SpecError, match="another search: its limit is"):
        search(dearer, more_is_better, SMALL, seed=12, state=state)
    with pytest.raises(SpecError, match="another search: its method is 'Evolution', this one's 'ByBucket'"):
        search(LIMIT, more_is_better, BUCKETS, seed=12, state=state, genome=Genome.of(OFA))
    with pytest.raises(SpecError, match="another search: its genes is"):
        search(LIMIT, more_is_better, SMALL, seed=12, state=state, genome=Genome.of(OFA, rate=0.2))
    with pytest.raises(SpecError, match="another search: its accuracy function is"):
        search(LIMIT, lambda archs: more_is_better(archs), SMALL, seed=12, state=state)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_a_damaged_state_file_is_refused_with_what_to_do(damage, tmp_path):
    state = StateFile(path=tmp_path / "state.npz")
    search(LIMIT, more_is_better, SMALL, seed=12, state=state)
    raw = state.path.read_bytes()
    middle = len(raw) // 2
    flipped = raw[:middle] + bytes([raw[middle] ^ 255]) + raw[middle + 1 :]
    state.path.write_bytes({"empty": b"", "cut": raw[:-100], "flipped": flipped, "text": b"not an archive"}[damage])
    with pytest.raises(SpecError, match=r"cannot be read as the state of a search: .*; remove it to start anew"):
        search(LIMIT, more_is_better, SMALL, seed=12, state=state)


def test_a_full_disk_is_told_and_leaves_the_state_before(tmp_path, monkeypatch):
    state = StateFile(path=tmp_path / "state.npz")
    search(LIMIT, more_is_better, SMALL, seed=1, state=state)
    before = state.path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lutbuilder.nas.search.state.os.fsync", full)
    longer = Evolution(first=20, parents=6, mutated=10, crossed=10, generations=7)
    with pytest.raises(SpecError, match=r"cannot write the state of the search to .*: No space left on device"):
        search(LIMIT, more_is_better, longer, seed=1, state=state)
    assert state.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_a_state_that_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(SpecError, match=r"cannot read the state of the search from .*: Is a directory"):
        search(LIMIT, more_is_better, SMALL, seed=1, state=StateFile(path=tmp_path))


def test_progress_tells_every_generation_and_the_best_so_far():
    heard = []
    found = search(LIMIT, more_is_better, SMALL, seed=14, on_progress=heard.append)
    assert [p.generation for p in heard] == list(range(SMALL.generations + 1))
    assert all(a.best_score <= b.best_score and a.n_scored < b.n_scored for a, b in pairwise(heard))
    assert (heard[-1].best_score, heard[-1].n_scored) == (found.scores[0], len(found.history))
    assert heard[-1].best_cost == found.costs[0, 0]


# --- What accuracy functions do wrong


@pytest.mark.parametrize(
    ("accuracy", "error", "says"),
    [
        (lambda archs: np.zeros(3), ShapeError, r"gives shape \(3,\) for 5 archs"),
        (lambda archs: np.zeros((5, 1)), ShapeError, r"gives shape \(5, 1\)"),
        (lambda archs: [1.0, float("nan"), 1, 1, 1], SpecError, r"gives nan for arch \[1, 1, 1\]"),
        (lambda archs: ["a"] * 5, ShapeError, "gives no numbers"),
        (lambda archs: 1 / 0, SpecError, r"raised ZeroDivisionError: division by zero \(asked about 5 archs\)"),
    ],
)
def test_an_accuracy_function_that_is_wrong_is_told_so(accuracy, error, says):
    with pytest.raises(error, match=says):
        score(accuracy, np.ones((5, 3), dtype=np.int8))


def test_a_genome_of_another_space_is_refused():
    with pytest.raises(SpecError, match="the genome is of space 'ofa-like', the limits are of 'ofa-like'"):
        search(LIMIT, more_is_better, SMALL, seed=0, genome=Genome.of(ofa_like(1)))


def test_the_archive_claims_an_arch_once_and_only_as_many_as_asked_for():
    archive = Archive(OFA, 1)
    archs = OFA.canonical(np.random.default_rng(0).integers(0, OFA.sizes, size=(50, len(OFA.sizes)))).astype(np.int8)
    first = archive.claim(archs, 10)
    assert len(first) == 10
    assert not set(first) & set(archive.claim(archs, 50))
    assert archive.claim(archs, 50) == []


def test_what_an_archive_gave_stays_as_it_was():
    archive = Archive(OFA, 2)
    archs = OFA.canonical(np.random.default_rng(0).integers(0, OFA.sizes, size=(100, len(OFA.sizes)))).astype(np.int8)
    given, n = [], 0
    for size in (1, 3, 40, 2, 50):
        rows = archs[n : n + size]
        archive.add(rows, np.arange(n, n + size, dtype=float), np.stack([np.full(size, n), np.full(size, -n)]) * 1.0)
        n += size
        given.append((n, archive.archs, archive.scores, archive.costs))
    for length, of_archs, scores, of_costs in given:
        assert np.array_equal(of_archs, archs[:length])
        assert scores.tolist() == list(range(length))
        assert of_costs.shape == (2, length)
        assert (of_costs[0] == -of_costs[1]).all()
    assert len(archive) == 96


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Evolution(parents=0),
        lambda: Evolution(first=0),
        lambda: Evolution(mutated=0, crossed=0),
        lambda: Evolution(generations=-1),
        lambda: ByBucket(step=0.0),
        lambda: ByBucket(step=float("nan")),
        lambda: StateFile(path="x", every=0),
        lambda: StateFile(path="x", every_s=float("nan")),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(SpecError):
        wrong()
