"""`shuzhai ps`: the models of a running server, and what each is doing. Also how one is asked."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shuzhai.cli.options import add_server_address
from shuzhai.config import Environment
from shuzhai.errors import ConfigError, ShuzhaiError

# A model that is unloaded first ends the step that it is in. If that takes more than a minute, the
# server says so itself.
_SECONDS = 75.0
_STYLES = {"loaded": "green", "loading": "yellow", "failed": "red"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "ps",
        description="Show the models of a running server, and what each is doing.",
    )
    add_server_address(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    models = ask(args, "GET", "/v1/models").get("data")
    if not isinstance(models, list) or not all(_is_model(model) for model in models):
        raise ShuzhaiError(f"what answers at {args.url} is no server of shuzhai")
    console = Console(highlight=False)
    console.print(_table(models), soft_wrap=True)
    for model in models:
        if model["status"] is not None:
            name, status = str(model["id"]), str(model["status"])
            # Why it could not be loaded, say, names it already.
            line = status if status.startswith(f"{name} ") else f"{name}: {status}"
            console.print(Text(f"\n{line}", "dim"), soft_wrap=True)
    return 0


def ask(
    args: argparse.Namespace, method: str, path: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The server's answer to one request. ShuzhaiError says what is wrong, and what to do."""
    url = args.url if "://" in args.url else f"http://{args.url}"
    url = url.rstrip("/").removesuffix("/v1")
    key = args.api_key or Environment.read().api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        # A proxy of the environment would be asked for this machine's own server.
        with httpx.Client(timeout=_SECONDS, trust_env=False) as client:
            reply = client.request(method, url + path, json=body, headers=headers)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeEncodeError):
        raise ConfigError(
            f"a server's URL looks like http://127.0.0.1:6006, not {args.url!r}, and its key is "
            "plain ASCII"
        ) from None
    except httpx.ReadTimeout:
        raise ShuzhaiError(
            f"the server at {url} has not answered for {_SECONDS:.0f} seconds: it is still at it. "
            "See how far it is with: shuzhai ps"
        ) from None
    except httpx.HTTPError as error:
        raise ShuzhaiError(
            f"no server answers at {url} ({type(error).__name__}). Start one with: shuzhai serve, "
            "or say where it is with --url URL"
        ) from None
    if reply.status_code == 401:
        what = "needs its API key" if key is None else "does not know this API key"
        raise ShuzhaiError(f"the server at {url} {what}: give --api-key KEY or set SHUZHAI_API_KEY")
    try:
        answer = reply.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        answer = None
    if not isinstance(answer, dict):
        raise ShuzhaiError(f"what answers at {url} is no server of shuzhai")
    if reply.status_code != 200:
        error = answer.get("error")
        message = error.get("message") if isinstance(error, dict) else None
        raise ShuzhaiError(str(message or f"{url} answered {reply.status_code}"))
    return answer


def _is_model(model: Any) -> bool:
    return isinstance(model, dict) and {"id", "state", "requests", "status"} <= model.keys()


def _table(models: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for name, justify in (
        ("MODEL", "left"),
        ("STATE", "left"),
        ("MEMORY", "right"),
        ("REQUESTS", "right"),
        ("IDLE", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)
    for model in models:
        state, size = str(model["state"]), model.get("memory_bytes")
        table.add_row(
            Text(str(model["id"])),
            Text(_state(model), _STYLES.get(state, "dim")),
            "" if size is None else f"{size / 2**30:.2f} GiB",
            str(model["requests"]),
            _idle(model),
        )
    return table


def _state(model: Mapping[str, Any]) -> str:
    share = model.get("progress")
    return str(model["state"]) + ("" if share is None else f" {share:.0%}")


def _idle(model: Mapping[str, Any]) -> str:
    idle, left = model.get("idle_seconds"), model.get("unload_in_seconds")
    if idle is None:
        return ""
    return _time(idle) + ("" if left is None else f", unloaded in {_time(left)}")


def _time(seconds: float) -> str:
    """42s, 5m 3s, 2h 15m"""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"
