"""What a caller asks of `collect`, `validate` and `calibrate`, what they report meanwhile, and what comes out."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lutbuilder.urls import Place
from lutbuilder_agent.records import Cache

if TYPE_CHECKING:
    from lutbuilder.campaign.calibrated import CalibrationReport
    from lutbuilder.lut import Lut
    from lutbuilder.stats.quality import ValidationReport

Phase = Literal["starting", "waiting", "preparing", "timing", "fitting", "publishing", "done"]
LEASE_ROUNDS = 24  # of some 130 that 3 minutes allow, so that loading stays below 7 % of the time
StopReason = Literal["precision", "budget", "max_rounds", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectRequest:
    """One `lutbuilder collect`. `device` is "cpu" (this machine), "simulated", or a name of lutbuilder/devices."""

    device: str = "cpu"
    space: str = "proxyless"
    runtime: str | None = None  # None: the device's default
    batch: int = 1
    threads: int | None = None  # None: the device's default
    budget_s: float = 180.0
    precision: float = 0.01  # relative half-width of the 95 % interval
    max_rounds: int = 400
    instances: int = 3
    max_ops: int | None = None  # measure so many of the missing ops at most, and impute the others; None: all
    cache: Cache | None = None  # None: the runtime's default
    carriers: int = 16  # whole networks timed along with the ops, to correct these for what a network does to them
    seed: int = 0
    luts: Place = Path("luts")
    state_dir: Path | None = None  # None: $LUTBUILDER_STATE, else the user's state folder
    listen: str | None = None  # HOST:PORT for agents; None: any port for this machine, 127.0.0.1:7070 for another
    wait_s: float | None = None  # how long to wait for an agent of a device that is not this machine; None: for ever
    lease_rounds: int = LEASE_ROUNDS  # at most, then every op is prepared anew; 0: all rounds in one preparation
    sessions: int = 1  # one after the other, each with a newly started agent, within one budget
    agents: int = 1  # how many agents, on devices of one kind, measure at once; the command waits for them
    keep_flagged: bool = False  # fit sessions, too, that a rule finds out of line with the others
    again: bool = False  # measure once more even if the table already has every op at the wanted precision
    new_conditions: bool = False  # conditions changed since the newest version: start anew, do not refuse
    accept_noisy: bool = False  # publish, marked, what fails the gate (lutbuilder.lut.lint)
    runtime_options: tuple[tuple[str, str], ...] = ()


_OPTIONS = {"batch": "bs", "budget_s": "budget", "wait_s": "wait", "runtime_options": "runtime-option"}


def command_line(request: CollectRequest, *more: str) -> str:
    """Return the command that makes this request, `more` words at its end: what a refusal tells people to type."""
    words = ["lutbuilder", "collect"]
    for field_ in fields(request):
        value = getattr(request, field_.name)
        option = "--" + _OPTIONS.get(field_.name, field_.name).replace("_", "-")
        if value == field_.default:
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, tuple):
            words += [word for name, text in value for word in (option, f"{name}={text}")]
        else:
            # The options take plain decimals only, so never 1e-05; a duration without a unit is one in seconds.
            words += [option, f"{value:.9f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)]
    return shlex.join([*words, *more])


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateRequest:
    """One `lutbuilder validate`: held-out whole networks timed in the same rounds as the ops of the LUT `lut`.

    `networks` is a file that lists them; without it `n_random` and `n_searched` are chosen by `seed`.
    """

    lut: str
    space: str | None = None  # None: the space the LUT was collected for
    n_random: int = 60
    n_searched: int = 20
    networks: Path | None = None
    save_networks: Path | None = None  # write the list there before anything is timed
    instances: int | None = None  # fresh preparations a lease; None: as many as the LUT's own plan
    rounds: int = 24
    budget_s: float = 900.0
    seed: int = 1
    lease_rounds: int = 0  # as in CollectRequest
    luts: Place = Path("luts")
    state_dir: Path | None = None
    again: bool = False  # time these very networks once more, even if this store has them timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A moment of a campaign, for a progress line. Fractions from 0 to 1; None: not known yet."""

    phase: Phase
    message: str = ""
    round: int = 0
    max_rounds: int = 0
    n_ops: int = 0
    n_precise: int = 0
    n_rotation: int | None = None  # ops that are still visited; None: all
    elapsed_s: float = 0.0
    eta_s: float | None = None
    ops_per_s: float | None = None  # visits per second
    drift: float | None = None  # machine speed over the last rounds: max / min - 1
    worst_precision: float | None = None  # widest relative half-width
    n_failed: int = 0


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOutcome:
    """The published LUT and how the campaign went."""

    lut: Lut
    published: bool  # False: nothing was missing, the LUT is the one that was there
    stop_reason: StopReason | None
    n_measured: int
    n_failed: int
    rounds: int
    wall_s: float
    timed_fraction: float | None  # share of the campaign's wall time inside timed visits
    resumed: bool
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateOutcome:
    """The report, and the LUT version that now carries it."""

    report: ValidationReport
    lut: Lut
    wall_s: float
    timed_before: bool = False  # nothing was timed now: the store had these networks timed already


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateRequest:
    """One `lutbuilder calibrate`: of the LUT `lut` by networks timed with its ops, or from `source`, the LUT of another
    device of the same class, by networks alone. One of the two is given.

    `device`, `listen`, `wait_s`, `runtime_options` and `worst` are for `source` only: `lut` says its device itself.
    """

    lut: str | None = None
    source: str | None = None
    space: str | None = None  # None: the space the LUT was collected for
    n_networks: int = 16
    device: str = "cpu"
    instances: int | None = None  # fresh preparations a lease; None: as many as the LUT's own plan
    rounds: int = 24
    lease_rounds: int = 12  # so that two leases give each network twice the instances: they are what it is known by
    budget_s: float = 600.0
    seed: int = 0
    worst: float = 0.05  # leave-one-out error above which another device's table is refused
    luts: Place = Path("luts")
    state_dir: Path | None = None
    listen: str | None = None
    wait_s: float | None = None
    runtime_options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateOutcome:
    """The report, and the LUT version that carries the calibrated rows."""

    report: CalibrationReport
    lut: Lut
    rounds: int
    wall_s: float
