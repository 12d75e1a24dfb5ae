"""A plot of a sweep as SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _MARGIN = 420, 300, 56
_COLOURS = ("#1f6feb", "#9aa4b2")

Points = Sequence[tuple[float, float]]


def sweep_svg(title: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Tokens a second against the batch and against the context, both axes logarithmic."""
    panels = []
    for place, axis in enumerate(("batch", "context")):
        found = [result for result in results if result["axis"] == axis]
        lines = {
            "measured": [(r[axis], r["tokens_per_s"]) for r in found],
            "limit": [(r[axis], r["limit_tokens_per_s"]) for r in found],
        }
        if found:
            panels.append(_panel(f"tokens/s against {axis}", lines, place * _WIDTH))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _WIDTH}" height="{_HEIGHT + 30}" '
        'font-family="sans-serif" font-size="11">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<text x="{_WIDTH}" y="18" text-anchor="middle" font-size="13">{escape(title)}</text>'
        f"{''.join(panels)}</svg>\n"
    )


def _panel(name: str, lines: Mapping[str, Points], left: float) -> str:
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    x_low, x_high = _bounds(xs, 2)
    y_low, y_high = _bounds(ys, 10)

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / x_low) / math.log(x_high / x_low)
        up = math.log(y / y_low) / math.log(y_high / y_low)
        wide, high = _WIDTH - 1.5 * _MARGIN, _HEIGHT - 1.5 * _MARGIN
        return left + _MARGIN + across * wide, 30 + _MARGIN / 2 + (1 - up) * high

    parts = [_grid(place, sorted(set(xs)), (y_low, y_high), (x_low, x_high))]
    for (label, points), colour in zip(lines.items(), _COLOURS, strict=True):
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(x, y) for x, y in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        end_x, end_y = place(*points[-1])
        parts.append(
            f'<text x="{end_x:.1f}" y="{end_y - 6:.1f}" text-anchor="end" fill="{colour}">'
            f"{label}</text>"
        )
    middle = left + _WIDTH / 2
    parts.append(f'<text x="{middle}" y="{30 + _MARGIN / 4}" text-anchor="middle">{name}</text>')
    return "".join(parts)


def _grid(
    place: Any, xs: Sequence[float], y_bounds: tuple[float, float], x_bounds: tuple[float, float]
) -> str:
    parts = []
    for x in xs:
        at, bottom = place(x, y_bounds[0])
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{_short(x)}</text>'
        )
    y = y_bounds[0]
    while y <= y_bounds[1] * 1.001:
        (start, at), (end, _) = place(x_bounds[0], y), place(x_bounds[1], y)
        parts.append(
            f'<line x1="{start:.1f}" y1="{at:.1f}" x2="{end:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
            f'<text x="{start - 6:.1f}" y="{at + 4:.1f}" text-anchor="end">{_short(y)}</text>'
        )
        y *= 10
    return "".join(parts)


def _bounds(values: Sequence[float], base: int) -> tuple[float, float]:
    """Powers of the base around the values."""
    low = base ** math.floor(math.log(min(values), base) + 1e-9)
    high = base ** math.ceil(math.log(max(values), base) - 1e-9)
    return float(low), float(high if high > low else low * base)


def _short(number: float) -> str:
    if number >= 1024 and number % 1024 == 0:
        return f"{number / 1024:.0f}k"
    return f"{number / 1000:.0f}k" if number >= 1000 and number % 1000 == 0 else f"{number:g}"
