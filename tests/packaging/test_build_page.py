"""The build backend: when the page is built, with which Node; and an install never fails of it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BACKEND = Path(__file__).resolve().parents[2] / "build_backend" / "shuzhai_build.py"


@pytest.fixture
def module() -> ModuleType:
    pytest.importorskip("setuptools")
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
    monkeypatch.setattr(module, "find_node", lambda: ("node", "npm"))
    module.commands = []

    def run(command: list[str], seconds: int) -> None:
        module.commands.append(command[1])
        if command[1] == "ci":
            module.INSTALLED.parent.mkdir()
            module.INSTALLED.write_text("{}")
        else:
            page.mkdir(parents=True, exist_ok=True)
            (page / "index.html").write_text("built")

    monkeypatch.setattr(module, "run", run)
    return module


VITE = str(Path("node_modules", "vite", "bin", "vite.js"))


def test_it_is_built_once_from_the_same_sources(backend: ModuleType) -> None:
    backend.build_page()
    assert backend.commands == ["ci", VITE]
    backend.build_page()
    assert backend.commands == ["ci", VITE]
    (backend.WEB / "src" / "main.tsx").write_text("let b;")
    backend.build_page()
    assert backend.commands == ["ci", VITE, VITE]  # what npm installed is still right
    (backend.WEB / "src" / "main.test.tsx").write_text("a test changes nothing")
    backend.build_page()
    assert backend.commands == ["ci", VITE, VITE]
    (backend.WEB / "src" / "main.tsx").unlink()
    backend.build_page()
    assert backend.commands[3:] == [VITE]


def test_node_is_asked_for_only_if_there_is_none(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert backend.node_requirement() == []

    def missing() -> tuple[str, str]:
        raise backend.PageNotBuiltError("no Node")

    monkeypatch.setattr(backend, "find_node", missing)
    assert backend.node_requirement() == [backend.NODE_FROM_PYPI]
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert backend.node_requirement() == []


def test_a_build_that_fails_is_told_and_nothing_more(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: list[str], seconds: int) -> None:
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
    with pytest.raises(module.PageNotBuiltError, match="no such registry"):
        module.run([sys.executable, str(script)], 20)
    script.write_text("import time; time.sleep(20)")
    with pytest.raises(module.PageNotBuiltError, match="timed out"):
        module.run([sys.executable, str(script)], 1)
    with pytest.raises(module.PageNotBuiltError, match="nothing-here"):
        module.run([str(tmp_path / "nothing-here")], 1)


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
            assert module.find_node() == ("/usr/bin/node", "/usr/bin/npm")
        else:
            with pytest.raises(module.PageNotBuiltError, match=r"older than 20\.19"):
                module.find_node()
