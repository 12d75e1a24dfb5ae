"""Curves of runs: python -m training.plots OUT.svg RUN.json [RUN.json ...]

Each file is what training.tower or training.train wrote. One row of plots a kind of figure: losses,
and shares of right answers; one line a run and figure, over minutes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, which the colour-blind can tell apart too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LOSSES = {"answer": "answers", "class": "a tile's class", "patch": "a patch's class",
           "contrast": "contrast"}  # fmt: skip
_SHARES = {"right": "ids of answers", "class_right": "tiles", "patch_right": "patches of things",
           "char_right": "patches of characters", "held_out_1.0": "held-out drawings"}  # fmt: skip


def plot(runs: list[Path], output: Path) -> None:
    """One column a run."""
    figure, axes = plt.subplots(
        2, len(runs), figsize=(4.6 * len(runs), 6.4), sharey="row", squeeze=False
    )
    for column, path in enumerate(runs):
        history = json.loads(path.read_text("utf-8"))["history"]
        axes[0][column].set_title(path.stem)
        _draw(axes[0][column], history, _LOSSES, 1)
        axes[0][column].set_yscale("log")
        _draw(axes[1][column], history, _SHARES, 100)
        axes[1][column].set_xlabel("minutes of training")
    axes[0][0].set_ylabel("loss")
    axes[1][0].set_ylabel("right, %")
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})


def _draw(axes: Any, history: list[dict[str, float]], names: dict[str, str], factor: float) -> None:
    for (name, label), colour in zip(names.items(), _COLOURS, strict=False):
        rows = [row for row in history if name in row]
        if rows:
            scale = 1 if name.startswith("held_out") else factor
            axes.plot(
                [row["seconds"] / 60 for row in rows],
                [row[name] * scale for row in rows],
                color=colour, label=label, lw=1.4, marker="o" if len(rows) < 9 else None, ms=3,
            )  # fmt: skip
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    plot([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]))
