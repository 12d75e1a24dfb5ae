"""Where the time of steps goes: by kernel on the GPU, by function on the host.

python -m benchmarks.profile --batch 1 --context 512 --steps 64
python -m benchmarks.profile --prefill 3500
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections import Counter

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from shuzhai.bench.driver import Driver
from shuzhai.config import EngineConfig
from shuzhai.engine.engine import Engine
from shuzhai.hub.shapes import shape_of

_NUM_KERNELS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="internlm2-chat-1.8b")
    parser.add_argument("--memory", default="8GiB")
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--batch", type=int, nargs="*", default=[])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--prefill", type=int, nargs="*", default=[])
    parser.add_argument("--tiles", type=int, help="encode so many tiles of a vision model")
    parser.add_argument("--host", action="store_true", help="time functions of the host, too")
    args = parser.parse_args()
    began = time.perf_counter()
    config = EngineConfig(device="cuda", memory=args.memory, kv_dtype=args.kv_dtype)
    engine = Engine.random(shape_of(args.model), config)
    driver = Driver(engine, torch.device("cuda"))
    print(f"loaded in {time.perf_counter() - began:.1f} s; {engine.plan.line()}")
    first = driver.warm_up()
    print(f"warm after {time.perf_counter() - began:.1f} s; very first token {first * 1e3:.1f} ms")
    for batch in args.batch:
        decode(driver, batch, args.context, args.steps, host=args.host)
    if args.tiles:
        encode(engine, args.tiles)
    for length in args.prefill:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            seconds = driver.run(driver.random_requests(1, length, 1)).first_token
        show(profiler, f"prefill of {length}: {seconds * 1e3:.2f} ms", 1)


def decode(driver: Driver, batch: int, context: int, steps: int, *, host: bool) -> None:
    """Some steps of a steady batch, after those that read its prompts."""
    engine = driver.engine
    num_output = steps * 3 + 20
    if batch * (context + num_output) > engine.plan.num_tokens:
        print(f"\nbatch {batch}, context {context}: no room")
        return
    for request in driver.random_requests(batch, context, num_output):
        engine.add(request)
    while engine.stats().num_waiting or engine.stats().num_running < batch:
        engine.step()
    for _ in range(steps // 2):
        engine.step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        engine.step()
    torch.cuda.synchronize()
    plain = (time.perf_counter() - start) / steps
    profiler_of_host = cProfile.Profile()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            engine.step()
        torch.cuda.synchronize()
    if host:
        profiler_of_host.enable()
        for _ in range(steps):
            engine.step()
        profiler_of_host.disable()
    show(profiler, f"batch {batch}, context {context}: {plain * 1e3:.3f} ms a step", steps)
    if host:
        pstats.Stats(profiler_of_host).sort_stats("tottime").print_stats(14)
    while engine.has_work:
        engine.step()


def encode(engine: Engine, num_tiles: int) -> None:
    vision = engine.model_config.vision
    assert vision is not None, "a model that sees"
    pixels = np.zeros((num_tiles, vision.image_size, vision.image_size, 3), np.uint8)
    for _ in range(3):
        engine.vision_features(pixels)
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        engine.vision_features(pixels)
    show(profiler, f"{num_tiles} tiles: {(time.perf_counter() - start) * 1e3:.2f} ms", 1)


def show(profiler: profile, title: str, steps: int) -> None:
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent[event.name] += event.device_time
            calls[event.name] += 1
    total = sum(spent.values()) / steps / 1e3
    print(f"\n{title}; {total:.3f} ms of kernels (side by side ones count twice)")
    for name, micros in spent.most_common(_NUM_KERNELS):
        each = micros / calls[name]
        print(f"{micros / steps:10.1f} us  {calls[name] / steps:6.1f} x {each:8.2f}  {name[:90]}")


if __name__ == "__main__":
    main()
