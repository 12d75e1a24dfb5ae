"""Options that several commands have: which model, and how its engine runs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import Any

from shuzhai.hub.catalog import DEFAULT_MODEL, DEFAULT_MODELS

DEFAULT_PORT = 6006
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_ENGINE = ("device", "dtype", "kv_dtype", "memory", "max_model_len", "chat_template", "max_tiles")


class Parser(argparse.ArgumentParser):
    """Takes options between MODEL and QUESTION too, where Python before 3.13 has lost the question,
    and between the models of a list.

    There an optional argument that is not beside the one before it counts as absent.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        parsed, rest = super().parse_known_args(args, namespace)
        lost = len(rest) == 1 and not rest[0].startswith("-")
        if lost and vars(parsed).get("question", "") is None:
            parsed.question = rest.pop()
        if "models" in parsed and not any(word.startswith("-") for word in rest):
            parsed.models, rest = [*parsed.models, *rest], []
        return parsed, rest


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help=f"a name that `shuzhai list` shows, or a checkpoint folder (default: {DEFAULT_MODEL})",
    )


def add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="*",
        help="names that `shuzhai list` shows, or checkpoint folders; the first is loaded at once, "
        f"the others when they are asked for (default: {', '.join(DEFAULT_MODELS)})",
    )


def add_server_address(parser: argparse.ArgumentParser) -> None:
    """For commands that ask a running server."""
    parser.add_argument(
        "--url",
        default=DEFAULT_URL,
        metavar="URL",
        help=f"of the server (default: {DEFAULT_URL})",
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help="the server's key (or set SHUZHAI_API_KEY)"
    )


def duration(text: str) -> float | None:
    """Seconds of 90, 30s, 5m, 1h or 2d; None of forever. For argparse."""
    if text == "forever":
        return None
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"a duration is 0, 30s, 5m, 1h or forever, and the like, not {text[:64]!r}"
        )
    return float(match[1]) * _SECONDS[match[2]]


def add_engine_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The group, for options of the engine that one command alone has."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:1 (default: auto)"
    )
    group.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="default: auto"
    )
    group.add_argument(
        "--kv-dtype",
        choices=("auto", "int8", "int4"),
        help="of the KV cache: int8 holds nearly twice the tokens, int4 over three times as many "
        "(default: auto)",
    )
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="for all models together, such as 8GiB; Python itself comes on top on a CPU",
    )
    group.add_argument(
        "--max-model-len", type=int, metavar="TOKENS", help="longest prompt and answer together"
    )
    group.add_argument(
        "--chat-template", metavar="NAME", help="instead of the one the model's config names"
    )
    group.add_argument(
        "--max-tiles",
        type=int,
        metavar="N",
        help="the most tiles a picture is cut into (default: as the model was trained)",
    )
    return group


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of add_engine_options that were given, as keyword arguments of AsyncEngine.load."""
    return given(args, _ENGINE)


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The options of these names that were given."""
    values = vars(args)
    return {name: values[name] for name in names if values[name] is not None}
