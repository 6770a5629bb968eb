"""Carriers: whole networks timed in the same rounds as the ops, which say what the ops cost in situ.

An op timed on its own lacks what a network does to it: caches that large networks fill and small ones do not, layers an
engine fuses only behind another one, boundaries it reorders. None of it is large, all of it is systematic
(docs/decisions/0006). So a collection also times a few random networks and corrects the ops' values by them, as far as
the networks give evidence for it (stats/calibrate.py). Carriers are part of the fit: a validation never draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lutbuilder.campaign.estimates import Summary, half_ms
from lutbuilder.campaign.spec import CampaignOp
from lutbuilder.lower import lower
from lutbuilder.op import OpSpec

if TYPE_CHECKING:
    from lutbuilder.lut import Lut, Row
    from lutbuilder.lut.schema import Carrier
    from lutbuilder.spaces import SearchSpace
    from lutbuilder.stats.records import OpEstimate
    from lutbuilder_agent.graph import LayerGraph

_TRIES = 2000  # changes of one choice tried for one carrier
_NEAR = 0.01  # of the space's range: near enough to the wanted place
_BEYOND = 1e15  # a size no network has, and small enough that a float still tells two networks apart
_NORMAL_95 = 1.96
_SEED = 0xCA881E85  # carriers come from a stream of their own: a validation with the same seed shares no draw

_UNKNOWN = -1  # a size not asked for yet
_SIZES = (attrgetter("macs"), attrgetter("grouped_macs"))

Floats = NDArray[np.float64]
Arch = NDArray[np.int16]
Seen = dict[bytes, tuple[Arch, float] | None]  # archs by what was drawn, with their sizes; None: forbidden


def choose_carriers(space: SearchSpace, n: int, *, seed: int) -> tuple[CampaignOp, ...]:
    """Return up to `n` different random networks, spread evenly over the space's whole range, smallest first.

    One by its MACs, the next by those MACs alone that are of grouped layers, and so on: what such a MAC costs is what
    engines differ in most, so the slowest networks of one are not those of another (decision 0014). Each network starts
    at a random arch and takes random changes of one choice that bring it nearer to its place. Fewer than `n` only where
    the space has fewer.
    """
    rng = np.random.default_rng([seed, _SEED])
    chosen: dict[str, CampaignOp] = {}
    by_macs, by_grouped = (_Spread(space, size, rng) for size in _SIZES)
    spreads = (by_macs, by_grouped) if by_grouped.high > by_grouped.low else (by_macs,)
    for number in range(n):
        place, which = divmod(number, len(spreads))
        spread, n_places = spreads[which], -(-(n - which) // len(spreads))
        target = spread.low + (spread.high - spread.low) * (place + rng.random()) / n_places
        for _ in range(10):
            carrier = CampaignOp.carrier(space.arch_ops(spread.nearest(target, rng)))
            if carrier.op_id not in chosen:
                chosen[carrier.op_id] = carrier
                break
        else:
            if len(chosen) >= space.n_archs():
                break
    return tuple(chosen.values())


def timed_carriers(ops: Iterable[CampaignOp], estimates: Mapping[str, OpEstimate]) -> tuple[Carrier, ...]:
    """Return the carriers among `ops` that were timed, by op_id, for the footer of a table."""
    from lutbuilder.lut.schema import Carrier

    return tuple(
        Carrier(op_id=op.op_id, op_ids=tuple(member.op_id for member in op.ops), time_ms=estimates[op.op_id].time_ms)
        for op in sorted(ops, key=lambda op: op.op_id)
        if op.role == "carrier" and op.op_id in estimates
    )


def carriers_of(lut: Lut) -> tuple[CampaignOp, ...]:
    """Return the carriers that a table names, to be timed again; none of those whose ops have no row any more."""
    ops = {row.op_id: row.op for row in lut.rows()} if lut.meta.carriers else {}
    return tuple(
        CampaignOp.carrier(tuple(ops[op_id] for op_id in carrier.op_ids))
        for carrier in lut.meta.carriers
        if all(op_id in ops for op_id in carrier.op_ids)
    )


def on_carriers_scale(ops: Iterable[CampaignOp], summary: Summary) -> Mapping[str, OpEstimate]:
    """Return the estimates of a pool's visits, networks put on the scale of the carriers of their sessions.

    Ops tie the sessions of a fit, and what a session does to networks it does not do to ops timed alone (decision
    0009). So where a session timed carriers that others timed too, its networks are moved by what those carriers
    differ from their own means. Where fewer than 6 carriers tell, nothing moves.
    """
    from lutbuilder.stats.calibrate import LEAST_NETWORKS
    from lutbuilder.stats.interval import spread

    units = spread(summary.visits, summary.drift).sessions
    roles = {op.op_id: op.role for op in ops}
    role = np.array([roles.get(op_id, "op") for op_id in summary.visits.op_ids])[units.op]
    shared = np.bincount(units.op, minlength=len(summary.visits.op_ids))[units.op] > 1
    off = np.zeros(len(summary.visits.session_ids))
    for session in range(len(off)):
        telling = (role == "carrier") & shared & (units.session == session)
        if telling.sum() >= LEAST_NETWORKS:
            off[session] = midmean(units.value[telling] - summary.drift.theta[units.op[telling]])
    moved = dict(summary.by_id)
    for number in np.unique(units.op[role == "network"]):
        mine = units.op == number
        by = float(np.average(off[units.session[mine]], weights=units.weight[mine]))
        op_id = summary.visits.op_ids[number]
        if by and op_id in moved:
            moved[op_id] = _scaled(moved[op_id], math.exp(-by))
    return moved


def midmean(values: Floats) -> float:
    """Return the mean of the middle half."""
    quarter = len(values) // 4
    return float(np.mean(np.sort(values)[quarter : len(values) - quarter]))


def _scaled(estimate: OpEstimate, factor: float) -> OpEstimate:
    """Return the estimate of something that takes `factor` times as long."""
    times = ("time_ms", "lo_ms", "hi_ms", "p90_ms", "net_half_ms")
    known = {name: value for name in times if (value := getattr(estimate, name)) is not None}
    return replace(estimate, **{name: factor * value for name, value in known.items()})


def in_situ_rows(
    ops: Iterable[CampaignOp], rows: Sequence[Row], estimates: Mapping[str, OpEstimate]
) -> tuple[Row, ...]:
    """Return a further row, method in_situ, for every measured op of `rows`, corrected by the carriers among `ops`.

    `estimates` are by op_id, the carriers' among them. None if there are too few carriers, or if they tell no more than
    the rows' own values: then there is nothing to correct. The call overhead stays as it was measured. Intervals are
    the posterior's.
    """
    from lutbuilder.campaign.patterns import patterns
    from lutbuilder.stats.calibrate import LEAST_NETWORKS, Networks, calibrate

    measured = {row.op_id: row for row in rows if row.status == "measured" and row.kind != "identity"}
    usable = [
        op
        for op in ops
        if op.role == "carrier"
        and op.op_id in estimates
        and half_ms(estimates[op.op_id]) is not None
        and all(member.op_id in measured for member in op.ops)
    ]
    if len(usable) < LEAST_NETWORKS:
        return ()
    ids = list(measured)
    place = {op_id: number for number, op_id in enumerate(ids)}
    first = {carrier.ops[0].op_id: measured[carrier.ops[0].op_id].call_overhead_ms or 0.0 for carrier in usable}
    calls = {op_id: len(ids) + number for number, op_id in enumerate(first)}  # one call overhead a first op
    counts = np.zeros((len(usable), len(ids) + len(calls)))
    for number, carrier in enumerate(usable):
        counts[number, calls[carrier.ops[0].op_id]] = 1.0
        for member in carrier.ops:
            counts[number, place[member.op_id]] += 1.0
    times = np.array([estimates[carrier.op_id].time_ms for carrier in usable])
    halves = np.array([half_ms(estimates[carrier.op_id]) or 0.0 for carrier in usable])
    values = np.array([measured[op_id].latency_ms or 0.0 for op_id in ids])
    widths = np.array([measured[op_id].half_width or 0.05 for op_id in ids])
    prior_ms = np.concatenate([values, np.maximum(list(first.values()), 1e-6)])
    calibration = calibrate(
        Networks(
            counts=counts,
            overhead=np.arange(counts.shape[1]) >= len(ids),
            measured_ms=times,
            noise=halves / times / _NORMAL_95,
        ),
        prior_ms,
        np.concatenate([widths / _NORMAL_95, np.zeros(len(calls))]),
        # Networks that take turns find everything cold, what they share too; hot ones are past help (decision 0009).
        patterns(
            [measured[op_id].op for op_id in ids],
            prior_ms,
            ends=any(row.cache == "cold" for row in measured.values()),
        ),
    )
    ridge, untouched = calibration.of("ridge"), calibration.of("none")
    if ridge.loo_error >= untouched.loo_error:
        return ()
    found = []
    for number, op_id in enumerate(ids):
        value, spread = float(ridge.values_ms[number]), float(np.exp(_NORMAL_95 * ridge.log_sd[number]))
        found.append(
            replace(
                measured[op_id],
                method="in_situ",
                latency_ms=value,
                latency_lo_ms=value / spread,
                latency_hi_ms=value * spread,
            )
        )
    return tuple(found)


class _Spread:
    """Archs by a size that sums over their ops: thousands of archs are tried, and their sites have few ops."""

    def __init__(self, space: SearchSpace, size: Callable[[LayerGraph], int], rng: np.random.Generator) -> None:
        self._space, self._size = space, size
        self._sites: list[tuple[list[tuple[int, int]], tuple[OpSpec | None, ...], list[int]]] = []
        for site, ops in zip(space.sites, space.site_ops, strict=True):
            columns = [space.positions[name] for name in site.scope]
            strides = [math.prod(space.sizes[c] for c in columns[k + 1 :]) for k in range(len(columns))]
            self._sites.append((list(zip(columns, strides, strict=True)), ops, [_UNKNOWN] * len(ops)))
        self._seen: Seen = {}
        self._near = 0.0
        self.low, self.high = (self.of(self.nearest(target, rng)) for target in (0.0, _BEYOND))
        self._near = _NEAR * (self.high - self.low)

    def of(self, arch: Arch) -> float:
        """Return the size of an arch; of its ops alone, for others may have none."""
        row = arch.tolist()
        total = 0
        for columns, ops, sizes in self._sites:
            place = sum(row[column] * stride for column, stride in columns)
            if sizes[place] == _UNKNOWN:
                op = ops[place]
                sizes[place] = 0 if op is None else self._size(lower(op))
            total += sizes[place]
        return float(total)

    def nearest(self, target: float, rng: np.random.Generator) -> Arch:
        """Return an arch whose size is near `target`. Most changes lead where others led."""
        arch: Arch = self._space.sample(rng, 1)[0]
        size = self.of(arch)
        for _ in range(_TRIES):
            if abs(size - target) <= self._near:
                break
            other = arch.copy()
            variable = int(rng.integers(len(self._space.sizes)))
            other[variable] = rng.integers(self._space.sizes[variable])
            drawn = other.tobytes()
            if drawn not in self._seen:
                other = self._space.canonical(other[None])[0]
                self._seen[drawn] = (other, self.of(other)) if self._space.allowed(other[None])[0] else None
            found = self._seen[drawn]
            if found is not None and abs(found[1] - target) < abs(size - target):
                arch, size = found
        return arch
