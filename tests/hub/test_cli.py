import argparse
import io
import re
import threading
import time

import pytest
from rich.console import Console

from shuzhai.cli import list_models
from shuzhai.cli import pull as pull_command
from shuzhai.errors import DownloadError, ModelNotFoundError
from shuzhai.hub import pull as pull_module
from shuzhai.hub.progress import format_bytes
from tests.hub.test_download import ENTRY, fill


@pytest.fixture
def run(hub, tmp_path, monkeypatch, capsys):
    """Run a command line; what it printed. HF_ENDPOINT is the fake hub."""
    fill(hub)
    monkeypatch.setenv("SHUZHAI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words):
        parser = argparse.ArgumentParser()
        subparsers = parser.add_subparsers()
        pull_command.add_parser(subparsers)
        list_models.add_parser(subparsers)
        args = parser.parse_args(words)
        assert args.run(args) == 0
        return capsys.readouterr().out

    return run


def test_list_pull_list(run):
    before = run("list")
    assert "smollm2-135m" in before
    assert "internlm-xcomposer2-vl-1.8b   text, pictures     4.9 GB      no" in before
    assert max(len(line) for line in before.splitlines()[:5]) <= 80
    said = run("pull", "InternLM2_chat_1.8b")
    assert said.startswith("InternLM2 Chat 1.8B, licence: InternLM")
    assert "internlm2-chat-1.8b is ready (1 MB): " in said
    assert "is here already: " in run("pull", ENTRY.name)
    assert "internlm2-chat-1.8b           text               3.8 GB    1 MB" in run("list")


def test_a_shipped_model_is_here(run):
    listed = run("list")
    assert re.search(r"^tiny-internvl2 +text, pictures +shipped +\d+ MB$", listed, re.M)
    assert "What is pulled is kept in" in listed
    said = run("pull", "tiny-xcomposer2")
    assert said.startswith("tiny-xcomposer2 is shipped with shuzhai and is here: ")
    assert "Licence: Apache-2.0" in said


def test_errors_come_through(run, hub):
    with pytest.raises(ModelNotFoundError):
        run("pull", "../../etc")
    hub.tampered.add("config.json")
    with pytest.raises(DownloadError, match="checksum"):
        run("pull", ENTRY.name, "--source", "huggingface")


def test_ctrl_c_says_that_nothing_is_lost(run, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pull_module, "download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("pull", ENTRY.name)
    assert "The same command goes on from there" in capsys.readouterr().out


def test_the_bar_fits_80_columns():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    with pull_command.ProgressBar(console) as progress:
        progress.advance(5)  # before any stage: nothing to show
        progress.begin("Reading", None)
        progress.begin("Downloading internlm-xcomposer2-vl-1.8b from Hugging Face", 4_900_000_000)
        progress.advance(2_400_000_000)
        progress._bars.refresh()
    text = out.getvalue()
    assert "Downloading internlm-xcomposer2-vl-1.8b from Hugging Face\n" in text
    assert "2.4/4.9 GB" in text
    assert "0/? bytes" not in text


def test_a_bar_that_is_closed_while_its_work_goes_on(monkeypatch):
    out = io.StringIO()
    bar = pull_command.ProgressBar(Console(file=out, width=80))
    faults = []
    removing, ended = threading.Event(), threading.Event()
    remove = bar._bars.remove_task

    def remove_slowly(task):
        remove(task)
        removing.set()
        time.sleep(0.1)

    def go_on():
        removing.wait(10)
        try:
            bar.advance(1)
            bar.begin("Converting", 100)
            bar.advance(1)
        except KeyError as error:
            faults.append(error)
        ended.set()

    monkeypatch.setattr(bar._bars, "remove_task", remove_slowly)
    with bar:
        bar.begin("Downloading", 100)
        threading.Thread(target=go_on, daemon=True).start()
    assert ended.wait(10)
    assert faults == []
    assert "Downloading" in out.getvalue()
    assert "Converting" not in out.getvalue()


def test_sizes():
    sizes = [999, 92_871_040, 3_780_000_000]
    assert [format_bytes(size) for size in sizes] == ["1 kB", "93 MB", "3.8 GB"]
