"""`shuzhai plan MODEL`: where the memory would go, before anything is fetched or loaded."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict, dataclass, replace

import torch
from rich.console import Console
from rich.text import Text

from shuzhai.cli.known_models import known_model
from shuzhai.cli.options import given
from shuzhai.cli.plan_words import PlanWords, words_of
from shuzhai.config import EngineConfig, Environment, ModelConfig
from shuzhai.engine.memory import (
    Change,
    ElementSizes,
    MemoryPlan,
    changes_that_fit,
    memory_budget,
    memory_need,
    plan_memory,
)
from shuzhai.engine.memory_table import CHAT_TOKENS, align, size_text
from shuzhai.engine.runner import available_bytes, choose_dtype, element_sizes
from shuzhai.engine.workspace import context_estimate
from shuzhai.errors import MemoryBudgetError
from shuzhai.hub.catalog import DEFAULT_MODEL
from shuzhai.kernels.choose import choose_device

# What the product promises to run in; for a plan of a GPU that is not here.
_PROMISED_MEMORY = "8GiB"
_KV_DTYPES = ("auto", "int8", "int4")
_SIZE_OPTIONS = (
    "dtype",
    "kv_dtype",
    "memory",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
)


@dataclass(frozen=True, slots=True)
class _Case:
    """What is planned: a model with a config, resolved, on "cpu" or "cuda".

    available_bytes  of the device, for memory "auto"
    device_bytes     all of the card, where there is one
    """

    model: ModelConfig
    config: EngineConfig
    device_type: str
    available_bytes: int
    device_bytes: int | None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights. A card that is not here has bfloat16."""
        if self.device_type == "cuda" and not torch.cuda.is_available():
            assumed = replace(self.config, dtype="bfloat16")
            config = assumed if self.config.dtype == "auto" else self.config
            return choose_dtype(self.model, config, torch.device("cpu"))
        return choose_dtype(self.model, self.config, torch.device(self.device_type))

    @property
    def sizes(self) -> ElementSizes:
        is_gpu = self.device_type == "cuda"
        device_bytes = (self.device_bytes or sys.maxsize) if is_gpu else None
        return element_sizes(self.model, self.config, self.dtype, device_bytes)

    @property
    def budget_bytes(self) -> int:
        return memory_budget(self.config, self.available_bytes, is_gpu=self.device_type == "cuda")

    @property
    def least_bytes(self) -> int:
        return memory_need(self.model, self.config, self.sizes).least_bytes

    def plan(self) -> MemoryPlan | None:
        """None if it does not fit."""
        try:
            return plan_memory(
                self.model,
                self.config,
                available_bytes=self.available_bytes,
                sizes=self.sizes,
            )
        except MemoryBudgetError:
            return None

    def changed(self, change: Change) -> _Case:
        config = EngineConfig.from_options(asdict(self.config) | change)
        return replace(self, config=config)

    def changes(self) -> list[Change]:
        """What would make it fit: more memory, or the options of the engine."""
        found = changes_that_fit(self.model, self.config, self.budget_bytes, self.sizes)
        narrow: Change = {"dtype": "bfloat16"}
        if self.dtype.itemsize > 2 and self.changed(narrow).plan() is not None:
            found.insert(1, narrow)
        return found


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "plan",
        description="Show where the memory of a model would go, what context and how many chats "
        "fit, and if it does not fit, what would. Nothing is fetched or loaded. The exit code is 0 "
        "if it fits.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default=DEFAULT_MODEL,
        help=f"a name that `shuzhai list` shows, or a checkpoint folder (default: {DEFAULT_MODEL})",
    )
    add_size_options(parser)
    parser.set_defaults(run=run)


def add_size_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What the memory depends on, for `plan` and `bench`."""
    group = parser.add_argument_group("engine")
    group.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="default: auto")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of weights and activations (default: auto)",
    )
    group.add_argument(
        "--kv-dtype", choices=_KV_DTYPES, help="of the KV cache (default: auto, as the weights)"
    )
    group.add_argument("--memory", metavar="SIZE", help="for everything, such as 8GiB")
    group.add_argument(
        "--max-model-len", type=int, metavar="TOKENS", help="longest prompt and answer together"
    )
    group.add_argument("--max-num-seqs", type=int, metavar="N", help="answers written at a time")
    group.add_argument(
        "--max-num-batched-tokens", type=int, metavar="N", help="tokens of one step at most"
    )
    return group


def size_config(args: argparse.Namespace) -> EngineConfig:
    """What add_size_options read."""
    return EngineConfig.from_options(given(args, ("device", *_SIZE_OPTIONS)))


def run(args: argparse.Namespace) -> int:
    environment = Environment.read()
    words = words_of(environment.language)
    name, model = known_model(args.model, environment)
    case, is_assumed = _case(model, size_config(args))
    console = Console(highlight=False)

    def say(line: str, style: str = "") -> None:
        console.print(Text(line, style), soft_wrap=True)

    if is_assumed:
        say(words.no_gpu.format(memory=_PROMISED_MEMORY), "dim")
    device = words.gpu if case.device_type == "cuda" else words.cpu
    dtype = str(case.dtype).removeprefix("torch.")
    say(words.heading.format(name=name, dtype=dtype, device=device) + "\n", "bold")
    plan = case.plan()
    if plan is not None:
        say(plan.table(words.table) + "\n")
    say("\n".join(_formats(case, words)) + "\n")
    if plan is not None:
        say(words.fits, "green")
        return 0
    budget, least = size_text(case.budget_bytes), size_text(case.least_bytes)
    say(words.fits_not.format(budget=budget, least=least), "red")
    say(words.would_fit)
    for change in case.changes():
        say("  " + _command(args, change))
    return 1


def _case(model: ModelConfig, config: EngineConfig) -> tuple[_Case, bool]:
    """What to plan, and whether for a card that is not here and of which nothing was said."""
    wants_gpu = config.device.startswith("cuda")
    if wants_gpu and not torch.cuda.is_available():
        is_assumed = config.memory == "auto"
        if is_assumed:
            config = replace(config, memory=_PROMISED_MEMORY)
        return _Case(model, config.resolved("cuda"), "cuda", 0, None), is_assumed
    device = choose_device(config.device)
    available, total = available_bytes(device), None
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        available += context_estimate(total)  # of this process, that the engine would have as well
    return _Case(model, config.resolved(device.type), device.type, available, total), False


def _formats(case: _Case, words: PlanWords) -> list[str]:
    """The formats of the KV cache side by side."""
    chats = (words.chats_of.format(tokens=tokens) for tokens in CHAT_TOKENS)
    rows = [(*words.formats, *chats)]
    for kv_dtype in _KV_DTYPES:
        other = case.changed({"kv_dtype": kv_dtype})
        decoder, plan = case.model.decoder, other.plan()
        heads = 2 * decoder.num_layers * decoder.num_kv_heads
        name = words.plain_kv.format(bits=8 * case.dtype.itemsize)
        cells = [name if kv_dtype == "auto" else kv_dtype]
        cells.append(f"{heads * other.sizes.kv_head_bytes:,}")
        cells.append("-" if plan is None else f"{plan.max_model_len:,}")
        for tokens in CHAT_TOKENS:
            cells.append("-" if plan is None else f"{plan.num_chats(tokens):,}")
        rows.append(tuple(cells))
    return align(rows, right=(1, 2, 3, 4))


def _command(args: argparse.Namespace, change: Change) -> str:
    """This command with other options."""
    options = given(args, _SIZE_OPTIONS) | change
    if args.device != "auto":
        options = {"device": args.device} | options
    words = [w for k, v in options.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    return shlex.join(["shuzhai", "plan", args.model, *words])
