"""Speed of the products of one row against the memory's, and against the library's.

    python -m benchmarks.kernels_linear            # a layer's four products, each alone, the head
    python -m benchmarks.kernels_linear --sweep    # other configurations of each

Times are of CUDA-graph replays over the weights of 24 layers, 3 GB, so that no cache holds any, as
in a decode step; the gaps between kernels count. The library's row has neither norms nor silu.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from shuzhai.kernels.triton import linear as ours
from shuzhai.kernels.triton.linear import RowConfig

WIDTH, VOCAB, LAYERS, EPS = 2048, 92544, 24, 1e-5
# name: (rows of the weight, width)
LAYER = {
    "qkv": (4096, WIDTH),
    "out": (WIDTH, WIDTH),
    "gate_up": (16384, WIDTH),
    "down": (WIDTH, 8192),
}
SHAPES = {**LAYER, "head": (VOCAB, WIDTH)}
# Rows a program, warps.
SWEEP = {
    "qkv": ((4, 4), (8, 4), (8, 8), (16, 8)),
    "out": ((2, 4), (4, 4), (8, 4), (8, 8)),
    "gate_up": ((2, 4), (4, 4), (4, 8), (8, 8)),
    "down": ((1, 4), (2, 4), (2, 8), (4, 8), (4, 16)),
    "head": ((4, 4), (8, 4), (16, 4), (16, 8)),
}


@dataclass(frozen=True)
class Case:
    """The weights of all layers and of two heads, rows to multiply, and what norms need."""

    weights: dict[str, list[Tensor]]
    inputs: dict[str, Tensor]
    residual: Tensor
    norm: Tensor


def make_case(dtype: torch.dtype, device: torch.device) -> Case:
    def noise(rows: int, width: int) -> Tensor:
        return torch.randn(rows, width, dtype=dtype, device=device) * width**-0.5

    weights = {name: [noise(*shape) for _ in range(LAYERS)] for name, shape in LAYER.items()}
    weights["head"] = [noise(*SHAPES["head"]) for _ in range(2)]
    inputs = {name: noise(1, n) for name, (_, n) in SHAPES.items()}
    return Case(weights, inputs, noise(1, WIDTH), torch.ones(WIDTH, dtype=dtype, device=device))


def choose(case: Case) -> dict[str, RowConfig]:
    num_sms, _ = ours._device(case.norm.device)
    return {
        name: ours._choose(
            m // 2 if name == "gate_up" else m, n, case.norm.itemsize, name == "gate_up", num_sms
        )
        for name, (m, n) in SHAPES.items()
    }


def multiply(case: Case, name: str, weight: Tensor, config: RowConfig) -> None:
    x, m, is_gated = case.inputs[name], weight.shape[0], name == "gate_up"
    dtype = torch.float32 if name == "head" else x.dtype
    out = torch.empty(1, m // 2 if is_gated else m, dtype=dtype, device=x.device)
    if name in ("qkv", "gate_up"):
        total, norms = torch.empty_like(x), (case.norm, case.residual)
        ours.run(x, weight, out, config, None, *norms, total, EPS, is_gated)
    else:
        ours.run(x, weight, out, config)


def multiply_by_library(case: Case, name: str, weight: Tensor) -> None:
    x = case.inputs[name]
    if name == "head" and x.dtype != torch.float32:
        torch.mm(x, weight.t(), out_dtype=torch.float32)
    else:
        F.linear(x, weight)


def layer_by_layer(
    case: Case, names: tuple[str, ...], product: Callable[[str, Tensor], None]
) -> float:
    """Microseconds of these products of one layer, in the chain of all layers."""

    def work() -> None:
        for weights in zip(*(case.weights[name] for name in names), strict=True):
            for name, weight in zip(names, weights, strict=True):
                product(name, weight)

    return time_graph(work) / len(case.weights[names[0]])


def chained(case: Case, names: tuple[str, ...], configs: dict[str, RowConfig]) -> float:
    return layer_by_layer(
        case, names, lambda name, weight: multiply(case, name, weight, configs[name])
    )


def time_graph(work: Callable[[], None], repeats: int = 15) -> float:
    """Microseconds of a replay, median."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for i in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


@contextmanager
def without_pdl() -> Iterator[None]:
    """Each kernel begins when the one in front has ended, as before Hopper."""
    num_sms, _ = ours._device(torch.device("cuda", 0))
    with mock.patch.object(ours, "_device", return_value=(num_sms, False)):
        yield


def read_bandwidth(device: torch.device) -> float:
    """GB/s of adding up 4 GB."""
    numbers = torch.ones(2**30, device=device)
    return 4.295e6 / time_graph(lambda: numbers.sum(), 7)


def table(case: Case) -> None:
    """us (GB/s) of each product in a row of its like, and of all four."""
    chosen = choose(case)
    print(f"{'us (GB/s)':10}", *(f"{w:>14}" for w in ("ours", "no PDL", "library")))
    for names in (tuple(LAYER), *((name,) for name in SHAPES)):
        megabytes = sum(case.weights[name][0].nbytes for name in names) / 1e6
        times = [chained(case, names, chosen)]
        with without_pdl():
            times.append(chained(case, names, chosen))
        times.append(
            layer_by_layer(case, names, lambda name, w: multiply_by_library(case, name, w))
        )
        cells = (f"{us:7.2f} ({1e3 * megabytes / us:4.0f})" for us in times)
        print(f"{names[0] if len(names) == 1 else 'layer':10}", *cells, flush=True)


def sweep(case: Case) -> None:
    """us of a product in a row of its like, and of a layer with all others as chosen."""
    chosen = choose(case)
    print("product   rows warps   alone us (GB/s)   layer us")
    for name, candidates in SWEEP.items():
        for rows, warps in candidates:
            config = RowConfig(rows, warps)
            us = chained(case, (name,), {name: config})
            rate = case.weights[name][0].nbytes / us / 1e3
            layer = chained(case, tuple(LAYER), {**chosen, name: config}) if name in LAYER else 0
            mark = " <- chosen" if config == chosen[name] else ""
            print(f"{name:9} {rows:4d} {warps:5d} {us:9.2f} ({rate:4.0f}) {layer:11.2f}{mark}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    device, dtype = torch.device("cuda", 0), getattr(torch, args.dtype)
    print(torch.cuda.get_device_name(device), args.dtype, end="; ")
    print(f"adds up {read_bandwidth(device):.0f} GB/s")
    case = make_case(dtype, device)
    if args.sweep:
        sweep(case)
    else:
        table(case)


if __name__ == "__main__":
    main()
