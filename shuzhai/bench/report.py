"""What a benchmark prints: a card, one table and, last, one line of JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shuzhai.bench.machine import Limits, Peak
from shuzhai.engine.engine import Engine
from shuzhai.engine.memory_table import align


@dataclass(frozen=True, slots=True)
class Report:
    """A table with a header and, for programs, its rows as objects."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    results: list[dict[str, Any]]

    def table(self) -> str:
        width = range(1, len(self.columns))
        return "\n".join(align([self.columns, *self.rows], right=tuple(width)))


@dataclass(frozen=True, slots=True)
class Card:
    """What was measured, and on what.

    startup_s      until the engine was there, weights included; first_token_s   the first one after
    """

    model: str
    device: str
    dtype: str
    kv_dtype: str
    kv_token_bytes: int
    weight_bytes: int
    plan: str
    limits: Limits
    startup_s: float
    first_token_s: float

    @classmethod
    def of(
        cls, engine: Engine, model: str, device: str, limits: Limits, times: tuple[float, float]
    ) -> Card:
        """times: startup_s and first_token_s"""
        plan = engine.plan
        dtype = str(engine.dtype).removeprefix("torch.")
        kv_dtype = engine.config.kv_dtype
        return cls(
            model,
            device,
            dtype,
            dtype if kv_dtype == "auto" else kv_dtype,
            plan.block_bytes // plan.block_size,
            plan.weight_bytes,
            plan.line(),
            limits,
            *times,
        )

    def lines(self) -> str:
        return "\n".join(
            (
                f"model    {self.model}, {self.dtype}, KV cache in {self.kv_dtype}: "
                f"{self.kv_token_bytes:,} bytes a token",
                f"device   {self.device}",
                f"memory   {self.plan}",
                f"limits   {self.limits.line()} (measured now)",
                f"start    {self.startup_s:.1f} s to load, then {self.first_token_s:.2f} s to the "
                "first token",
            )
        )


def json_line(bench: str, report: Report, about: Card | str, peak: Peak | None) -> str:
    """One object in one line. about: what was measured; only its name if a server has it"""
    record: dict[str, Any] = {"bench": bench}
    record |= {"model": about} if isinstance(about, str) else asdict(about)
    if peak is not None:
        record["peak_memory_bytes"] = peak.total
        record["peak_reserved_bytes"] = peak.tensors
    return json.dumps(record | {"results": report.results}, ensure_ascii=False)


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"
