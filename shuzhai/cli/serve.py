"""`shuzhai serve [MODEL]`: the web page and the OpenAI-compatible API."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import re
import time

from rich.console import Console
from rich.text import Text

from shuzhai.cli.options import add_engine_options, add_model, engine_options, given
from shuzhai.cli.pull import ProgressBar
from shuzhai.config import Environment
from shuzhai.frontend.async_engine import AsyncEngine
from shuzhai.hub.catalog import DEFAULT_MODEL
from shuzhai.server.app import create_app
from shuzhai.server.registry import ServedModel
from shuzhai.server.run import PoliteServer, bind, listen
from shuzhai.server.settings import ServerConfig, is_loopback

DEFAULT_PORT = 6006


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="start the web page and the OpenAI-compatible API",
        description="Start the web page and the OpenAI-compatible API.",
    )
    add_model(parser)
    _add_server_options(parser.add_argument_group("server"))
    add_engine_options(parser).add_argument(
        "--max-num-seqs", type=int, metavar="N", help="answers that are written at a time"
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
        "--served-model-name", metavar="NAME", help="how clients call the model (default: its name)"
    )
    group.add_argument("--verbose", action="store_true", help="log every request")


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Load the model, then serve until a signal; the port is listened on once all is ready."""
    environment = Environment.read()
    console = Console(highlight=False)
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
    with bind(args.host, args.port) as sock:
        engine = _load(args, console)
        model = _served_model(args, engine)
        listen(sock)
        port = sock.getsockname()[1]
        for line in announcement(config, port, model.name, environment, engine.plan_line):
            console.print(line, soft_wrap=True)
        server = PoliteServer(
            create_app([model], config), [engine], access_log=args.verbose, say=console.print
        )
        asyncio.run(server.serve([sock]))
    console.print("\nStopped.")
    return 0


def _load(args: argparse.Namespace, console: Console) -> AsyncEngine:
    if args.model is None:
        console.print(
            f"No model is named: {DEFAULT_MODEL} it is, a small one that needs no GPU and no hub. "
            "Others: shuzhai list",
            soft_wrap=True,
        )
    options = engine_options(args) | given(args, ("max_num_seqs",))
    with ProgressBar() as progress:
        return AsyncEngine.load(args.model or DEFAULT_MODEL, pull_progress=progress, **options)


def _served_model(args: argparse.Namespace, engine: AsyncEngine) -> ServedModel:
    """Goes by the name that was wished for, else its own; what the user typed is understood too."""
    name = args.served_model_name or engine.name
    return ServedModel(name, engine, int(time.time()), (engine.name, args.model or DEFAULT_MODEL))


def announcement(
    config: ServerConfig, port: int, model: str, environment: Environment, memory_line: str
) -> list[Text]:
    """What is printed when the server is ready."""
    host = _reachable_host(config.host)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    lines = [
        Text(memory_line),
        Text.assemble(("Ready: ", "bold green"), model, " at ", (url, "bold")),
        Text(f"OpenAI-compatible API: {url}/v1"),
    ]
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
