"""Plots: everything that was measured is within its panel."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from shuzhai.bench.plot import sweep_svg

SVG = "{http://www.w3.org/2000/svg}"
rates = st.floats(0.01, 1e6)


@given(st.lists(st.tuples(rates, st.floats(1, 20)), min_size=1, max_size=9))
def test_points_lie_within_the_panel(measured: list[tuple[float, float]]) -> None:
    results = [
        {"axis": axis, axis: 2**i, "tokens_per_s": rate, "limit_tokens_per_s": rate * more}
        for axis in ("batch", "context")
        for i, (rate, more) in enumerate(measured)
    ]
    root = ElementTree.fromstring(sweep_svg("a <model> & more", results))
    grid = [float(line.get("y1", "")) for line in root.iter(f"{SVG}line")]
    lines = [line.get("points", "").split() for line in root.iter(f"{SVG}polyline")]
    assert [len(line) for line in lines] == [len(measured)] * 4
    for point in (each for line in lines for each in line):
        across, down = map(float, point.split(","))
        assert 0 < across < float(root.get("width", ""))
        assert min(grid) - 0.1 <= down <= max(grid) + 0.1
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"measured", "limit", "a <model> & more"} <= {*texts}
