"""Imputation on made-up shapes: what comes out is positive, monotone, near the knots, and the same in any order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder.stats.impute import Shapes, choose, impute, monotone
from lutbuilder_agent.errors import ShapeError

WIDTHS = (8, 16, 24, 32, 48, 64, 72, 96, 128)


def grid(widths: tuple[int, ...] = WIDTHS, extents: tuple[int, ...] = (196, 784), groups: int = 1) -> Shapes:
    """Every (in, out) pair of the widths at every extent; work: bytes and MACs, as they are and in tiles of 16."""
    rows = [(g, i, o, e) for g in range(groups) for e in extents for i in widths for o in widths]
    group, inner, outer, extent = np.array(rows).T

    def work(tile: int) -> np.ndarray:
        i, o = -(-inner // tile) * tile, -(-outer // tile) * tile
        return np.stack([(i + o) * extent, i * o * extent], axis=1).astype(np.float64)

    return Shapes(
        group=group,
        widths=np.stack([inner, outer], axis=1),
        extents=extent[:, None].astype(np.float64),
        work=np.stack([work(1), work(16)]),
    )


def taken(shapes: Shapes, order: np.ndarray) -> Shapes:
    return Shapes(
        group=shapes.group[order],
        widths=shapes.widths[order],
        extents=shapes.extents[order],
        work=shapes.work[:, order],
    )


def stairs(shapes: Shapes) -> np.ndarray:
    """The latency, ms, of a device that computes 16 channels at a time and slows down out of cache."""
    moved, macs = shapes.work[1].T
    return (1e-3 + 2e-7 * moved + 2e-8 * macs) * (1 + 0.2 * np.tanh(np.log(moved / 2e4)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Shapes, np.ndarray, np.ndarray, np.ndarray]:
    """Shapes, some of them as knots, and latencies that may contradict one another, with their noise."""
    widths = tuple(sorted(draw(st.sets(st.sampled_from(WIDTHS), min_size=1, max_size=4))))
    shapes = grid(widths, draw(st.sampled_from([(196,), (49, 196)])), draw(st.integers(1, 2)))
    knots = np.array(sorted(draw(st.sets(st.integers(0, len(shapes) - 1), min_size=1, max_size=12))))
    spread = draw(st.sampled_from([0.0, 0.01, 0.3]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return (
        shapes,
        knots,
        stairs(shapes)[knots] * np.exp(spread * rng.standard_normal(len(knots))),
        np.full(len(knots), max(spread, 0.001)),
    )


@settings(max_examples=12, deadline=None)
@given(cases())
def test_what_is_imputed_is_positive_inside_its_interval_and_nothing_else_is_imputed(case):
    shapes, knots, ms, noise = case
    told = impute(shapes, knots, ms, noise)
    known = np.isin(shapes.group, shapes.group[knots])
    lo, hi = told.interval(0.9)
    assert (np.isnan(told.ms) == ~known).all()
    assert (told.ms[known] > 0).all()
    assert ((lo[known] > 0) & (lo[known] <= told.ms[known]) & (told.ms[known] <= hi[known])).all()
    assert told.radius(0.5) <= told.radius(0.9) <= told.radius(0.95)


@settings(max_examples=12, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_shapes_and_of_knots_does_not_matter(case, random):
    shapes, knots, ms, noise = case
    order = list(range(len(shapes)))
    random.shuffle(order)
    moved = np.argsort(order)[knots]
    back = list(range(len(knots)))
    random.shuffle(back)
    straight = impute(shapes, knots, ms, noise)
    shuffled = impute(taken(shapes, np.array(order)), moved[back], ms[back], noise[back])
    np.testing.assert_allclose(shuffled.ms, straight.ms[order], rtol=1e-6)
    np.testing.assert_allclose(shuffled.sd, straight.sd[order], rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(cases())
def test_wider_is_never_faster_unless_knots_say_so_beyond_their_intervals(case):
    shapes, knots, ms, noise = case
    told = impute(shapes, knots, ms, noise)
    lo, hi = ms * np.exp(-2 * noise), ms * np.exp(2 * noise)
    made = monotone(shapes, told.ms, knots, lo, hi)
    keys = np.column_stack([shapes.group, shapes.extents])
    for a, b in itertools.permutations(range(len(shapes)), 2):
        if (
            (keys[a] == keys[b]).all()
            and (shapes.widths[a] <= shapes.widths[b]).all()
            and made[a] > made[b] * (1 + 1e-9)
        ):
            here = [k for k in range(len(knots)) if (keys[knots[k]] == keys[a]).all()]
            assert any(
                lo[p] > hi[q] and (shapes.widths[knots[p]] <= shapes.widths[knots[q]]).all()
                for p, q in itertools.permutations(here, 2)
            ), "an order was broken although no two knots contradict it"


@settings(max_examples=15, deadline=None)
@given(cases())
def test_where_knots_agree_every_shape_is_between_its_narrower_and_wider_knots(case):
    shapes, knots, ms, noise = case
    order = np.lexsort((*shapes.widths[knots].T, *shapes.extents[knots].T, shapes.group[knots]))
    knots, noise = knots[order], noise[order]
    ms = stairs(shapes)[knots]  # grows with every width
    lo, hi = ms * np.exp(-2 * noise), ms * np.exp(2 * noise)
    made = monotone(shapes, impute(shapes, knots, ms, noise).ms, knots, lo, hi)
    for k, knot in enumerate(knots):
        alike = (shapes.group == shapes.group[knot]) & (shapes.extents == shapes.extents[knot]).all(axis=1)
        wider = alike & (shapes.widths >= shapes.widths[knot]).all(axis=1)
        narrower = alike & (shapes.widths <= shapes.widths[knot]).all(axis=1)
        assert (made[wider] >= lo[k] * (1 - 1e-9)).all()
        assert (made[narrower] <= hi[k] * (1 + 1e-9)).all()


def test_the_prediction_passes_near_well_known_knots():
    shapes = grid()
    knots = np.arange(0, len(shapes), 3)
    told = impute(shapes, knots, stairs(shapes)[knots], np.full(len(knots), 1e-3))
    assert np.abs(told.ms[knots] / stairs(shapes)[knots] - 1).max() < 0.01


def test_a_device_of_tiles_is_predicted_from_a_quarter_of_its_shapes():
    shapes = grid()
    rng = np.random.default_rng(0)
    knots = choose(shapes, np.ones(len(shapes)), len(shapes) // 4)
    seen = stairs(shapes)[knots] * np.exp(0.01 * rng.standard_normal(len(knots)))
    told = impute(shapes, knots, seen, np.full(len(knots), 0.01))
    rest = np.setdiff1d(np.arange(len(shapes)), knots)
    error = np.abs(told.ms[rest] / stairs(shapes)[rest] - 1)
    smooth = np.abs(shapes.work[0][rest] @ [2e-7, 2e-8] / stairs(shapes)[rest] - 1)
    assert error.mean() < 0.02
    assert error.mean() < 0.1 * smooth.mean(), "the work without tiles is no answer here"


def test_knots_that_contradict_the_order_of_alignments_free_it_for_them_alone():
    shapes = grid((16, 24, 32, 40, 48), (196,))
    ms = np.ones(len(shapes))
    slow = (shapes.widths % 16 == 8).any(axis=1)
    knots = np.arange(len(shapes))
    ms[slow] = 2.0
    ms *= 1 + 1e-3 * shapes.widths.sum(axis=1)
    made = monotone(shapes, ms, knots, ms * 0.99, ms * 1.01)
    np.testing.assert_allclose(made, ms)


def test_without_knots_the_first_choices_spread_over_groups_extents_and_alignments():
    shapes = grid(groups=2)
    chosen = choose(shapes, np.ones(len(shapes)), 40)
    assert len(set(chosen.tolist())) == 40
    for group, extent in itertools.product((0, 1), (196.0, 784.0)):
        here = chosen[(shapes.group[chosen] == group) & (shapes.extents[chosen, 0] == extent)]
        widths = shapes.widths[here]
        assert len(here) >= 8
        assert (widths.min(), widths.max()) == (8, 128)
        assert len(set(np.gcd(widths, 64).ravel().tolist())) == 4


def test_the_next_choice_is_what_contributes_most_and_never_what_is_known_taken_or_unused():
    shapes = grid()
    knots = choose(shapes, np.ones(len(shapes)), 20)
    told = impute(shapes, knots, stairs(shapes)[knots], np.full(len(knots), 0.01))
    weight = np.where(shapes.widths[:, 0] == 96, 1.0, 0.0)
    also = np.flatnonzero(weight)[:3]
    chosen = choose(shapes, weight, 100, imputation=told, taken=also)
    assert set(chosen.tolist()) == set(np.flatnonzero(weight).tolist()) - {*knots.tolist(), *also.tolist()}
    assert choose(shapes, weight * told.ms, 1, imputation=told)[0] == np.argmax(
        np.where(np.isin(np.arange(len(shapes)), knots), 0, weight) * told.ms * told.sd
    )


def test_measuring_what_was_chosen_narrows_the_intervals_most():
    shapes = grid()
    first = choose(shapes, np.ones(len(shapes)), 20)
    noise = np.full(len(shapes), 0.01)
    told = impute(shapes, first, stairs(shapes)[first], noise[first])
    chosen = choose(shapes, np.ones(len(shapes)), 20, imputation=told)
    others = np.setdiff1d(np.arange(len(shapes)), np.concatenate([first, chosen]))[:20]

    def widest(more: np.ndarray) -> float:
        knots = np.concatenate([first, more])
        return float(impute(shapes, knots, stairs(shapes)[knots], noise[knots]).sd.max())

    assert widest(chosen) < widest(others)


@pytest.mark.parametrize(
    ("knots", "ms", "noise"),
    [
        ([], [], []),
        ([0, 0], [1.0, 1.0], [0.1, 0.1]),
        ([0], [0.0], [0.1]),
        ([0], [1.0], [0.0]),
        ([10_000], [1.0], [0.1]),
        ([0, 1], [1.0], [0.1]),
        ([0], [float("nan")], [0.1]),
    ],
)
def test_nonsense_knots_are_refused(knots, ms, noise):
    with pytest.raises(ShapeError):
        impute(grid(), np.array(knots, dtype=np.int64), np.array(ms), np.array(noise))


def test_nonsense_shapes_are_refused():
    good = grid((8, 16), (49,))
    for change in (
        {"widths": good.widths - 8},
        {"extents": 0 * good.extents},
        {"work": -good.work},
        {"work": good.work[0]},
        {"group": good.group[1:]},
    ):
        with pytest.raises(ShapeError):
            Shapes(**{"group": good.group, "widths": good.widths, "extents": good.extents, "work": good.work, **change})
