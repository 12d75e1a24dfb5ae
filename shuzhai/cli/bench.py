"""`shuzhai bench`: how fast a model runs here, against what the machine can do."""

from __future__ import annotations

import argparse
import gc
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from shuzhai.bench.driver import Driver
from shuzhai.bench.machine import device_name, measure_limits, peak_memory
from shuzhai.bench.pictures import LARGE_PICTURE, picture_latency
from shuzhai.bench.plot import sweep_svg
from shuzhai.bench.report import Card, Report, json_line
from shuzhai.bench.serve import serve, served_model
from shuzhai.bench.standin import standin_server
from shuzhai.bench.text import latency, prefill, sweep, throughput
from shuzhai.bench.work import Work
from shuzhai.bench.workload import MAX_TOKENS, NUM_REQUESTS, workload
from shuzhai.checkpoint import read_checkpoint_config
from shuzhai.cli.known_models import known_model
from shuzhai.cli.plan import add_size_options, size_config
from shuzhai.config import EngineConfig, Environment, ModelConfig
from shuzhai.engine.engine import Engine
from shuzhai.engine.runner import choose_dtype
from shuzhai.errors import ConfigError, ShuzhaiError
from shuzhai.hub.progress import SilentProgress
from shuzhai.hub.pull import resolve
from shuzhai.hub.shapes import SHAPES
from shuzhai.hub.store import Store
from shuzhai.kernels.choose import choose_device

# Ids that every model's vocabulary has, for a server of which nothing is known.
_SMALL_VOCAB = 4000
_LONGEST_SIDE = 10_000
# Their prompts are made before the first is sent.
_MOST_REQUESTS = 1_000_000
_GPU_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_GPU_CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bench",
        description="Measure how fast a model runs here, against what the machine can do: a card, "
        "a table and one line of JSON.",
    )
    kinds = parser.add_subparsers(dest="bench", metavar="KIND", required=True)
    count = _whole(1)
    one = _add(kinds, "latency", "one stream: time to the first token, and for each further one")
    one.add_argument("--prompt", type=count, metavar="N", help="tokens")
    one.add_argument("--output", type=_whole(2), metavar="N", help="tokens, 2 or more")
    one.add_argument(
        "--picture",
        nargs="?",
        type=_size,
        const=LARGE_PICTURE,
        metavar="WxH",
        help="of a picture instead, for a model that sees (1600x1200: 13 tiles for InternVL)",
    )
    long = _add(kinds, "prefill", "prompts alone: tokens read a second")
    long.add_argument("--prompt", type=count, nargs="+", metavar="N", help="tokens")
    full = _add(kinds, "throughput", "the serving workload, all requests at once")
    _add_workload(full)
    web = _add(kinds, "serve", "the serving workload over HTTP")
    _add_workload(web)
    web.add_argument(
        "--url",
        metavar="URL",
        help="of a running server, which has the MODEL (default: its first one); without, one of "
        "--random-weights is started",
    )
    web.add_argument("--api-key", metavar="KEY", help="the server's key (or set SHUZHAI_API_KEY)")
    web.add_argument(
        "--rate", type=_rate, default=0.0, help="requests a second (default: no limit)"
    )
    web.add_argument("--concurrency", type=count, default=256, help="open at a time (default: 256)")
    grow = _add(kinds, "sweep", "decode speed against batch and context")
    grow.add_argument("--batches", type=count, nargs="+", metavar="N")
    grow.add_argument("--contexts", type=count, nargs="+", metavar="N")
    grow.add_argument(
        "--batch-context", type=count, default=112, metavar="N", help="of the batches"
    )
    grow.add_argument("--steps", type=_whole(4), metavar="N", help="of each point")
    grow.add_argument("--svg", type=_file, metavar="FILE", help="draw it, too")
    for each in (one, long, full):
        each.add_argument("--repeats", type=count, metavar="N")
    for name, run_one in _KINDS.items():
        kinds.choices[name].set_defaults(run=run_one)


def _add(
    kinds: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a name that `shuzhai list` shows, or a checkpoint folder",
    )
    parser.add_argument(
        "--random-weights",
        metavar="NAME",
        help=f"a model's shapes without its weights: {', '.join(SHAPES)}, or a folder",
    )
    parser.add_argument("--json", type=_file, metavar="FILE", help="write the line of JSON there")
    add_size_options(parser)
    return parser


def _add_workload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--requests",
        type=_whole(1, _MOST_REQUESTS),
        metavar="N",
        help=f"default: {NUM_REQUESTS} on a GPU",
    )
    parser.add_argument(
        "--max-tokens",
        type=_whole(4),
        metavar="N",
        help=f"of a prompt, and of an answer (default: {MAX_TOKENS} on a GPU)",
    )


def _whole(least: int, most: int = 10_000_000) -> Callable[[str], int]:
    """For argparse. There is always a most: prompts of so many tokens are made."""

    def read(text: str) -> int:
        if not (text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
            what = f"must be a whole number from {least} to {most:,}"
            raise argparse.ArgumentTypeError(f"{what}, not {text[:64]!r}")
        return int(text)

    return read


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"a size is like 1600x1200, not {text!r}")
    if not all(1 <= int(side) <= _LONGEST_SIDE for side in (width, height)):
        raise argparse.ArgumentTypeError(f"sides are from 1 to {_LONGEST_SIDE}, not {text}")
    return int(width), int(height)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of 0 or more, not {text!r}")
    return rate


def _file(text: str) -> Path:
    """Before anything is measured: the folder must be there."""
    path = Path(text)
    # Path.is_dir would raise the error of a name that is too long, or of a folder that is locked.
    if os.path.isdir(path) or not os.path.isdir(path.absolute().parent):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: it must be in a folder")
    return path


class _Stage:
    """The engine to be measured, and what is printed of it."""

    def __init__(self, args: argparse.Namespace, config: EngineConfig) -> None:
        environment = Environment.read()
        self.device = choose_device(config.device)
        self.is_gpu = self.device.type == "cuda"
        name, model, load = _chosen(args, config, environment)
        _say(f"Measuring the limits, then loading {name} ...", "dim")
        limits = measure_limits(self.device, choose_dtype(model, config, self.device))
        start = time.perf_counter()
        engine = load()
        startup = time.perf_counter() - start
        self.driver = Driver(engine, self.device)
        self.work = Work.of(engine, limits)
        first = self.driver.warm_up()
        gc.freeze()  # as servers do
        times = (startup, first)
        self.card = Card.of(engine, name, device_name(self.device), limits, times)
        _say(self.card.lines() + "\n")

    def show(self, args: argparse.Namespace, report: Report) -> int:
        peak = peak_memory(self.device)
        _say(f"{report.table()}\n\npeak     {peak.line()}")
        return _end(args, json_line(args.bench, report, self.card, peak))


def _say(text: str, style: str = "") -> None:
    Console(highlight=False).print(Text(text, style), soft_wrap=True)


def _end(args: argparse.Namespace, line: str) -> int:
    _say(line)
    _write(args.json, line + "\n")
    return 0


def _write(file: Path | None, text: str) -> None:
    """Comes last: what was measured is shown, whatever becomes of a file."""
    if file is None:
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ShuzhaiError(
            f"{file} cannot be written: {error.strerror}; what was measured is above"
        ) from None


def _chosen(
    args: argparse.Namespace, config: EngineConfig, environment: Environment
) -> tuple[str, ModelConfig, Callable[[], Engine]]:
    """Name, numbers and how it is loaded."""
    if args.random_weights is not None:
        if args.model is not None:
            raise ConfigError("give a MODEL or --random-weights NAME, not both")
        name, model = known_model(args.random_weights, environment)
        return f"random {name}", model, lambda: Engine.random(model, config)
    if args.model is None:
        raise ConfigError("say what to measure: a MODEL, or --random-weights NAME")
    store = Store.at_home(environment)
    folder = resolve(args.model, store, SilentProgress(), environment=environment)
    name, model = known_model(str(folder), environment)
    return name, model, lambda: Engine.load(read_checkpoint_config(folder), config, folder)


def _run_latency(args: argparse.Namespace) -> int:
    config = size_config(args)
    if args.picture is not None:
        config = replace(config, enable_prefix_caching=False)
    stage = _Stage(args, config)
    repeats = args.repeats or (5 if stage.is_gpu else 2)
    if args.picture is None:
        room = stage.driver.engine.max_model_len
        prompt = args.prompt or min(128 if stage.is_gpu else 32, room // 2)
        output = args.output or max(2, min(512 if stage.is_gpu else 16, room - prompt))
        return stage.show(args, latency(stage.driver, stage.work, prompt, output, repeats))
    if stage.driver.engine.model_config.vision is None:
        raise ConfigError(f"{stage.card.model} reads text only; leave --picture out")
    return stage.show(args, picture_latency(stage.driver, stage.work, args.picture, repeats))


def _run_prefill(args: argparse.Namespace) -> int:
    stage = _Stage(args, size_config(args))
    most = stage.driver.engine.max_model_len - 1
    usual = (512, 3500) if stage.is_gpu else (64, 256)
    lengths = args.prompt or sorted({min(length, most) for length in usual})
    repeats = args.repeats or (10 if stage.is_gpu else 2)
    return stage.show(args, prefill(stage.driver, stage.work, lengths, repeats))


def _run_throughput(args: argparse.Namespace) -> int:
    stage = _Stage(args, size_config(args))
    count, most = _workload_size(args, stage.is_gpu)
    repeats = args.repeats or 1
    return stage.show(args, throughput(stage.driver, stage.work, count, most, repeats))


def _run_sweep(args: argparse.Namespace) -> int:
    stage = _Stage(args, size_config(args))
    batches = args.batches if args.batches is not None else _GPU_BATCHES if stage.is_gpu else (1, 4)
    contexts = args.contexts
    if contexts is None:
        contexts = _GPU_CONTEXTS if stage.is_gpu else (64, 256)
    steps = args.steps or (48 if stage.is_gpu else 12)
    report = sweep(stage.driver, stage.work, batches, contexts, args.batch_context, steps)
    code = stage.show(args, report)
    title = f"{stage.card.model}, {stage.card.dtype}, KV {stage.card.kv_dtype}"
    _write(args.svg, sweep_svg(title, report.results))
    return code


def _run_serve(args: argparse.Namespace) -> int:
    config, environment = size_config(args), Environment.read()
    key = args.api_key or environment.api_key
    if args.url is not None:
        return _serve_there(args, key)
    if args.model is not None:
        raise ConfigError(
            "a MODEL needs --url of a server that has it; --random-weights NAME needs none"
        )
    if args.random_weights is None:
        raise ConfigError("say what to measure: --url of a server, or --random-weights NAME")
    name, model = known_model(args.random_weights, environment)
    device = choose_device(config.device)
    asked = _web_workload(args, model.decoder.vocab_size, is_gpu=device.type == "cuda")
    _say(f"Starting a server of random {name} ...", "dim")
    limits = None
    if device.type == "cpu":
        limits = measure_limits(device, choose_dtype(model, config, device))
    with standin_server(name, model, config, limits) as server:
        _say(server.card.lines() + "\n")
        lengths = [(len(ids), answer) for ids, answer in asked]
        least = server.work.serve_seconds(lengths, args.concurrency)
        report = serve(server.url, key, name, asked, args.rate, args.concurrency, least)
        peak = server.peak()
    _say(f"{report.table()}\n\npeak     {peak.line()}")
    return _end(args, json_line(args.bench, report, server.card, peak))


def _serve_there(args: argparse.Namespace, key: str | None) -> int:
    """By the server that runs at --url."""
    if args.random_weights is not None:
        raise ConfigError("a server at --url has its own models: leave --random-weights out")
    model = served_model(args.url, key, args.model)
    _say(f"model    {model}\nserver   {args.url}\n")
    asked = _web_workload(args, _SMALL_VOCAB, is_gpu=True)
    report = serve(args.url, key, model, asked, args.rate, args.concurrency)
    _say(report.table())
    return _end(args, json_line(args.bench, report, model, None))


def _web_workload(
    args: argparse.Namespace, vocab_size: int, *, is_gpu: bool
) -> list[tuple[list[int], int]]:
    count, most = _workload_size(args, is_gpu)
    return workload(count, max_tokens=most, vocab_size=vocab_size)


def _workload_size(args: argparse.Namespace, is_gpu: bool) -> tuple[int, int]:
    """Requests, and the most tokens of a prompt or an answer; a few short ones on a CPU."""
    count = args.requests or (NUM_REQUESTS if is_gpu else 8)
    return count, args.max_tokens or (MAX_TOKENS if is_gpu else 32)


_KINDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "latency": _run_latency,
    "prefill": _run_prefill,
    "throughput": _run_throughput,
    "serve": _run_serve,
    "sweep": _run_sweep,
}
