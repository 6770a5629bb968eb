"""`luts rebuild`: a table made again from the visits that lie beside its versions, with the statistics of today.

Every version that led to the wanted one is fitted again, from its own visits, and merged as it was when it was
published. So equal code makes equal rows, bit by bit, and better code gives all of them what it is better at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from lutbuilder.campaign.calibrated import refitted
from lutbuilder.campaign.draft import fitted
from lutbuilder.campaign.evidence import Evidence, visits_of
from lutbuilder.lut import Lut, merge, preferred
from lutbuilder.lut.calibrated import SOURCES
from lutbuilder.lut.folder import SAMPLES, folder_at, key, version_of
from lutbuilder.lut.lut import collect_command
from lutbuilder.lut.merge import conflicting
from lutbuilder.lut.schema import LutMeta, Row, rows_to_table
from lutbuilder.lut.store import Samples, open_samples, publish_instead, write_samples
from lutbuilder_agent import __version__  # one version for both distributions
from lutbuilder_agent.errors import LutCorrupt, LutNotFound, SamplesMissing, SpecError

if TYPE_CHECKING:
    from lutbuilder.op import OpSpec
    from lutbuilder.urls import Place

OnStep = Callable[[str], None]  # is told what is done next


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """The new version, and how it differs from the one it was made of.

    `steps`: the versions that were fitted again, oldest first; `n_visits`: behind the largest of these fits.
    `identical`: every row in every column. `changed`: lookups whose latency differs, by op_id: new / old, None where
    one has none. `validation_left`: the old one's validation speaks of rows that have changed.
    """

    lut: Lut
    source: Lut
    steps: tuple[int, ...]
    n_visits: int
    identical: bool
    changed: dict[str, float | None]
    validation_left: bool


def rebuild(
    spec: str, *, luts: Place = Path("luts"), accept_noisy: bool = False, on_step: OnStep = lambda _: None
) -> Rebuilt:
    """Fit a version of a table again from the visits beside it and those before it, and publish what comes out.

    The new version's parent is the one that was rebuilt; versions published after that one are not part of it. Nothing
    is measured, and no campaign store is read. Raises SamplesMissing naming what is not there; LutNotFound, LutCorrupt;
    LutConflict if somebody publishes meanwhile; LutNoisy without `accept_noisy`.
    """
    source = Lut.load(spec, folder=luts)
    if version_of(source.path) != source.version:
        raise LutNotFound(f"{source.path} is a file, not a version of a table: its visits have no place beside it")
    newest = folder_at(source.path.parent).versions("")[-1]
    made: Lut | None = None
    before: Lut | None = None
    last: Samples | None = None
    steps: list[int] = []
    n_visits = 0
    for version in _line(source):
        own = _own_rows(version, before)
        samples = _samples(version, own)
        on_step(f"fitting version {version.version}" if samples else f"taking over version {version.version}")
        rows, meta, seen = _again(version, made, samples, own)
        if samples is not None:
            steps.append(version.version)
            last, n_visits = samples, max(n_visits, seen)
        made, before = Lut(table=rows_to_table(rows), meta=meta, path=version.path), version
    if made is None or last is None:
        raise SamplesMissing(
            f"no row of {source.spec} was measured here: there is nothing to fit again. Measure: {_collect(source)}"
        )
    _check_complete(made, source)
    on_step("publishing")
    identical = made.table.equals(source.table)
    lut = publish_instead(
        made.rows(),
        replace(
            made.meta,
            tool_version=__version__,
            created=datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
            validation=source.meta.validation if identical else None,
        ),
        parent=source,
        newest=newest,
        accept_noisy=accept_noisy,
    )
    write_samples(last.visits(), lut=lut, fit=last.fit)
    return Rebuilt(
        lut=lut,
        source=source,
        steps=tuple(steps),
        n_visits=n_visits,
        identical=identical,
        changed=dict(_changed(made, source)),
        validation_left=source.meta.validation is not None and not identical,
    )


# --- One version after the other


def _line(source: Lut) -> tuple[Lut, ...]:
    """Return the versions that `source` rests on, oldest first, itself last: up to where conditions began anew."""
    line = [source]
    while (number := line[-1].meta.parent_version) is not None:
        child = line[-1]
        path = child.path.parent / key("", number)
        try:
            parent = Lut.load(path)
        except LutNotFound:
            break  # whether anything of it is needed shows in the end
        if conflicting(parent.meta, child.meta):
            break
        if parent.meta.content_sha256 != child.meta.parent_sha256:
            raise LutCorrupt(
                f"{path} is not the version {number} that {child.spec} was made from: it was replaced. Restore it (git "
                f"checkout, a copy), or measure anew: {_collect(source)}"
            )
        line.append(parent)
    return tuple(reversed(line))


def _own_rows(version: Lut, before: Lut | None) -> tuple[Row, ...]:
    """Return the rows that came with a version: those of the one before it have them not, or not with these values."""
    old = set() if before is None else set(before.rows())
    return tuple(row for row in version.rows() if row not in old)


def _samples(version: Lut, own: Iterable[Row]) -> Samples | None:
    """Return the visits beside a version; None where there are none and none of its `own` rows rests on any."""
    try:
        samples = open_samples(version)
    except LutNotFound as error:
        n = len({row.op_id for row in own if row.n_visits})
        if not n:
            return None
        path = version.path.parent / SAMPLES / version.path.name
        raise SamplesMissing(
            f"{n} ops of {version.spec} were measured for it, and {path} with their visits is not there. Copy it from "
            f"where the table was published, or measure anew: {_collect(version)}"
        ) from error
    if samples.fit is None:
        raise SamplesMissing(
            f"{samples.path} has the visits of {version.spec}, but an earlier lutbuilder wrote it, which did not keep "
            "beside them of which pairs and networks they are, what failed and who measured. Measure anew: "
            f"{_collect(version)}"
        )
    return samples


def _again(
    version: Lut, base: Lut | None, samples: Samples | None, own: Iterable[Row]
) -> tuple[tuple[Row, ...], LutMeta, int]:
    """Return rows and footer of a version made again on top of `base`, and how many visits were fitted for it."""
    record = version.meta.calibration
    follows = record is not None and SOURCES in record  # calibrated rows correct rows of this very table
    # What a fit of the visits does not give: imported rows, and those taken over from another device's table.
    kept = [
        row
        for row in own
        if row.evidence != "measured" and not (follows and row.method == "calibrated") and not _imputed(row, samples)
    ]
    meta = replace(version.meta, validation=None, calibration=None if follows else record)
    if samples is None:
        return *merge(base, kept, meta, new_conditions=True), 0
    try:
        evidence = Evidence.from_json(samples.fit or {})
        visits = visits_of(samples.visits(), evidence)
    except SpecError as error:
        raise LutCorrupt(f"{samples.path} is damaged ({error}). Restore it, or: {_collect(version)}") from error
    draft = fitted(
        evidence,
        visits,
        samples.visits(),
        meta,
        impute=_space_ops(evidence, version),
    )
    draft = refitted(draft, base, record=record if follows else None, new_conditions=True)
    return *merge(base, (*draft.rows, *kept), draft.meta, new_conditions=True), len(visits)


def _imputed(row: Row, samples: Samples | None) -> bool:
    """Whether a fit of the visits imputes the row again."""
    return row.method == "imputed" and samples is not None and bool((samples.fit or {}).get("imputed_space"))


def _space_ops(evidence: Evidence, version: Lut) -> tuple[OpSpec, ...]:
    from lutbuilder import spaces

    if not evidence.imputed_space:
        return ()
    return tuple(spaces.get(evidence.imputed_space, batch=version.meta.target.batch).ops())


# --- What came out


def _check_complete(made: Lut, source: Lut) -> None:
    lost = {row.op_id for row in source.rows()} - {row.op_id for row in made.rows()}
    what = [f"{len(lost)} ops"] if lost else []
    what += ["the calibration"] if source.meta.calibration is not None and made.meta.calibration is None else []
    if what:
        raise SamplesMissing(
            f"{' and '.join(what)} of {source.spec} cannot be made of the visits beside it and beside the versions "
            "before it that are there. Put missing ones back (git checkout, a copy), or measure anew: "
            f"{_collect(source)}"
        )


def _changed(made: Lut, source: Lut) -> Iterator[tuple[str, float | None]]:
    new = preferred(made.rows())
    for op_id, row in preferred(source.rows()).items():
        before, after = row.latency_ms, new[op_id].latency_ms
        if before != after:
            yield op_id, None if before is None or after is None else after / before


def _collect(lut: Lut) -> str:
    from lutbuilder import devices

    target = lut.meta.target
    command = collect_command(
        device=target.device if target.device in devices.names() else "cpu",
        space=lut.meta.spaces[0] if lut.meta.spaces else "proxyless",
        runtime=target.runtime,
        batch=target.batch,
        threads=target.threads,
        cache=target.cache,
    )
    return f"{command} --again"
