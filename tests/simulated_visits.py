"""Visits of a simulated machine whose every effect is known: what the statistics are proved on.

    log t[visit] = truth[op] + instance effect + session scale + speed(time) + AR(1) noise

The speed is that of a two-state machine (slow calls take `slow` times as long, for some seconds at a time) on top of a
slow wave; an instance is one preparation of an op, and visits take instances in turn, as the agent does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutbuilder.stats.records import COLUMNS, Visits

VISIT_NS = 14_000_000  # a block is at least 12 ms


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How a simulated machine misbehaves; sigmas and the wave are of log time. Dwell and period in visits."""

    slow: float = 1.7  # measurement.md: the same op's median moves by 1.6-1.8x within seconds
    dwell: float = 60.0
    wave: float = 0.05
    wave_period: float = 700.0
    noise: float = 0.02
    rho: float = 0.5  # from one visit to the next
    instance_sigma: float = 0.01
    session_log_scales: tuple[float, ...] = (0.0,)

    def log_speed(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the log slowdown at `n` visits that follow each other, shape (n,)."""
        flips = np.cumsum(rng.random(n) < 1.0 / self.dwell) + rng.integers(2)
        wave = np.sin(2 * np.pi * (np.arange(n) / self.wave_period + rng.random()))
        log_speed: NDArray[np.float64] = np.log(self.slow) * (flips % 2) + self.wave * wave
        return log_speed

    def log_noise(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return AR(1) noise, shape (n,)."""
        from scipy.signal import lfilter

        steps = rng.standard_normal(n) * np.sqrt(1 - self.rho**2)
        steps[:1] /= np.sqrt(1 - self.rho**2)
        return self.noise * np.asarray(lfilter([1.0], [1.0, -self.rho], steps))


STEADY = Machine(slow=1.0, wave=0.0, noise=0.0, instance_sigma=0.0)


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Visits and the truth behind them: log ns of each op, log slowdown at each visit."""

    visits: Visits
    truth: NDArray[np.float64]
    log_speed: NDArray[np.float64]

    def errors(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far op effects are from the truth, in log time, one scale common to all ops taken out."""
        error = theta - self.truth
        error -= np.nanmean(error)
        return error


def simulate(
    truth: NDArray[np.float64],
    *,
    rounds: int,
    seed: int,
    machine: Machine = Machine(),
    instances: int = 3,
    interleaved: bool = True,
    session_ops: Sequence[Sequence[int]] | None = None,
) -> Simulated:
    """Return `rounds` shuffled rounds over the ops in every session.

    `truth` is log ns of each op. Not `interleaved`, each op is visited `rounds` times at one go, as plain tools
    do. `session_ops`: which ops a session visits; all of them unless given.
    """
    rng = np.random.default_rng(seed)
    sessions = [
        _session(np.asarray(ops, np.int64), truth, scale, number, rounds, machine, instances, interleaved, rng)
        for number, (scale, ops) in enumerate(
            zip(
                machine.session_log_scales,
                session_ops or [range(len(truth))] * len(machine.session_log_scales),
                strict=True,
            )
        )
    ]
    columns = {name: np.concatenate([columns[name] for columns, _ in sessions]) for name in COLUMNS}
    return Simulated(
        visits=Visits(
            op_ids=tuple(f"op{i}" for i in range(len(truth))),
            session_ids=tuple(f"s{i}" for i in range(len(sessions))),
            **columns,
        ),
        truth=truth,
        log_speed=np.concatenate([speed for _, speed in sessions]),
    )


def _session(
    ops: NDArray[np.int64],
    truth: NDArray[np.float64],
    scale: float,
    number: int,
    rounds: int,
    machine: Machine,
    instances: int,
    interleaved: bool,
    rng: np.random.Generator,
) -> tuple[dict[str, NDArray[np.int64] | NDArray[np.float64]], NDArray[np.float64]]:
    n = rounds * len(ops)
    if interleaved:
        op = np.concatenate([rng.permutation(ops) for _ in range(rounds)])
        round_, order = np.divmod(np.arange(n), len(ops))
    else:
        op = np.repeat(ops, rounds)
        order, round_ = np.divmod(np.arange(n), rounds)
    instance = round_ % instances
    effects = machine.instance_sigma * rng.standard_normal((len(truth), instances))
    speed = machine.log_speed(n, rng) + scale
    block_ns = np.exp(truth[op] + effects[op, instance] + speed + machine.log_noise(n, rng))
    n_calls = np.maximum(3, np.ceil(12e6 / block_ns)).astype(np.int64)
    columns: dict[str, NDArray[np.int64] | NDArray[np.float64]] = {
        "op": op,
        "session": np.full(n, number),
        "round": round_,
        "order": order,
        "instance": instance,
        "start_ns": np.arange(n) * VISIT_NS,
        "block_ns": block_ns,
        "p90_ns": 1.1 * block_ns,
        "n_calls": n_calls,
        "n_preempted": np.zeros(n, np.int64),
    }
    return columns, speed


def log_spread(n: int, *, low_ms: float = 0.05, high_ms: float = 5.0) -> NDArray[np.float64]:
    """Return log ns of `n` ops from `low_ms` to `high_ms`, evenly spread in log time."""
    return np.linspace(np.log(low_ms * 1e6), np.log(high_ms * 1e6), n)


def changed(visits: Visits, **columns: NDArray[np.int64] | NDArray[np.float64]) -> Visits:
    """Return visits with other columns."""
    return replace(visits, **columns)  # type: ignore[arg-type]  # mypy cannot see which column is which


def reordered(visits: Visits, places: NDArray[np.int64]) -> Visits:
    """Return the same visits in another order of rows."""
    columns: Mapping[str, NDArray[np.int64] | NDArray[np.float64]] = {
        name: getattr(visits, name)[places] for name in COLUMNS
    }
    return changed(visits, **columns)
