"""What a caller asks of `collect` and `validate`, what they report meanwhile, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lutbuilder_agent.records import Cache

if TYPE_CHECKING:
    from lutbuilder.lut import Lut
    from lutbuilder.stats.quality import ValidationReport

Phase = Literal["starting", "waiting", "preparing", "timing", "fitting", "publishing", "done"]
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
    cache: Cache | None = None  # None: the runtime's default
    seed: int = 0
    luts: Path = Path("luts")
    state_dir: Path | None = None  # None: $LUTBUILDER_STATE, else the user's state folder
    listen: str | None = None  # HOST:PORT for agents; None: any port for this machine, 127.0.0.1:7070 for another
    wait_s: float | None = None  # how long to wait for an agent of a device that is not this machine; None: for ever
    again: bool = False  # measure once more even if the table already has every op at the wanted precision
    new_conditions: bool = False  # conditions changed since the newest version: start anew, do not refuse
    runtime_options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateRequest:
    """One `lutbuilder validate`: held-out whole networks timed in the same rounds as the ops of the LUT `lut`."""

    lut: str
    space: str | None = None  # None: the space the LUT was collected for
    n_random: int = 60
    n_searched: int = 20
    rounds: int = 24
    budget_s: float = 900.0
    seed: int = 1
    luts: Path = Path("luts")
    state_dir: Path | None = None
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A moment of a campaign, for a progress line. Fractions from 0 to 1; None: not known yet."""

    phase: Phase
    message: str = ""
    round: int = 0
    max_rounds: int = 0
    n_ops: int = 0
    n_precise: int = 0
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
