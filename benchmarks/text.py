"""Speed of the text engine against what this machine can do at most, both measured in this run.

    python -m benchmarks.text                                        # the demo model
    python -m benchmarks.text --random-weights internlm2-chat-1.8b   # the real shapes

Prints a card, one table of medians and, last, one line of JSON. A decode step must read every
weight once (and the cache), so its limit is read bandwidth; a prefill must do two operations for
each weight and token, so its limit is the rate of a large float32 or bfloat16 matrix product,
whichever is higher.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass

import torch

from shuzhai.bench.machine import Limits, device_name, measure_limits
from shuzhai.checkpoint import read_checkpoint_config
from shuzhai.config import EngineConfig, Environment
from shuzhai.engine.engine import Engine
from shuzhai.engine.request import Request, SamplingParams
from shuzhai.hub.catalog import DEFAULT_MODEL
from shuzhai.hub.progress import SilentProgress
from shuzhai.hub.pull import resolve
from shuzhai.hub.shapes import SHAPES
from shuzhai.hub.store import Store
from shuzhai.models.decoder import decoder_shapes


@dataclass(frozen=True)
class Result:
    """A row of the table. share: achieved / limit."""

    name: str
    tokens_per_s: float
    bytes_per_token: float
    limit_tokens_per_s: float

    @property
    def share(self) -> float:
        return self.tokens_per_s / self.limit_tokens_per_s


class Bench:
    """One engine, timed at three kinds of work."""

    def __init__(self, engine: Engine, limits: Limits, repeats: int) -> None:
        self._engine = engine
        self._limits = limits
        self._repeats = repeats
        self._count = 0
        model = engine.model_config.decoder
        element = engine.dtype.itemsize
        # The embedding is looked up, not read through; a tied one is read as the head.
        matrices = {k: torch.Size(s).numel() for k, s in decoder_shapes(model).items()}
        if not model.tie_word_embeddings:
            del matrices["embedding"]
        self._parameters = sum(matrices.values())
        self._weight_bytes = self._parameters * element
        self.kv_bytes = engine.plan.block_bytes // engine.plan.block_size

    def _requests(self, count: int, prompt: int, output: int) -> list[Request]:
        """Prompts that share no prefix with any before."""
        vocab = self._engine.model_config.decoder.vocab_size
        params = SamplingParams(temperature=0, max_tokens=output)
        made = []
        for _ in range(count):
            self._count += 1
            ids = ((self._count * 7919 + 31 * i * i) % (vocab - 10) + 5 for i in range(prompt))
            made.append(Request(str(self._count), tuple(ids), params))
        return made

    def _run(self, requests: list[Request]) -> list[float]:
        """Seconds of each step."""
        for request in requests:
            self._engine.check(request)
            self._engine.add(request)
        times = []
        while self._engine.has_work:
            start = time.perf_counter()
            self._engine.step()
            times.append(time.perf_counter() - start)
        return times

    def decode(self, streams: int, prompt: int = 64, output: int = 48) -> Result:
        """Steady decode steps of so many streams: the last ones, when every stream has begun."""
        steps: list[float] = []
        for _ in range(self._repeats):
            steps += self._run(self._requests(streams, prompt, output))[-(output // 2) :]
        context = streams * (prompt + 3 * output // 4)
        bytes_per_step = self._weight_bytes + context * self.kv_bytes
        flops_per_step = 2 * self._parameters * streams
        limit_seconds = max(
            bytes_per_step / self._limits.read_bytes_per_s,
            flops_per_step / self._limits.flops_per_s,
        )
        return Result(
            f"decode, {streams} stream{'s' * (streams > 1)}",
            streams / statistics.median(steps),
            bytes_per_step / streams,
            streams / limit_seconds,
        )

    def prefill(self, prompt: int) -> Result:
        rates = []
        for _ in range(self._repeats):
            rates.append(prompt / sum(self._run(self._requests(1, prompt, 1))))
        return Result(
            f"prefill, {prompt} tokens",
            statistics.median(rates),
            self._weight_bytes / self._engine.config.max_num_batched_tokens,
            self._limits.flops_per_s / (2 * self._parameters),
        )


def load(args: argparse.Namespace) -> tuple[str, Engine]:
    config = EngineConfig(device="cpu", dtype=args.dtype, max_model_len=args.max_model_len)
    if args.random_weights:
        return f"random {args.random_weights}", Engine.random(SHAPES[args.random_weights], config)
    environment = Environment.read()
    store = Store.at_home(environment)
    folder = resolve(args.model, store, SilentProgress(), environment=environment)
    return args.model, Engine.load(read_checkpoint_config(folder), config, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a catalog name or a folder")
    parser.add_argument("--random-weights", choices=sorted(SHAPES))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    device = torch.device("cpu")
    limits = measure_limits(device, torch.float32)
    name, engine = load(args)
    bench = Bench(engine, limits, args.repeats)
    print(f"model    {name}, {args.dtype}")
    print(f"memory   {engine.plan.line()}; {bench.kv_bytes:,} bytes of KV a token")
    print(f"machine  {device_name(device)}\nlimits   {limits.line()}\n")
    results = [bench.prefill(args.prompt)] + [bench.decode(n) for n in args.streams]
    print(f"{'':24}{'tokens/s':>10}{'MB/token':>10}{'limit':>10}{'share':>8}")
    for r in results:
        print(
            f"{r.name:24}{r.tokens_per_s:>10.1f}{r.bytes_per_token / 1e6:>10.2f}"
            f"{r.limit_tokens_per_s:>10.1f}{r.share:>8.0%}"
        )
    record = {r.name: {"tokens_per_s": r.tokens_per_s, "share": r.share} for r in results}
    print(json.dumps({"model": name, "dtype": args.dtype, **record}))


if __name__ == "__main__":
    main()
