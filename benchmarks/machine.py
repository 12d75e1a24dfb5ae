"""What the machine can do at most, measured in the run that is compared with it."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Limits:
    """What the machine does at most, measured here and now."""

    read_bytes_per_s: float
    flops_per_s: float

    def lines(self) -> str:
        """Two lines of a card."""
        return (
            f"machine  {platform.processor() or platform.machine()}, "
            f"{torch.get_num_threads()} threads\n"
            f"limits   read {self.read_bytes_per_s / 1e9:.1f} GB/s, "
            f"matrix products {self.flops_per_s / 1e9:.0f} GFLOP/s"
        )


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """The median time of a call; one more comes first and is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_limits() -> Limits:
    data = torch.randn(2**27)  # 512 MiB: beyond any cache
    read = data.numel() * 4 / median_seconds(lambda: data.sum(), 7)
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 2048).to(dtype)
        b = torch.randn(4096, 2048).to(dtype)
        rates.append(2 * 1024 * 2048 * 4096 / median_seconds(lambda a=a, b=b: a @ b.t(), 5))
    return Limits(read, max(rates))
