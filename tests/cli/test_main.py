"""The command line as a whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shuzhai.cli.main import COMMANDS, main


def test_all_commands_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, text in COMMANDS.items():
        assert f" {name} {text}" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"usage: shuzhai {name}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--port"], ["sevre"], ["", "list"], ["list", "serve"]])
def test_what_is_no_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--help", "list", "ps", "pull x", "stop x"])
def test_nobody_waits_for_what_a_command_does_not_need(words: str) -> None:
    code = f"""
import sys
from shuzhai.cli.main import main
sys.argv[1:] = {words.split()}
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" not in ran.stderr, ran.stderr
