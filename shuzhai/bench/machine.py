"""What a device does at most and how much memory was taken, measured in the run that is judged."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

# A large card's data must not fit its cache; small cards have no room for so much.
_GPU_READ_BYTES = 2**30
_GPU_MATRIX = 8192
_SMALL_CARD_BYTES = 12 * 2**30
_SMALL_MATRIX = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """Of reading memory, and of a large matrix product."""

    read_bytes_per_s: float
    flops_per_s: float

    def line(self) -> str:
        return (
            f"read {self.read_bytes_per_s / 1e9:,.1f} GB/s, "
            f"matrix products {self.flops_per_s / 1e12:,.2f} TFLOP/s"
        )


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory that was taken, in bytes.

    tensors   by this process for tensors, held for reuse included; on a CPU, all of the process
    context   of a GPU beside it: the driver's context, and whatever other programs have
    """

    tensors: int
    context: int = 0

    @property
    def total(self) -> int:
        return self.tensors + self.context

    def line(self) -> str:
        total = f"{self.total / 2**30:.2f} GiB"
        if not self.context:
            return f"{total} of the process"
        return (
            f"{total}: {self.tensors / 2**30:.2f} reserved, {self.context / 2**30:.2f} of the "
            "CUDA context and other programs"
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


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Takes a second or so, and memory that is given back."""
    if device.type == "cuda":
        return _gpu_limits(device, dtype)
    limits = _cpu_limits()
    if sys.platform == "linux":  # the peak begins anew
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return limits


def _cpu_limits() -> Limits:
    data = torch.randn(2**27)  # 512 MiB: beyond any cache
    read = data.numel() * 4 / median_seconds(lambda: data.sum(), 7)
    rates = []
    for kind in (torch.float32, torch.bfloat16):
        a, b = torch.randn(1024, 2048).to(kind), torch.randn(4096, 2048).to(kind)
        rates.append(2 * 1024 * 2048 * 4096 / median_seconds(lambda a=a, b=b: a @ b.t(), 5))
    return Limits(read, max(rates))


def _gpu_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    limits = Limits(_gpu_read(device), _gpu_products(device, dtype))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return limits


def _gpu_read(device: torch.device) -> float:
    """Bytes a second."""
    data = torch.zeros(_GPU_READ_BYTES // 2, dtype=torch.int16, device=device)
    return _GPU_READ_BYTES / _gpu_seconds(lambda: data.amax(), device)


def _gpu_products(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second."""
    is_small = torch.cuda.mem_get_info(device)[1] < _SMALL_CARD_BYTES
    n = _SMALL_MATRIX if is_small else _GPU_MATRIX
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / _gpu_seconds(lambda: a @ b.t(), device)


def _gpu_seconds(call: Callable[[], object], device: torch.device, count: int = 10) -> float:
    """The median of five rounds of so many calls in a row."""
    times = []
    with torch.cuda.device(device):
        for _ in range(6):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(count):
                call()
            end.record()
            torch.cuda.synchronize(device)
            times.append(start.elapsed_time(end) / count / 1e3)
    return statistics.median(times[1:])


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return (
            f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, "
            f"{facts.multi_processor_count} multiprocessors"
        )
    name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> Peak:
    """Since the start, or since the limits were measured."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        beside = total - free - torch.cuda.memory_reserved(device)
        return Peak(torch.cuda.max_memory_reserved(device), max(0, beside))
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return Peak(int(line.split()[1]) * 1024)
    return Peak(psutil.Process().memory_info().rss)
