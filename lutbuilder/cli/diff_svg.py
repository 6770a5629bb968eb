"""The picture of a comparison: a line a row, its ratio with its interval, and the band that does not matter."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lutbuilder.lut.diff import Diff, RowDiff

_COLOURS = {"FASTER": "#1a7f37", "SLOWER": "#cf222e", "SAME": "#57606a", "UNSURE": "#bf8700"}
_ROW, _LABEL, _PLOT, _WORD, _HEAD, _FOOT = 18, 260, 480, 90, 70, 40  # pixels
_WIDTH = _LABEL + _PLOT + _WORD
_MOST_TICKS = 9


def diff_svg(diff: Diff) -> str:
    """Return an SVG document: rows from fastest to slowest change, b / a from left (faster) to right (slower)."""
    rows = sorted(diff.rows, key=lambda row: row.ratio)
    reach = max((_reach(row) for row in rows), default=0.0)
    reach = max(1.1 * reach, 2.0 * math.log1p(diff.min_effect))
    bottom = _HEAD + _ROW * len(rows)

    def x(ratio: float) -> float:
        return _LABEL + _PLOT * (0.5 + 0.5 * max(-1.0, min(1.0, math.log(ratio) / reach)))

    left, right = x(1 / (1 + diff.min_effect)), x(1 + diff.min_effect)
    counts = ", ".join(f"{diff.count(word)} {word}" for word in ("FASTER", "SLOWER", "SAME", "UNSURE"))
    scale = "" if diff.scale is None else f"common scale {diff.scale:.4f}{'' if diff.absolute else ', taken out'}; "
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{bottom + _FOOT}" '
        f'viewBox="0 0 {_WIDTH} {bottom + _FOOT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{bottom + _FOOT}" fill="#ffffff"/>',
        _text(12, 22, f"{diff.b} against {diff.a}", size=14),
        _text(12, 42, f"{scale}{counts}; band: ±{100 * diff.min_effect:g} %"),
        f'<rect x="{left:.1f}" y="{_HEAD - 8}" width="{right - left:.1f}" height="{bottom - _HEAD + 8}" '
        'fill="#eaeef2"/>',
    ]
    for tick, words in _ticks(reach):
        at = x(tick)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_HEAD - 8}" y2="{bottom}" stroke="#d0d7de"/>')
        parts.append(_text(at, bottom + 16, words, anchor="middle"))
    for number, row in enumerate(rows):
        y = _HEAD + _ROW * number + 4
        colour = _COLOURS[row.verdict]
        parts.append(_text(_LABEL - 8, y + 4, row.label, anchor="end"))
        if row.ratio_lo is not None and row.ratio_hi is not None:
            span = f'x1="{x(row.ratio_lo):.1f}" x2="{x(row.ratio_hi):.1f}"'
            parts.append(f'<line {span} y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x(row.ratio):.1f}" cy="{y}" r="3.5" fill="{colour}"/>')
        parts.append(_text(_LABEL + _PLOT + 10, y + 4, row.verdict, colour=colour))
    return "\n".join([*parts, "</svg>", ""])


def _reach(row: RowDiff) -> float:
    """Return how far a row goes from no change, in log ratio; of an interval at most three times its estimate."""
    middle = abs(math.log(row.ratio))
    ends = [abs(math.log(end)) for end in (row.ratio_lo, row.ratio_hi) if end]
    return max([middle, *(min(end, 3.0 * max(middle, 0.02)) for end in ends)])


def _ticks(reach: float) -> list[tuple[float, str]]:
    """Return round ratios that fit into exp(+-reach), with their labels: in per cent, far from 1 as factors."""
    top = math.exp(reach)
    if top > 2.0:
        factors = [mantissa * 10.0**power for power in range(4) for mantissa in (1, 2, 5)]
        above = [factor for factor in factors if 1.0 < factor <= top][:_MOST_TICKS]
        below = [(1 / factor, f"1/{factor:g}") for factor in reversed(above)]
        return [*below, (1.0, "1"), *((factor, f"{factor:g}") for factor in above)]
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.25) if 2 * (top - 1.0) / step < _MOST_TICKS)
    most = int((top - 1.0) / step)
    ratios = [1.0 + step * n for n in range(-most, most + 1)]
    return [(ratio, f"{100 * (ratio - 1):+.0f} %" if ratio != 1.0 else "0 %") for ratio in ratios if ratio * top >= 1.0]


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, colour: str = "#1f2328") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{colour}">{escape(words)}</text>'
