"""What can be wrong with a table, as rules: each a small pure function of a `Sheet`, registered in `RULES` below.

A new rule is a function that yields a `Hit` for everything it finds, and one line in `RULES`; its id is never used for
anything else again. The first line of its docstring is what `lutbuilder luts lint --rules` and docs/quality.md say.
The rules of the gate (L9xx) look at the whole table: what fails one of them is published only with --accept-noisy.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from lutbuilder.lut.lut import Lut, preferred
from lutbuilder.lut.monotone import Pair, monotone_pairs, size_inversions
from lutbuilder.lut.rows import LATENCY_FLOOR_MS
from lutbuilder.lut.schema import LutMeta, Row, measured_ops
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import SpecError

Severity = Literal["error", "warning", "info"]

WIDE = 0.10  # relative half-width of an op's interval
RETEST = 0.05
RESIDUAL = 0.10
PREEMPTED = 0.20
THROTTLED = 0.05
SESSION_SPREAD = 0.03
INSTANCES = 3  # ops differ by 1.3 to 2.3 % from one preparation to the next: one or two do not average that out
SESSIONS = 2
ON_A_LINE = 1e-7  # relative distance from the line between neighbours; a measured value comes so near once in a million
ROWS_ON_A_LINE = 3
TOO_FAST = 3.0  # times the MAC/s that the fastest tenth of the table's ops reach
TOO_SLOW = 5.0  # times slower, per MAC, than the typical op of that kind and kernel
PEERS = 5
WINOGRAD = 4.0  # times fewer multiplications than the definition asks for: F(4x4, 3x3), Lavin and Gray, CVPR 2016
SPEED_RANGE = 3.0  # of the machine within a campaign; 1.6 to 1.8 is what a shared virtual machine does
SLOWED = 0.15
TIMED = 0.5
MAPE = 0.05
DISPERSION = 0.15  # of the runs behind a published mean: 3 to 5 % in good tables
TELLING_DIGITS = 5  # of a published value: two devices agree in so many by copying, not by chance
GATE_RETEST = 0.10
GATE_WIDTH = 0.25
GATE_WITHOUT_INTERVAL = 0.5
GATE_SPEED_RANGE = 10.0
GATE_TIMED = 0.02


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What the rules look at: the rows that read, what is wrong with those that do not, and the footer.

    `others` are tables that imported rows may have been copied from.
    """

    rows: tuple[Row, ...]
    meta: LutMeta
    unreadable: tuple[str, ...] = ()
    others: tuple[Lut, ...] = ()

    @classmethod
    def of(cls, lut: Lut, *, others: Sequence[Lut] = ()) -> Sheet:
        """Read a table row by row, so that one bad row does not hide the others."""
        rows: list[Row] = []
        unreadable: list[str] = []
        for number, values in enumerate(lut.table.to_pylist()):
            try:
                rows.append(Row(**values))
            except SpecError as error:
                unreadable.append(f"row {number}: {error}")
        return cls(rows=tuple(rows), meta=lut.meta, unreadable=tuple(unreadable), others=tuple(others))

    @cached_property
    def measured(self) -> tuple[Row, ...]:
        """Measured ops; call overheads, differences of a few microseconds, are judged by the ops they enter."""
        return measured_ops(self.rows)

    @cached_property
    def visited(self) -> tuple[Row, ...]:
        """Those of them that rest on visits."""
        return tuple(row for row in self.measured if row.n_visits)

    @cached_property
    def imported(self) -> tuple[Row, ...]:
        """Rows of published tables that were measured, as far as those say."""
        return tuple(row for row in self.rows if row.status == "imported" and row.latency_ms is not None)

    @cached_property
    def served(self) -> Mapping[str, Row]:
        """The row a lookup takes, by op_id."""
        return preferred(self.rows)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Pairs of rows that say whether cost grows with size."""
        return monotone_pairs(self.measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What a rule found: of one row, or of the whole table; the figure that is wrong and the threshold it crossed."""

    message: str
    row: Row | None = None
    figure: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule: an id that never changes its meaning, how bad it is, and the function that looks."""

    id: str
    severity: Severity
    check: Callable[[Sheet], Iterable[Hit]]

    @property
    def name(self) -> str:
        """The function's name, as words."""
        return self.check.__name__.strip("_").replace("_", "-")

    @property
    def what(self) -> str:
        """What the rule says, in one line."""
        return (self.check.__doc__ or "").strip().splitlines()[0]

    @property
    def gate(self) -> bool:
        """Whether a table that fails it is published only with --accept-noisy."""
        return self.id.startswith("L9")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing a rule found. `op_id` and `op` name the row; None: the whole table."""

    rule: str
    severity: Severity
    message: str
    op_id: str | None = None
    op: str | None = None
    figure: float | None = None
    threshold: float | None = None


def lint(sheet: Sheet, *, rules: Sequence[Rule] | None = None) -> tuple[Finding, ...]:
    """Return everything the rules find, worst first, then by rule and in the table's order. Pure."""
    rank = {"error": 0, "warning": 1, "info": 2}
    found = [_finding(rule, hit) for rule in (RULES if rules is None else rules) for hit in rule.check(sheet)]
    return tuple(sorted(found, key=lambda finding: (rank[finding.severity], finding.rule)))


def failed_gate(rows: Sequence[Row], meta: LutMeta) -> tuple[Finding, ...]:
    """Return why a version with these rows and this footer is not published without --accept-noisy; () if it is."""
    return lint(Sheet(rows=tuple(rows), meta=meta), rules=[rule for rule in RULES if rule.gate])


def _finding(rule: Rule, hit: Hit) -> Finding:
    return Finding(
        rule=rule.id,
        severity=rule.severity,
        message=hit.message,
        op_id=None if hit.row is None else hit.row.op_id,
        op=None if hit.row is None else hit.row.op.label(),
        figure=hit.figure,
        threshold=hit.threshold,
    )


def _above(rows: Iterable[Row], column: str, threshold: float, words: str) -> Iterator[Hit]:
    """Yield a hit for every row whose column is above the threshold; `words` has a place for the figure."""
    for row in rows:
        figure = getattr(row, column)
        if figure is not None and figure > threshold:
            yield Hit(
                row=row, figure=figure, threshold=threshold, message=f"{words.format(figure)} (> {threshold:.0%})"
            )


# --- Values


def unreadable_row(sheet: Sheet) -> Iterator[Hit]:
    """A row holds what no row may hold: a negative or zero latency, an interval beside its value, a foreign op_id."""
    for told in sheet.unreadable:
        yield Hit(message=told)


def at_the_floor(sheet: Sheet) -> Iterator[Hit]:
    """An op's latency cannot be told from its call overhead: the value is a floor, not a measurement."""
    for row in sheet.measured:
        if row.latency_ms is not None and row.latency_ms <= LATENCY_FLOOR_MS:
            yield Hit(row=row, figure=row.latency_ms, threshold=LATENCY_FLOOR_MS, message="latency is a floor")


def duplicated_value(sheet: Sheet) -> Iterator[Hit]:
    """Two measured ops have the very same latency and interval: one was copied from the other."""
    alike: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in sheet.measured:
        if row.latency_ms is not None and row.latency_ms > LATENCY_FLOOR_MS:
            alike[(row.latency_ms, row.latency_lo_ms, row.latency_hi_ms, row.p90_ms)].append(row)
    for rows in alike.values():
        first = rows[0]
        for row in rows[1:]:
            if row.op_id != first.op_id:
                yield Hit(row=row, figure=row.latency_ms, message=f"verbatim the value of {first.op.label()}")


def hidden_imputation(sheet: Sheet) -> Iterator[Hit]:
    """Rows that claim to be measured lie exactly on the line between their neighbours in channels: they are imputed."""
    found: dict[str, Row] = {}
    for group in _channel_lines(sheet.measured):
        for (x0, before), (x, row), (x1, after) in zip(group, group[1:], group[2:], strict=False):
            line = _ms(before) + (_ms(after) - _ms(before)) * (x - x0) / (x1 - x0)
            if abs(_ms(row) - line) <= ON_A_LINE * line:
                found[row.op_id] = row
    if len(found) >= ROWS_ON_A_LINE:
        rows = list(found.values())
        yield Hit(
            row=rows[0],
            figure=len(rows),
            threshold=ROWS_ON_A_LINE,
            message=f"{len(rows)} of {len(sheet.measured)} measured rows lie on lines between neighbours, this one too",
        )


def status_contradicts_visits(sheet: Sheet) -> Iterator[Hit]:
    """A row is imputed and claims visits, claims to be imputed and measured at once, or is measured without a visit."""
    for row in sheet.rows:
        if row.method == "imputed" and row.n_visits:
            yield Hit(row=row, figure=row.n_visits, threshold=0, message=f"imputed, but claims {row.n_visits} visits")
        elif row.method == "imputed" and row.evidence == "measured":
            yield Hit(row=row, message="imputed, but its evidence says measured")
        elif row.status == "measured" and not row.n_visits:
            yield Hit(row=row, figure=0, threshold=1, message="measured, but rests on no visit")


# --- How well a row is known


def no_interval(sheet: Sheet) -> Iterator[Hit]:
    """A measured op has no interval: it had fewer than 6 rounds."""
    for row in sheet.measured:
        if row.half_width is None:
            yield Hit(row=row, figure=row.n_rounds, threshold=6, message=f"no interval after {row.n_rounds} rounds")


def wide_interval(sheet: Sheet) -> Iterator[Hit]:
    """An op's 95 % interval is wider than ±10 %."""
    return _above(sheet.measured, "half_width", WIDE, "±{:.1%}")


def even_against_odd_rounds(sheet: Sheet) -> Iterator[Hit]:
    """Even and odd rounds of an op disagree by more than 5 %."""
    return _above(sheet.measured, "test_retest", RETEST, "even and odd rounds differ by {:.1%}")


def residual_spread(sheet: Sheet) -> Iterator[Hit]:
    """Single visits of an op spread by more than 10 % after the machine's drift is taken out."""
    return _above(sheet.measured, "residual_mad", RESIDUAL, "visits spread by {:.1%}")


def bimodal(sheet: Sheet) -> Iterator[Hit]:
    """An op's visits fall into two groups: one number does not describe it."""
    for row in sheet.measured:
        if row.bimodal:
            yield Hit(row=row, message="visits fall into two groups")


def preempted(sheet: Sheet) -> Iterator[Hit]:
    """More than 20 % of an op's calls lost their core."""
    return _above(sheet.measured, "preempted_fraction", PREEMPTED, "{:.0%} of the calls were preempted")


def throttled(sheet: Sheet) -> Iterator[Hit]:
    """More than 5 % of an op's calls ran while the device throttled."""
    return _above(sheet.measured, "throttled_fraction", THROTTLED, "{:.0%} of the calls ran throttled")


def not_settled(sheet: Sheet) -> Iterator[Hit]:
    """An op was still warming up when its calls began to count."""
    for row in sheet.measured:
        if row.settled is False:
            yield Hit(row=row, message="warm-up had not ended when calls began to count")


def few_instances(sheet: Sheet) -> Iterator[Hit]:
    """Ops rest on fewer than 3 fresh preparations: where memory happened to lie is in their value."""
    return _few(sheet.visited, "n_instances", INSTANCES, "preparation(s)")


def one_session(sheet: Sheet) -> Iterator[Hit]:
    """Ops rest on one session: what differs from session to session is not in their intervals."""
    return _few(sheet.visited, "n_sessions", SESSIONS, "session(s)")


def session_spread(sheet: Sheet) -> Iterator[Hit]:
    """An op's sessions differ by more than 3 % after their common scale is taken out."""
    return _above(sheet.measured, "session_sd", SESSION_SPREAD, "sessions spread by {:.1%}")


# --- What cannot be


def monotonicity(sheet: Sheet) -> Iterator[Hit]:
    """An op is faster than one that differs from it only by a smaller kernel, expansion, width or fewer bits."""
    for pair in sheet.pairs:
        if pair.violated:
            yield Hit(
                row=pair.larger,
                figure=_ms(pair.larger),
                threshold=_ms(pair.smaller),
                message=f"{_ms(pair.larger):.4f} ms, faster than {pair.smaller.op.label()} with less {pair.what} "
                f"({_ms(pair.smaller):.4f} ms); {len(sheet.pairs)} pairs were compared",
            )


def faster_than_the_table(sheet: Sheet) -> Iterator[Hit]:
    """An op computes more than 3 times as many MAC/s as the fastest tenth of the table: not all of it was timed."""
    rates = _rates(sheet.measured)
    if len(rates) < 2 * PEERS:
        return
    ranked = sorted(rates.values())
    limit = TOO_FAST * ranked[int(0.9 * (len(ranked) - 1))]
    for row in sheet.measured:
        rate = rates.get(row.op_id)
        if rate is not None and rate > limit:
            told = f"{rate:.1f} GMAC/s, the table's fastest tenth reaches {limit / TOO_FAST:.1f}"
            yield Hit(row=row, figure=rate, threshold=limit, message=told)


def above_the_peak(sheet: Sheet) -> Iterator[Hit]:
    """An op computes more MAC/s than the device can: it was not run, or not waited for."""
    from lutbuilder import devices

    known = [devices.get(name) for name in devices.names()]
    peaks = [d.peak_gmacs for d in known if d.peak_gmacs is not None and d.matches(sheet.meta.fingerprint)]
    rates = _rates(sheet.measured)
    for row in sheet.measured if peaks else ():
        limit = min(peaks) * (WINOGRAD if row.kind == "conv" and row.kernel > 1 else 1.0)
        rate = rates.get(row.op_id, 0.0)
        if rate > limit:
            told = f"{rate:.0f} GMAC/s, the device can do {limit:.0f}"
            yield Hit(row=row, figure=rate, threshold=limit, message=told)


def slower_than_its_kind(sheet: Sheet) -> Iterator[Hit]:
    """An op needs more than 5 times as long per MAC as the typical op of its kind and kernel."""
    rates = _rates(sheet.measured)
    peers: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in sheet.measured:
        if row.op_id in rates:
            peers[(row.kind, row.kernel)].append(row)
    for rows in peers.values():
        typical = median(rates[row.op_id] for row in rows)
        for row in rows if len(rows) >= PEERS else ():
            if rates[row.op_id] * TOO_SLOW < typical:
                told = f"{rates[row.op_id]:.2f} GMAC/s, ops of its kind and kernel reach {typical:.2f}"
                yield Hit(row=row, figure=rates[row.op_id], threshold=typical / TOO_SLOW, message=told)


def gross_value(sheet: Sheet) -> Iterator[Hit]:
    """A measured op has no call overhead beside it: a sum of such rows counts the overhead of every call."""
    for row in sheet.measured:
        if row.call_overhead_ms is None:
            yield Hit(row=row, message="no call overhead beside it")


# --- The campaign


def machine_speed_range(sheet: Sheet) -> Iterator[Hit]:
    """The machine's speed moved by more than a factor of 3 within the campaign."""
    return _speed_range(sheet, SPEED_RANGE)


def slowed_down(sheet: Sheet) -> Iterator[Hit]:
    """The machine was slower by 15 % in the campaign's last third than in its first: it throttles."""
    speeds = [speed for _, speed in sheet.meta.drift_trace]
    third = len(speeds) // 3
    if third >= 5:
        lost = 1.0 - median(speeds[-third:]) / median(speeds[:third])
        if lost > SLOWED:
            yield Hit(figure=lost, threshold=SLOWED, message=f"the last third ran {lost:.0%} slower than the first")


def flagged_session(sheet: Sheet) -> Iterator[Hit]:
    """A session is out of line with the others and still part of the table."""
    for report in sheet.meta.session_reports:
        if report.flagged and not report.excluded:
            yield Hit(figure=report.sentinel_residual, message=f"session {report.session_id}: {report.reason}")


def excluded_session(sheet: Sheet) -> Iterator[Hit]:
    """A session was out of line with the others and left out by rule."""
    for report in sheet.meta.session_reports:
        if report.excluded:
            yield Hit(figure=report.sentinel_residual, message=f"session {report.session_id}: {report.reason}")


def little_timed(sheet: Sheet) -> Iterator[Hit]:
    """Less than half of the campaign's time was spent inside timed visits."""
    return _timed(sheet, TIMED)


# --- What is there


def incomplete_space(sheet: Sheet) -> Iterator[Hit]:
    """The table says it covers a space, and lacks rows of it."""
    for name in sheet.meta.spaces:
        try:
            wanted = _space_ops(name, sheet.meta.target.batch)
        except SpecError:
            yield Hit(message=f"space {name!r} is not known to this lutbuilder")
            continue
        there = sum(op.op_id in sheet.served for op in wanted)
        if there < len(wanted):
            told = f"{name}: {there} of {len(wanted)} ops have a row"
            yield Hit(figure=there / len(wanted), threshold=1.0, message=told)


def other_space(sheet: Sheet) -> Iterator[Hit]:
    """The table has rows of a space it does not claim to cover."""
    from lutbuilder import spaces

    left = {row.op for row in sheet.served.values() if row.kind != "identity"}
    for name in sheet.meta.spaces:
        with suppress(SpecError):  # of a space that is not known: the rule above says so
            left.difference_update(_space_ops(name, sheet.meta.target.batch))
    if not left:  # as for nearly every table: spaces share ops, and none but the claimed ones is built
        return
    for name in spaces.names():
        wanted = _space_ops(name, sheet.meta.target.batch)
        there = len(left.intersection(wanted))
        if there and name not in sheet.meta.spaces:
            told = f"{name}: {there} of {len(wanted)} ops have a row"
            yield Hit(figure=there / len(wanted), threshold=1.0, message=told)


def failed_row(sheet: Sheet) -> Iterator[Hit]:
    """An op failed: networks with it have no predicted latency."""
    for row in sheet.served.values():
        if row.status == "failed":
            yield Hit(row=row, message=f"failed: {row.reason}")


def unsupported_row(sheet: Sheet) -> Iterator[Hit]:
    """The engine does not support an op: networks with it have no predicted latency."""
    for row in sheet.served.values():
        if row.status == "unsupported":
            yield Hit(row=row, message=f"unsupported: {row.reason}")


# --- Validation and calibration


def not_validated(sheet: Sheet) -> Iterator[Hit]:
    """Nobody has checked this version against whole networks."""
    if sheet.meta.validation is None:
        yield Hit(message="no validation in this version: lutbuilder validate")


def validation_out_of_date(sheet: Sheet) -> Iterator[Hit]:
    """The validation speaks of another version of the table, or cannot be read any more."""
    report = _report(sheet.meta)
    if isinstance(report, str):
        yield Hit(message=f"the validation cannot be read ({report}): lutbuilder validate")
    elif report is not None and report.table:
        name, _, version = report.table.rpartition("@")
        of_this = name == sheet.meta.name and version in (str(sheet.meta.version), str(sheet.meta.parent_version))
        if not of_this:
            yield Hit(message=f"the validation is of {report.table}: lutbuilder validate")


def predicts_badly(sheet: Sheet) -> Iterator[Hit]:
    """Sums of the table's rows miss whole networks by more than 5 % on average."""
    report = _report(sheet.meta)
    if report is not None and not isinstance(report, str) and report.lut_sum.mape.value > MAPE:
        figure = report.lut_sum.mape.value
        yield Hit(figure=figure, threshold=MAPE, message=f"MAPE {figure:.1%} over {report.lut_sum.n} networks")


def validated_on_fitted(sheet: Sheet) -> Iterator[Hit]:
    """The validation used networks that the table was fitted to: it proves nothing about others."""
    report = _report(sheet.meta)
    if report is not None and not isinstance(report, str):
        both = {network.op_id for network in report.networks} & set(sheet.meta.fitted_networks)
        if both:
            yield Hit(figure=len(both), threshold=0, message=f"{len(both)} of {len(report.networks)} networks")


def calibrated_without_record(sheet: Sheet) -> Iterator[Hit]:
    """Rows are calibrated, and the footer does not say how."""
    n = sum(row.status == "calibrated" for row in sheet.rows)
    if n and sheet.meta.calibration is None:
        yield Hit(figure=n, threshold=0, message=f"{n} calibrated rows, no calibration in the footer")


# --- Published tables


def copied_from(sheet: Sheet) -> Iterator[Hit]:
    """An imported row has the very value that another device's table has for that op: it was copied from there."""
    for other in sheet.others:
        if other.meta.target.device == sheet.meta.target.device:
            continue
        theirs = {row.op_id: row.latency_ms for row in other.rows() if row.evidence == "imported"}
        same = [row for row in sheet.imported if theirs.get(row.op_id) == row.latency_ms and _is_telling(row)]
        for row in same:
            told = f"copied-from {other.name}@{other.version}, as {len(same)} of {len(sheet.imported)} rows"
            yield Hit(row=row, figure=row.latency_ms, message=told)


def larger_is_faster(sheet: Sheet) -> Iterator[Hit]:
    """Imported ops of a larger kernel or expansion are faster than those of a smaller one."""
    n_pairs, n_inverted = size_inversions(sheet.imported)
    if n_inverted:
        told = f"in {n_inverted} of {n_pairs} pairs that differ in kernel or expansion alone the larger is faster"
        yield Hit(figure=n_inverted, threshold=0, message=told)


def wide_dispersion(sheet: Sheet) -> Iterator[Hit]:
    """The runs behind imported means spread by more than 15 %."""
    spreads = [
        row.imported_std_ms / _ms(row) for row in sheet.imported if row.imported_std_ms is not None and row.latency_ms
    ]
    n_wide = sum(spread > DISPERSION for spread in spreads)
    if n_wide:
        told = f"{n_wide} of {len(spreads)} rows spread by more than {DISPERSION:.0%}: median {median(spreads):.0%}, "
        yield Hit(figure=median(spreads), threshold=DISPERSION, message=f"{told}most {max(spreads):.0%}")


def unknown_method(sheet: Sheet) -> Iterator[Hit]:
    """Nobody says whether imported values are of ops alone or inside networks: sums of them may be of either."""
    n = sum(row.method is None for row in sheet.imported)
    if n:
        yield Hit(figure=n, threshold=0, message=f"{n} of {len(sheet.imported)} imported rows; import with --method")


def no_clock(sheet: Sheet) -> Iterator[Hit]:
    """Imported cycles have no clock: such rows have no latency."""
    n = sum(row.status == "imported" and row.latency_ms is None for row in sheet.rows)
    if n:
        yield Hit(figure=n, threshold=0, message=f"{n} rows have cycles alone; import with --clock-mhz")


# --- The gate


def gate_test_retest(sheet: Sheet) -> Iterator[Hit]:
    """Gate: even and odd rounds of the typical op disagree by more than 10 %."""
    known = [row.test_retest for row in sheet.visited if row.test_retest is not None]
    figure = median(known) if known else 0.0
    if figure > GATE_RETEST:
        told = f"even and odd rounds of the typical op differ by {figure:.1%} (> {GATE_RETEST:.0%})"
        yield Hit(figure=figure, threshold=GATE_RETEST, message=told)


def gate_wide_intervals(sheet: Sheet) -> Iterator[Hit]:
    """Gate: the typical op's 95 % interval is wider than ±25 %."""
    known = [row.half_width for row in sheet.visited if row.half_width is not None]
    figure = median(known) if known else 0.0
    if figure > GATE_WIDTH:
        told = f"the typical op is known to ±{figure:.0%} (> {GATE_WIDTH:.0%})"
        yield Hit(figure=figure, threshold=GATE_WIDTH, message=told)


def gate_no_intervals(sheet: Sheet) -> Iterator[Hit]:
    """Gate: more than half of the measured ops have no interval."""
    without = sum(row.half_width is None for row in sheet.visited)
    if without > GATE_WITHOUT_INTERVAL * len(sheet.visited):
        told = f"{without} of {len(sheet.visited)} measured ops have no interval: fewer than 6 rounds"
        yield Hit(figure=without / len(sheet.visited), threshold=GATE_WITHOUT_INTERVAL, message=told)


def gate_speed_range(sheet: Sheet) -> Iterator[Hit]:
    """Gate: the machine's speed moved by more than a factor of 10 within the campaign."""
    return _speed_range(sheet, GATE_SPEED_RANGE)


def gate_little_timed(sheet: Sheet) -> Iterator[Hit]:
    """Gate: less than 2 % of the campaign's time was spent inside timed visits."""
    return _timed(sheet, GATE_TIMED)


RULES: tuple[Rule, ...] = (
    Rule(id="L001", severity="error", check=unreadable_row),
    Rule(id="L002", severity="warning", check=at_the_floor),
    Rule(id="L003", severity="warning", check=duplicated_value),
    Rule(id="L004", severity="error", check=hidden_imputation),
    Rule(id="L005", severity="error", check=status_contradicts_visits),
    Rule(id="L101", severity="warning", check=no_interval),
    Rule(id="L102", severity="warning", check=wide_interval),
    Rule(id="L103", severity="warning", check=even_against_odd_rounds),
    Rule(id="L104", severity="warning", check=residual_spread),
    Rule(id="L105", severity="warning", check=bimodal),
    Rule(id="L106", severity="warning", check=preempted),
    Rule(id="L107", severity="warning", check=throttled),
    Rule(id="L108", severity="warning", check=not_settled),
    Rule(id="L109", severity="warning", check=few_instances),
    Rule(id="L110", severity="info", check=one_session),
    Rule(id="L111", severity="warning", check=session_spread),
    Rule(id="L201", severity="warning", check=monotonicity),
    Rule(id="L202", severity="warning", check=faster_than_the_table),
    Rule(id="L203", severity="warning", check=slower_than_its_kind),
    Rule(id="L204", severity="error", check=above_the_peak),
    Rule(id="L205", severity="warning", check=gross_value),
    Rule(id="L301", severity="warning", check=machine_speed_range),
    Rule(id="L302", severity="info", check=slowed_down),
    Rule(id="L303", severity="warning", check=flagged_session),
    Rule(id="L304", severity="info", check=excluded_session),
    Rule(id="L305", severity="warning", check=little_timed),
    Rule(id="L401", severity="error", check=incomplete_space),
    Rule(id="L402", severity="info", check=other_space),
    Rule(id="L403", severity="warning", check=failed_row),
    Rule(id="L404", severity="info", check=unsupported_row),
    Rule(id="L501", severity="info", check=not_validated),
    Rule(id="L502", severity="warning", check=validation_out_of_date),
    Rule(id="L503", severity="warning", check=predicts_badly),
    Rule(id="L504", severity="error", check=validated_on_fitted),
    Rule(id="L505", severity="warning", check=calibrated_without_record),
    Rule(id="L601", severity="warning", check=copied_from),
    Rule(id="L602", severity="warning", check=larger_is_faster),
    Rule(id="L603", severity="warning", check=wide_dispersion),
    Rule(id="L604", severity="info", check=unknown_method),
    Rule(id="L605", severity="info", check=no_clock),
    Rule(id="L901", severity="error", check=gate_test_retest),
    Rule(id="L902", severity="error", check=gate_wide_intervals),
    Rule(id="L903", severity="error", check=gate_no_intervals),
    Rule(id="L904", severity="error", check=gate_speed_range),
    Rule(id="L905", severity="error", check=gate_little_timed),
)


def _ms(row: Row) -> float:
    return math.nan if row.latency_ms is None else row.latency_ms


def _is_telling(row: Row) -> bool:
    digits = repr(row.imported_value).partition("e")[0].replace(".", "").strip("0-")
    return len(digits) >= TELLING_DIGITS


def _few(rows: Sequence[Row], column: str, threshold: int, words: str) -> Iterator[Hit]:
    counts = [getattr(row, column) for row in rows]
    n_few = sum(count < threshold for count in counts)
    if n_few:
        told = f"{n_few} of {len(rows)} ops rest on fewer than {threshold} {words}, the least on {min(counts)}"
        yield Hit(figure=min(counts), threshold=threshold, message=told)


def _rates(rows: Iterable[Row]) -> dict[str, float]:
    """Return GMAC/s by op_id, of rows whose latency is more than a floor."""
    return {
        row.op_id: row.macs / row.latency_ms / 1e6
        for row in rows
        if row.macs and row.latency_ms is not None and row.latency_ms > LATENCY_FLOOR_MS
    }


def _channel_lines(rows: Iterable[Row]) -> Iterator[list[tuple[int, Row]]]:
    """Yield groups of rows that differ in one count of channels only, sorted by it, with that count.

    A depthwise convolution has one count of channels in three columns.
    """
    lines: dict[tuple[Any, ...], list[tuple[int, Row]]] = defaultdict(list)
    for row in rows:
        op = row.op
        if row.kind == "conv" and row.groups == row.in_channels == row.out_channels:
            varied: tuple[tuple[str, ...], ...] = (("in_channels", "out_channels", "groups"),)
        else:
            varied = (("in_channels",), ("mid_channels",), ("out_channels",))
        for names in varied:
            rest = {name: value for name, value in op.canonical().items() if name not in names}
            place = (getattr(row, names[0]), row)
            lines[(names, row.method, tuple(sorted(rest.items())))].append(place)
    for line in lines.values():
        line.sort(key=lambda place: place[0])
        if len(line) >= 3 and all(a < b for (a, _), (b, _) in pairwise(line)):
            yield line


def _speed_range(sheet: Sheet, threshold: float) -> Iterator[Hit]:
    speeds = sorted(speed for _, speed in sheet.meta.drift_trace)
    if len(speeds) >= 20:  # fewer points have no 2 % to leave out at either end
        cut = len(speeds) // 50
        figure = speeds[-1 - cut] / max(speeds[cut], 1e-9)
        if figure > threshold:
            told = f"the machine's speed moved by a factor of {figure:.1f} (> {threshold:g})"
            yield Hit(figure=figure, threshold=threshold, message=told)


def _timed(sheet: Sheet, threshold: float) -> Iterator[Hit]:
    figure = sheet.meta.quality.timed_fraction
    if figure is not None and figure < threshold:
        told = f"{figure:.1%} of the campaign's time was timed (< {threshold:.0%})"
        yield Hit(figure=figure, threshold=threshold, message=told)


@lru_cache(maxsize=64)
def _space_ops(name: str, batch: int) -> tuple[OpSpec, ...]:
    """Return the ops of a space; cached, the width grids have twenty thousand."""
    from lutbuilder import spaces

    return spaces.get(name, batch=batch).ops()


def _report(meta: LutMeta) -> Any:
    """Return the validation as a ValidationReport, the reason why it cannot be read, or None without one."""
    from lutbuilder.stats.quality import ValidationReport

    if meta.validation is None:
        return None
    try:
        return ValidationReport.from_json(meta.validation)
    except SpecError as error:
        return str(error)
