"""`shuzhai serve [MODEL ...]`: the web page and the OpenAI-compatible API."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import re
import socket
from collections.abc import Sequence
from contextlib import closing, suppress
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from rich.console import Console
from rich.text import Text

from shuzhai.cli.options import (
    DEFAULT_PORT,
    add_engine_options,
    add_models,
    duration,
    engine_options,
    given,
)
from shuzhai.cli.pull import ProgressBar
from shuzhai.config import EngineConfig, Environment
from shuzhai.engine.engine import budget_bytes
from shuzhai.engine.process_memory import share_one_arena
from shuzhai.errors import ConfigError, ShuzhaiError
from shuzhai.hub.catalog import DEFAULT_MODELS
from shuzhai.server.app import create_app
from shuzhai.server.chats.database import Database
from shuzhai.server.errors import RefusedError
from shuzhai.server.model import ServedModel
from shuzhai.server.offers import Offers
from shuzhai.server.page_files import read_page
from shuzhai.server.registry import Registry
from shuzhai.server.run import PoliteServer, bind, listen, stop_signals_end
from shuzhai.server.settings import ServerConfig, is_loopback
from shuzhai.server.source import CheckpointSource

# For the first byte of the text demo, where others could be served meanwhile.
_PATIENCE_SECONDS = 15.0
# The same where it is not told what comes: by an old pip, or by another process that fetches it.
_BLIND_PATIENCE_SECONDS = 60.0
# Options that are AsyncEngine.load's and not EngineConfig's.
_LOAD_OPTIONS = ("chat_template", "max_tiles")


class _ServerConsole(Console):
    """A terminal or pipe that may go away, or a disk that may be full, while the server goes on."""

    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Rich would end the process."""
        self.quiet = True
        with open(os.devnull, "wb") as nowhere:  # for what Python itself writes at its end
            os.dup2(nowhere.fileno(), self.file.fileno())


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "serve",
        description="Start the web page and the OpenAI-compatible API.",
    )
    add_models(parser)
    _add_server_options(parser.add_argument_group("server"))
    group = add_engine_options(parser)
    group.add_argument(
        "--max-num-seqs", type=int, metavar="N", help="answers that are written at a time"
    )
    group.add_argument(
        "--max-num-batched-tokens",
        type=int,
        metavar="N",
        help="tokens of one step at most: longer prompts are read in parts",
    )
    parser.set_defaults(run=run)


def _add_server_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only; 0.0.0.0: all networks)",
    )
    group.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help=f"default: {DEFAULT_PORT}; 0: a free one"
    )
    group.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="clients must send this key; may be given several times (or set SHUZHAI_API_KEY)",
    )
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which a proxy shows this server; may be given several times",
    )
    group.add_argument(
        "--allowed-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a web page's origin (https://example.org) that may use the API; may be repeated",
    )
    group.add_argument(
        "--allowed-image-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host, or host:port, that pictures may be fetched from; may be repeated (default: "
        "none, pictures come inside of requests)",
    )
    group.add_argument(
        "--root-path", default="", metavar="PATH", help="path under which a proxy shows this server"
    )
    group.add_argument(
        "--served-model-name",
        metavar="NAME",
        help="how clients call the model, where it is the only one (default: its name)",
    )
    group.add_argument(
        "--keep-alive",
        type=duration,
        default=None,
        metavar="DURATION",
        help="unload a model that was idle for so long: 5m, 30s, 1h, 0 (default: forever, which is "
        "until another model needs the memory)",
    )
    group.add_argument(
        "--no-pull",
        action="store_true",
        help="let no client have more models fetched and served than those named here",
    )
    group.add_argument("--verbose", action="store_true", help="log every request")


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Load the first model, then serve until a signal; the port is listened on once it is ready."""
    share_one_arena()
    environment = Environment.read()
    console = _ServerConsole(highlight=False)
    config = ServerConfig(
        host=args.host,
        api_keys=(*args.api_key, *([environment.api_key] if environment.api_key else [])),
        allowed_hosts=tuple(args.allowed_host),
        allowed_origins=tuple(args.allowed_origin),
        allowed_image_hosts=tuple(args.allowed_image_host),
        root_path=args.root_path.rstrip("/"),
    )
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that left
    registry, offers = _models(args, environment, console)
    with (
        bind(args.host, args.port) as sock,
        closing(Database.open(environment.home)) as database,
        suppress(asyncio.CancelledError),
    ):
        page = read_page(files("shuzhai.server") / "page")
        app = create_app(registry, config, database=database, offers=offers, page=page)
        asyncio.run(_serve(args, app, registry, config, environment, console, sock))
    console.print("\nStopped.")
    return 0


def _models(
    args: argparse.Namespace, environment: Environment, console: Console
) -> tuple[Registry, Offers]:
    """Those that are served, and what clients may add."""
    for option in ("served_model_name", "chat_template"):
        if vars(args)[option] is not None and len(args.models) != 1:
            name = option.replace("_", "-")
            raise ConfigError(f"--{name} is for one model: serve one, or leave it out")
    options = engine_options(args) | given(args, ("max_num_seqs", "max_num_batched_tokens"))
    extra = {name: options.pop(name) for name in _LOAD_OPTIONS if name in options}
    config = EngineConfig.from_options(options)
    extra |= {"name": args.served_model_name, "is_name": not args.models}
    sources = [
        CheckpointSource(model, config, environment, **extra)
        for model in args.models or DEFAULT_MODELS
    ]
    registry = Registry(
        sources,
        budget_bytes(config),
        keep_alive=args.keep_alive,
        say=lambda line: console.print(Text(line, "dim"), soft_wrap=True),
    )
    added = extra | {"name": None, "is_name": True, "chat_template": None}
    return registry, Offers(
        lambda name: CheckpointSource(name, config, environment, **added),
        may_pull=not args.no_pull,
    )


async def _serve(
    args: argparse.Namespace,
    app: FastAPI,
    registry: Registry,
    config: ServerConfig,
    environment: Environment,
    console: Console,
    sock: socket.socket,
) -> None:
    server = PoliteServer(app, registry, access_log=args.verbose, say=console.print)
    task = asyncio.current_task()
    assert task is not None, "a coroutine that runs is part of one"
    with stop_signals_end(task):
        try:
            if not args.models:
                console.print(
                    "No model is named: small ones it is, which need no GPU and no hub. "
                    "Others: shuzhai list",
                    soft_wrap=True,
                )
            await _load_first(registry, console, is_default=not args.models)
            listen(sock)
            port, names = sock.getsockname()[1], [model.name for model in registry.models]
            for line in announcement(config, port, names, environment, registry.budget_bytes):
                console.print(line, soft_wrap=True)
            await server.serve([sock])
        finally:
            await registry.shutdown()


async def _load_first(registry: Registry, console: Console, is_default: bool) -> None:
    """Load the first model; of the default ones, the first that can be had soon.

    ShuzhaiError names the model, and of the default ones is raised if none can be loaded.
    """
    if not is_default:
        await _load(registry, registry.models[0])
        return
    slow = []
    for model in registry.models:
        try:
            if await _load(registry, model, is_patient=False):
                return
            slow.append(model)
            hint = f"Nothing is seen of {model.name} so far: going on without, while it is fetched."
        except ShuzhaiError as error:
            hint = f"{error} Going on without {model.name}: when asked for, it is tried again."
        console.print(Text(hint, "yellow"), soft_wrap=True)
    if not slow:
        raise ShuzhaiError("none of the default models can be loaded; see above why")
    await _load(registry, slow[0])


async def _load(registry: Registry, model: ServedModel, *, is_patient: bool = True) -> bool:
    """Load a model. False if that goes on, as nothing has come of it for too long.

    ShuzhaiError names the model.
    """
    with ProgressBar(_ServerConsole(stderr=True)) as progress:
        load = asyncio.ensure_future(registry.load(model.name, progress))
        try:
            if not is_patient:
                await _wait_patiently(load, model)
            if is_patient or load.done():
                await load
            return load.done()
        except (ShuzhaiError, RefusedError) as error:
            raise ShuzhaiError(f"{model.name} could not be loaded: {error}") from error
        finally:
            load.cancel()  # the waiting, that is: the load itself goes on


async def _wait_patiently(load: asyncio.Future[Any], model: ServedModel) -> None:
    """Until the load is over, or too long has passed in which nothing has come of the model."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not load.done():
        progress = model.progress
        if progress is not None and not progress.has_come:
            patience = _PATIENCE_SECONDS if progress.is_measured else _BLIND_PATIENCE_SECONDS
            if loop.time() >= began + patience:
                return
        await asyncio.wait({load}, timeout=0.2)


def announcement(
    config: ServerConfig,
    port: int,
    models: Sequence[str],
    environment: Environment,
    budget_bytes: int,
) -> list[Text]:
    """What is printed when the server is ready."""
    host = _reachable_host(config.host)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    lines = [
        Text.assemble(("Ready: ", "bold green"), ", ".join(models), " at ", (url, "bold")),
        Text(f"OpenAI-compatible API: {url}/v1"),
    ]
    if len(models) > 1:
        lines.append(
            Text(
                f"Models are loaded when they are asked for, all within {budget_bytes / 2**30:.2f} "
                "GiB of memory. See them with: shuzhai ps"
            )
        )
    if environment.in_ssh:
        lines.append(Text("From your own computer, open a tunnel there, then the page:"))
        lines.append(Text("  " + tunnel_command(environment, shown, port), style="bold"))
        lines.append(Text(f"  http://127.0.0.1:{port}"))
    if not is_loopback(config.host) and not config.api_keys:
        lines.append(
            Text(
                f"Warning: everybody who can reach {config.host} port {port} can use this server. "
                "Give it a key with --api-key KEY, or listen on this machine only "
                "(leave --host out).",
                style="yellow",
            )
        )
    lines.append(Text("Ctrl+C stops.", style="dim"))
    return lines


def tunnel_command(environment: Environment, host: str, port: int) -> str:
    """The ssh command to copy; what cannot be known is in capitals."""
    user = environment.user or "USER"
    parts = environment.ssh_connection.split()
    here, ssh_port = (parts[2], parts[3]) if len(parts) == 4 else ("HOST", "22")
    option = "" if ssh_port == "22" else f" -p {ssh_port}"
    return f"ssh -CN -L {port}:{host}:{port}{option} {user}@{here}"


def _reachable_host(host: str) -> str:
    """An address to call a server by: those that mean "all" are no addresses."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"
