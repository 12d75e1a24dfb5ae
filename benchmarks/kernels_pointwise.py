"""Norms, activations and sampling on a CUDA device, against the memory's bandwidth and torch.

    python -m benchmarks.kernels_pointwise [--sweep]

Kernels are timed as they run in a step: launched one after the other by a CUDA graph, over buffers
that the L2 cache does not hold where they are large. Medians.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import triton
from torch.nn import functional as F

from shuzhai.kernels.base import Kernels
from shuzhai.kernels.triton import pointwise, sampling
from shuzhai.step import DrawInput

DEVICE = torch.device("cuda")
VOCAB = 92544
REFERENCE = Kernels()
# More than the L2 cache of any device holds.
COLD_BYTES = 256 * 2**20
DTYPE = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def graph_us(call: Callable[[int], object], least_calls: int) -> float:
    """Microseconds of call(i), i from 0 to least_calls - 1, in one graph."""
    for i in range(min(2, least_calls)):
        call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(least_calls):
            call(i)
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / least_calls)
    return statistics.median(times[2:])


def rotated(make: Callable[[], torch.Tensor], num_bytes: int) -> tuple[list[torch.Tensor], int]:
    """Inputs enough to be cold, where a call moves so many bytes, and how many calls to time."""
    count = max(1, min(24, COLD_BYTES // num_bytes))
    return [make() for _ in range(count)], max(count, 24 if num_bytes < 2**24 else 4)


def copy_rate() -> float:
    """Bytes per second that a copy of 512 MiB reads and writes."""
    source = torch.empty(2**29, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2**30 / (graph_us(lambda i: target.copy_(source), 4) * 1e-6)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE)


Case = tuple[str, str, int, Callable[[int], object], Callable[[int], object], int]


def pointwise_cases() -> Iterator[Case]:
    """(name, shape, bytes, ours, torch's, calls)"""
    for rows in (1, 64, 256, 3500, 8192):
        size = rows * 2048 * 2
        xs, calls = rotated(lambda r=rows: noise(r, 2048), 4 * size)
        w, r = noise(2048), noise(rows, 2048)
        yield (
            "rms_norm", f"{rows} x 2048", 4 * size,
            lambda i, xs=xs, w=w, r=r: pointwise.rms_norm(xs[i % len(xs)], w, 1e-5, r),
            lambda i, xs=xs, w=w, r=r: REFERENCE.rms_norm(xs[i % len(xs)], w, 1e-5, r), calls,
        )  # fmt: skip
    for rows in (1, 256, 3500):
        size = rows * 8192 * 2
        xs, calls = rotated(lambda r=rows: noise(r, 16384), 3 * size)
        yield (
            "silu_mul", f"{rows} x 8192", 3 * size,
            lambda i, xs=xs: pointwise.silu_mul(xs[i % len(xs)]),
            lambda i, xs=xs: REFERENCE.silu_mul(xs[i % len(xs)]), calls,
        )  # fmt: skip
    size = 13325 * 1024 * 2
    xs, calls = rotated(lambda: noise(13325, 1024), 2 * size)
    w, b = noise(1024), noise(1024)
    yield (
        "layer_norm", "13325 x 1024", 2 * size,
        lambda i: pointwise.layer_norm(xs[i % len(xs)], w, b, 1e-6),
        lambda i: F.layer_norm(xs[i % len(xs)], (1024,), w, b, 1e-6), calls,
    )  # fmt: skip
    added, calls = rotated(lambda: noise(13325, 1024), 4 * size)
    branch, s = noise(13325, 1024), noise(1024)
    yield (
        "add_layer_norm", "13325 x 1024", 4 * size,
        lambda i: pointwise.add_layer_norm(added[i % len(added)], branch, s, w, b, 1e-6),
        lambda i: F.layer_norm(
            torch.addcmul(added[i % len(added)], branch, s), (1024,), w, b, 1e-6
        ), calls,
    )  # fmt: skip
    wide, calls = rotated(lambda: noise(13325, 4096), 8 * size)
    yield (
        "quick_gelu (torch: gelu)", "13325 x 4096", 8 * size,
        lambda i: pointwise.quick_gelu(wide[i % len(wide)]),
        lambda i: F.gelu(wide[i % len(wide)]), calls,
    )  # fmt: skip
    inv_freq = torch.rand(64, device=DEVICE)
    table = noise(VOCAB, 2048)
    for rows in (1, 256, 3500):
        at = torch.randint(0, 32768, (rows,), device=DEVICE)
        yield (
            "rotary_angles", f"{rows} x 64", rows * 512,
            lambda i, at=at: pointwise.rotary_angles(at, inv_freq),
            lambda i, at=at: REFERENCE.rotary_angles(at, inv_freq), 24,
        )  # fmt: skip
        source = torch.full((rows,), -1, dtype=torch.int32, device=DEVICE)
        yield (
            "embed", f"{rows} x 2048", rows * 8192,
            lambda i, at=at, source=source: pointwise.embed(at, table, at, source),
            lambda i, at=at: F.embedding(at, table), 24,
        )  # fmt: skip


def draw_input(rows: int, top_p: float = 1.0, top_k: int = 0) -> DrawInput:
    def column(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype, device=DEVICE)

    numbers = torch.rand(rows, dtype=torch.float64, device=DEVICE)
    filtered = top_p < 1 or top_k > 0
    single = torch.float32
    return DrawInput(
        column(0.8, single), column(top_k, torch.int32), column(top_p, single),
        column(0.0, single), numbers, filtered,
    )  # fmt: skip


def logits_of(kind: str, rows: int) -> torch.Tensor:
    """Of a model with random weights (wide nuclei), of one that knows, or all alike."""
    noise = torch.randn(rows, VOCAB, device=DEVICE)
    if kind == "peaked":
        return noise * 2.5 + 12 * (torch.rand_like(noise) < 5 / VOCAB)
    return noise * (0.9 if kind == "bulk" else 0.0)


def sampling_lines() -> Iterator[str]:
    yield f"{'sampling, us':28}{'B = 1':>10}{'8':>10}{'64':>10}{'256':>10}"

    def line(name: str, time: Callable[[int], float]) -> str:
        return f"{name:28}" + "".join(f"{time(rows):10.1f}" for rows in (1, 8, 64, 256))

    bulk = {rows: logits_of("bulk", rows) for rows in (1, 8, 64, 256)}
    yield line("argmax", lambda b: graph_us(lambda i: sampling.argmax(bulk[b]), 8))
    yield line("torch.argmax", lambda b: graph_us(lambda i: bulk[b].argmax(-1), 8))
    settings: list[tuple[str, str, float, int]] = [
        ("bulk", "", 1.0, 0),
        ("bulk", "top_p 0.8", 0.8, 0),
        ("peaked", "top_p 0.8", 0.8, 0),
        ("bulk", "top_k 50, top_p 0.8", 0.8, 50),
        ("alike", "top_p 0.8", 0.8, 0),
    ]
    for kind, name, top_p, top_k in settings:
        rows = bulk if kind == "bulk" else {b: logits_of(kind, b) for b in bulk}
        hows = {b: draw_input(b, top_p, top_k) for b in bulk}
        yield line(
            f"draw {kind} {name}",
            lambda b, rows=rows, hows=hows: graph_us(lambda i: sampling.draw(rows[b], hows[b]), 4),
        )
    how = {b: draw_input(b, 0.8) for b in bulk}
    yield line(
        "torch, bulk top_p 0.8",
        lambda b: 1e3 * triton.testing.do_bench(
            lambda: REFERENCE.draw(bulk[b], how[b]), warmup=5, rep=20, return_mode="median"
        ),
    )  # fmt: skip


def sweep_lines() -> Iterator[str]:
    """Candidates beside what the kernels choose."""
    pdl = pointwise.describe(torch.device("cuda", torch.cuda.current_device()))[1]
    for rows in (1, 256, 3500):
        xs, calls = rotated(lambda r=rows: noise(r, 2048), rows * 16384)
        w, r, out, total = noise(2048), noise(rows, 2048), noise(rows, 2048), noise(rows, 2048)
        times = [
            graph_us(
                lambda i, warps=warps, xs=xs, w=w, r=r, out=out, total=total, rows=rows:
                pointwise._rms_norm_kernel[(rows,)](
                    xs[i % len(xs)], r, w, out, total, 1e-5, n=2048, width=2048,
                    has_residual=True, use_pdl=pdl, num_warps=warps, launch_pdl=pdl,
                ),
                calls,
            )
            for warps in (2, 4, 8)
        ]  # fmt: skip
        yield f"rms_norm {rows} rows, warps 2 4 8:" + "".join(f"{t:8.1f}" for t in times)
    for rows in (64, 3500):
        xs, calls = rotated(lambda r=rows: noise(r, 16384), rows * 49152)
        out = noise(rows, 8192)
        times = [
            graph_us(
                lambda i, block=block, warps=warps, xs=xs, out=out, rows=rows:
                pointwise._silu_mul_kernel[(rows * 8192 // block,)](
                    xs[i % len(xs)], out, n=8192, block=block, use_pdl=pdl,
                    num_warps=warps, launch_pdl=pdl,
                ),
                calls,
            )
            for block, warps in ((512, 2), (1024, 4), (2048, 4), (2048, 8), (4096, 8))
        ]  # fmt: skip
        yield f"silu_mul {rows} rows, block/warps 512/2 1024/4 2048/4 2048/8 4096/8:" + "".join(
            f"{t:8.1f}" for t in times
        )
    plain = sampling.choose_draw(VOCAB)
    candidates = {
        "as chosen": plain,
        "8 bins": replace(plain, bins=8),
        "32 bins": replace(plain, bins=32),
        "8 warps": replace(plain, warps=8),
        "chunk 4096, 8 warps": replace(plain, chunk=4096, chunks=23, parts=32, slots=256, warps=8),
        "8 warps at the end": replace(plain, last_warps=8),
    }
    for name, config in candidates.items():
        times = []
        for rows in (1, 64, 256):
            logits, how = logits_of("bulk", rows), draw_input(rows, 0.8)
            times.append(
                graph_us(
                    lambda i, logits=logits, how=how, config=config: sampling.draw(
                        logits, how, config
                    ),
                    4,
                )
            )
        yield f"draw top_p 0.8, {name}, B = 1 64 256:" + "".join(f"{t:8.1f}" for t in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="also try other configurations")
    is_sweep = parser.parse_args().sweep
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}, {DTYPE}, copy {rate / 1e9:.0f} GB/s (read + written)")
    print(f"{'':28}{'':>16}{'us':>9}{'GB/s':>9}{'of copy':>9}{'torch us':>10}")
    for name, shape, num_bytes, ours, theirs, calls in pointwise_cases():
        us, peer = graph_us(ours, calls), graph_us(theirs, calls)
        speed = num_bytes / us * 1e6
        print(
            f"{name:28}{shape:>16}{us:9.1f}{speed / 1e9:9.0f}{speed / rate:9.0%}{peer:10.1f}",
            flush=True,
        )
    for line in sampling_lines():
        print(line, flush=True)
    if is_sweep:
        for line in sweep_lines():
            print(line, flush=True)


if __name__ == "__main__":
    main()
