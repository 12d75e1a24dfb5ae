"""A memory plan in print: its parts as a table, and what fits. No torch; it decides nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # MemoryPlan prints itself by this file
    from shuzhai.engine.memory import MemoryPlan

# Lengths of a chat, in tokens, that a table counts.
CHAT_TOKENS = (2048, 4096)


@dataclass(frozen=True, slots=True)
class TableWords:
    """One language: (name, why) of each part, with figures of the plan in braces."""

    weights: tuple[str, str]
    kv: tuple[str, str]
    vision: tuple[str, str]
    activations: tuple[str, str]
    sampling: tuple[str, str]
    libraries: tuple[str, str]
    graphs: tuple[str, str]
    context: tuple[str, str]
    margin: tuple[str, str]
    unused: tuple[str, str]
    budget: str
    max_model_len: str
    chats: str


ENGLISH = TableWords(
    weights=("weights", "once, for all chats"),
    kv=("KV cache", "{num_tokens:,} tokens of {token_bytes:,} bytes"),
    vision=("pictures", "{tiles_per_batch} tiles at a time; {picture_rows:,} rows are kept"),
    activations=("activations", "a step of {max_num_batched_tokens:,} tokens, then its logits"),
    sampling=("sampling", "logits of {max_num_seqs} sequences, and their copies"),
    libraries=("libraries", "workspaces of matrix products and attention"),
    graphs=("CUDA graphs", "{num_graphs} recorded, which share their memory"),
    context=("CUDA context", "of the driver, with its kernels"),
    margin=("margin", "what the allocator rounds up and leaves in holes"),
    unused=("not used", "left to other programs"),
    budget="budget",
    max_model_len="Context: {max_model_len:,} tokens.",
    chats="Chats at a time: {chats}.",
)


def render(plan: MemoryPlan, words: TableWords) -> str:
    """Lines: component, size, why; then the budget, the context, and how many chats fit."""
    figures = {
        "num_tokens": plan.num_tokens,
        "token_bytes": plan.block_bytes // plan.block_size,
        "tiles_per_batch": plan.tiles_per_batch,
        "picture_rows": plan.picture_rows,
        "max_num_batched_tokens": plan.max_num_batched_tokens,
        "max_num_seqs": plan.max_num_seqs,
        "num_graphs": plan.workspace.num_graphs,
        "max_model_len": plan.max_model_len,
    }
    space = plan.workspace
    parts = [
        (words.weights, plan.weight_bytes),
        (words.kv, plan.kv_bytes),
        (words.vision, plan.vision_bytes),
        (words.activations, space.activation_bytes),
        (words.sampling, space.sampler_bytes),
        (words.libraries, space.library_bytes),
        (words.graphs, space.graph_bytes),
        (words.context, space.context_bytes),
        (words.margin, space.margin_bytes),
    ]
    unused = plan.budget_bytes - plan.total_bytes
    if unused >= plan.block_bytes:
        parts.append((words.unused, unused))
    rows = [(name, size_text(n), why.format(**figures)) for (name, why), n in parts if n]
    rows.append((words.budget, size_text(plan.budget_bytes), ""))
    lengths = sorted({n for n in CHAT_TOKENS if n < plan.max_model_len} | {plan.max_model_len})
    chats = ", ".join(f"{plan.num_chats(n)} x {n:,}" for n in lengths)
    return "\n".join(
        (
            *align(rows, right=(1,)),
            "",
            words.max_model_len.format(**figures) + " " + words.chats.format(chats=chats),
        )
    )


def size_text(num_bytes: int) -> str:
    """8.00 GiB, or MiB where that is less than a tenth of one."""
    if num_bytes < 2**30 // 10:
        return f"{num_bytes / 2**20:.1f} MiB"
    return f"{num_bytes / 2**30:.2f} GiB"


def align(rows: Iterable[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    """Columns, these to the right; a Chinese character takes two places of a terminal."""
    rows = list(rows)
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]

    def padded(place: int, cell: str) -> str:
        space = " " * (widths[place] - _width(cell))
        return space + cell if place in right else cell + space

    return ["   ".join(padded(i, cell) for i, cell in enumerate(row)).rstrip() for row in rows]


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
