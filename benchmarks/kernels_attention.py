"""Attention kernels against the memory, the tensor cores and torch's own attention.

    python -m benchmarks.kernels_attention            # the shapes of InternLM2-1.8B
    python -m benchmarks.kernels_attention --sweep    # candidates for the constants of the kernels

Decode calls are replays of CUDA graphs over pages that the L2 cache does not hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench

from shuzhai.engine.kv_cache import allocate_kv_cache
from shuzhai.kernels.triton.attention import Tile
from shuzhai.kernels.triton.decode_attention import decode_attend
from shuzhai.kernels.triton.decode_tiles import DecodeWorkspace, decode_parts
from shuzhai.kernels.triton.kv_store import rotate_and_store
from shuzhai.kernels.triton.prefill_attention import prefill_attention
from shuzhai.step import KVPages

HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE, SCALE = 16, 8, 128, 16, 128**-0.5
DEVICE = torch.device("cuda")
BITS = (16, 8, 4)
READ_LIMIT = 2.9e12  # bytes a second of an H100
CACHE_BYTES = 2e8  # what a replay touches at least, four times the L2 cache of an H100
DECODES = [(b, n) for b in (1, 8, 64, 256) for n in (256, 2048)] + [(1, 1), (1, 32768), (8, 32768)]
PREFILLS = [(512, 512), (3500, 3500), (8192, 8192), (2048, 32768), (16, 32768)]
DECODE_TILES = [
    Tile(16, 64, 4, 3), Tile(16, 64, 4, 2), Tile(16, 32, 4, 4), Tile(16, 32, 2, 4),
    Tile(16, 128, 4, 2), Tile(16, 32, 2, 2), Tile(16, 32, 1, 2), Tile(16, 64, 2, 3),
]  # fmt: skip
PREFILL_TILES = [
    Tile(128, 128, 8, 2), Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(128, 64, 8, 2),
    Tile(64, 64, 8, 2), Tile(64, 64, 4, 3),
]  # fmt: skip
SWEPT_DECODES = [(1, 256), (8, 256), (64, 128), (64, 512), (256, 256)]


def make_pages(count: int, bits: int) -> KVPages:
    """One layer's, full of noise: codes with a scale of 1/64 and a zero of -2."""

    class Config:
        num_kv_heads, head_dim, num_layers = KV_HEADS, HEAD_DIM, 1

    quantised = None if bits == 16 else bits
    pages = allocate_kv_cache(Config, count, PAGE_SIZE, torch.bfloat16, DEVICE, quantised)[0]
    if bits == 16:
        pages.keys.normal_()
        pages.values.normal_()
        return pages
    for codes, params in ((pages.keys, pages.key_params), (pages.values, pages.value_params)):
        codes.random_(0, 256)
        params[..., 0], params[..., 1] = 1 / 64, -2.0
    return pages


def kv_bytes(tokens: int, bits: int) -> int:
    return tokens * KV_HEADS * 2 * (HEAD_DIM * bits // 8 + (4 if bits < 16 else 0))


class Decode:
    """A graph of decode steps over as many layers as the L2 cache needs to forget them."""

    def __init__(self, batch: int, length: int, bits: int) -> None:
        self.bytes = kv_bytes(batch * length, bits)
        per_sequence = -(-length // PAGE_SIZE)
        count = batch * per_sequence
        self.layers = max(1, min(24, int(CACHE_BYTES / self.bytes)))
        self.pages = [make_pages(count, bits) for _ in range(self.layers)]
        shape = (batch, HEADS + 2 * KV_HEADS, HEAD_DIM)
        self.qkv = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
        self.cos, self.sin = torch.randn(2, batch, HEAD_DIM // 2, device=DEVICE)
        order = torch.randperm(count, device=DEVICE).int()
        self.tables = order.view(batch, per_sequence)
        self.lengths = torch.full((batch,), length, dtype=torch.int32, device=DEVICE)
        last = self.tables[:, (length - 1) // PAGE_SIZE].long()
        self.slots = last * PAGE_SIZE + (length - 1) % PAGE_SIZE
        self.workspace = DecodeWorkspace(DEVICE)
        self.parts = decode_parts(
            self.lengths.cpu(), HEADS, KV_HEADS, HEAD_DIM, torch.bfloat16, bits, self.workspace
        ).to(DEVICE)

    def run(self, tile: Tile | None = None) -> None:
        for pages in self.pages:
            decode_attend(
                self.qkv, self.cos, self.sin, pages, self.slots, self.lengths, self.tables,
                self.parts, SCALE, self.workspace, tile=tile,
            )  # fmt: skip

    def microseconds(self, tile: Tile | None = None) -> float:
        return graph_milliseconds(lambda: self.run(tile)) * 1000 / self.layers


def graph_milliseconds(work: Callable[[], None]) -> float:
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return do_bench(graph.replay, warmup=5, rep=15, return_mode="median")


def chunk(new: int, length: int, bits: int) -> tuple[torch.Tensor, tuple]:
    """Queries of the last `new` of `length` tokens, and the other arguments but for the scale."""
    count = -(-length // PAGE_SIZE)
    q = torch.randn(new, HEADS, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    starts, lengths = (
        torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in ([0, new], [length])
    )
    tables = torch.randperm(count, device=DEVICE).int()[None]
    return q, (make_pages(count, bits), starts, lengths, tables, new)


def prefill_rate(new: int, length: int, bits: int, tile: Tile | None = None) -> tuple[float, float]:
    """Microseconds and TFLOP/s, of what is not masked."""
    q, others = chunk(new, length, bits)
    ms = do_bench(
        lambda: prefill_attention(q, *others, SCALE, tile=tile), warmup=5, rep=15,
        return_mode="median",
    )  # fmt: skip
    return ms * 1000, flops(new, length) / ms / 1e9


def flops(new: int, length: int) -> float:
    return 4 * HEADS * HEAD_DIM * (new * (length - new) + new * (new + 1) / 2)


def peer_rates(new: int) -> Iterator[tuple[str, float]]:
    """TFLOP/s of torch's attention to contiguous keys of a whole prompt."""
    q, k, v = (
        torch.randn(1, new, heads, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            with sdpa_kernel(backend):
                ms = do_bench(
                    lambda: F.scaled_dot_product_attention(
                        q, k, v, is_causal=True, enable_gqa=True
                    ),
                    warmup=5, rep=15, return_mode="median",
                )  # fmt: skip
            yield backend.name.split("_")[0].lower(), flops(new, new) / ms / 1e9
        except RuntimeError:
            yield backend.name.split("_")[0].lower(), float("nan")


def compile_all(works: list[Callable[[], object]]) -> None:
    """Run each once, on threads: the compiler leaves Python's lock for most of its time."""
    with ThreadPoolExecutor(12) as pool:
        for error in [f.exception() for f in [pool.submit(work) for work in works]]:
            if error:
                print("fails:", str(error)[-200:].replace("\n", " "))
    torch.cuda.synchronize()


def measure() -> None:
    small = [Decode(1, 40, bits) for bits in BITS]
    chunks = [chunk(new, new, bits) for bits in BITS for new in (8, 128)]
    compile_all(
        [c.run for c in small]
        + [lambda q=q, o=o: prefill_attention(q, *o, SCALE) for q, o in chunks]
        + [store_work(1, bits) for bits in BITS]
    )
    print("decode: us a layer, share of the time that reading keys and values takes at 2.9 TB/s")
    print(f"{'B':>4} {'context':>8}" + "".join(f" {f'{b}-bit us':>10} {'share':>6}" for b in BITS))
    for batch, length in DECODES:
        row = f"{batch:>4} {length:>8}"
        for bits in BITS:
            case = Decode(batch, length, bits)
            us = case.microseconds()
            row += f" {us:>10.2f} {case.bytes / READ_LIMIT * 1e6 / us:>6.0%}"
            del case
        print(row, flush=True)
        torch.cuda.empty_cache()
    print("rotate_and_store: us of 1, 256, 3500 tokens")
    for bits in BITS:
        print(
            f"{bits:>4}-bit "
            + " ".join(f"{store_microseconds(t, bits):8.2f}" for t in (1, 256, 3500))
        )
    print("prefill: us, TFLOP/s; peers on contiguous keys")
    for new, length in PREFILLS:
        rates = [prefill_rate(new, length, bits) for bits in BITS]
        row = f"{new:>6} of {length:>6}" + "".join(f" {us:>9.1f} {t:>6.0f}" for us, t in rates)
        peers = peer_rates(new) if new == length else ()
        print(row + "".join(f"   {name} {t:.0f}" for name, t in peers), flush=True)


def store_work(tokens: int, bits: int) -> Callable[[], object]:
    pages = make_pages(-(-tokens // PAGE_SIZE), bits)
    qkv = torch.randn(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    cos, sin = torch.randn(2, tokens, HEAD_DIM // 2, device=DEVICE)
    slots = torch.arange(tokens, device=DEVICE)
    return lambda: rotate_and_store(qkv, cos, sin, pages, slots)


def store_microseconds(tokens: int, bits: int) -> float:
    """Of eight in a row, whose memory the L2 cache may hold."""
    work = store_work(tokens, bits)
    return 125 * graph_milliseconds(lambda: [work() for _ in range(8)])


def sweep() -> None:
    small = {bits: Decode(1, 40, bits) for bits in BITS}
    chunks = {bits: chunk(128, 128, bits) for bits in BITS}
    compile_all(
        [lambda b=b, t=t: small[b].run(t) for b in BITS for t in DECODE_TILES]
        + [
            lambda b=b, t=t: prefill_attention(chunks[b][0], *chunks[b][1], SCALE, tile=t)
            for b in BITS
            for t in PREFILL_TILES
        ]
    )
    print("decode, us a layer at (B, context)", SWEPT_DECODES, "bits", BITS)
    cases = {(d, b): Decode(*d, b) for d in SWEPT_DECODES for b in BITS}
    for t in DECODE_TILES:
        times = [rate(lambda c=case, t=t: c.microseconds(t)) for case in cases.values()]
        print_row(f"{t.keys:>4} keys {t.warps} warps {t.stages} stages", times)
    print("prefill, TFLOP/s of 512, 3500, 2048 of 32768, bits", BITS)
    for t in PREFILL_TILES:
        rates = [
            rate(lambda s=s, b=b, t=t: prefill_rate(*s, b, t)[1])
            for s in ((512, 512), (3500, 3500), (2048, 32768))
            for b in BITS
        ]
        print_row(f"{t.rows:>4} rows {t.keys:>4} keys {t.warps} warps {t.stages} stages", rates)


def print_row(name: str, numbers: list[float]) -> None:
    print(f"{name:<34}" + "".join(f" {x:>7.1f}" for x in numbers), flush=True)


def rate(work: Callable[[], float]) -> float:
    """NaN where a candidate does not fit."""
    try:
        return work()
    except Exception:  # of the compiler, any
        return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true")
    if not torch.cuda.is_available():
        sys.exit("needs a GPU")
    print(torch.cuda.get_device_name())
    (sweep if parser.parse_args().sweep else measure)()


if __name__ == "__main__":
    main()
