"""`shuzhai plan`: every model of the catalog, fitting or not, without a file of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from shuzhai.cli.main import main
from shuzhai.hub.catalog import CATALOG


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty store and no network to fill it from. The card of these plans is not here."""
    monkeypatch.setenv("SHUZHAI_HOME", str(tmp_path / "home"))
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.setenv(name, "C")
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "PIP_INDEX_URL", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["plan", *words])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("name", CATALOG)
@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "int4"])
def test_every_model_fits_8_gib(
    name: str, kv_dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = plan(capsys, name, "--device", "cuda", "--memory", "8GiB", "--kv-dtype", kv_dtype)
    assert code == 0
    assert said.splitlines()[0] == f"{name} in bfloat16 on a GPU"
    assert "It fits." in said
    assert all(part in said for part in ("weights", "KV cache", "CUDA context", "8.00 GiB"))
    contexts = [
        int(re.search(rf"^{row} +[\d,]+ +([\d,]+)", said, re.M)[1].replace(",", ""))
        for row in ("16 bit", "int8", "int4")
    ]
    assert contexts == sorted(contexts)
    chosen = contexts[["auto", "int8", "int4"].index(kv_dtype)]
    assert f"Context: {chosen:,} tokens." in said
    if "1.8b" in name:
        assert 10_000 < contexts[0] < 40_000


@pytest.mark.parametrize("name", CATALOG)
def test_what_is_advised_fits(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command that is printed, run as it is."""
    for options in (
        ["--device", "cuda", "--memory", "600MiB"],
        ["--device", "cuda", "--memory", "4.7GiB", "--max-model-len", "8192", "--dtype", "float32"],
        ["--device", "cpu", "--memory", "10MiB"],
    ):
        code, said = plan(capsys, name, *options)
        if code == 0:
            continue
        assert "does not fit" in said
        commands = [line.strip() for line in said.splitlines() if line.startswith("  shuzhai ")]
        assert commands
        for command in commands:
            code, said = plan(capsys, *shlex.split(command)[2:])
            assert code == 0, command


def test_a_card_that_is_not_here_has_8_gib(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = plan(capsys, "internlm2-chat-1.8b", "--device", "cuda")
    assert code == 0
    assert "No GPU is seen here: planned for one with 8GiB" in said


def test_on_this_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = plan(capsys, "tiny-internvl2", "--memory", "1GiB")
    assert code == 0
    assert "on a CPU" in said
    assert "CUDA" not in said


def test_a_folder(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    code, said = plan(capsys, str(tiny_folder), "--memory", "1GiB")
    assert code == 0
    assert said.startswith(f"{tiny_folder.name} in float32")


def test_in_chinese(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    code, said = plan(capsys, "internvl2-2b", "--device", "cuda")
    assert code == 0
    assert all(part in said for part in ("权重", "KV 缓存", "CUDA 上下文", "放得下", "上下文："))
    code, said = plan(capsys, "internvl2-2b", "--device", "cuda", "--memory", "4GiB")
    assert code == 1
    assert "4.00 GiB 放不下" in said


def test_what_cannot_be_planned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, what in (
        (["internvl9"], "no model is named"),
        ([str(tmp_path)], "no config.json"),
        (["internlm2-chat-1.8b", "--max-model-len", "999999"], "beyond the model's 262144"),
        (["internlm2-chat-1.8b", "--device", "tpu"], "device 'tpu'"),
        (["internlm2-chat-1.8b", "--memory", "much"], "memory must be a size"),
    ):
        assert main(["plan", *words]) == 1
        assert what in capsys.readouterr().err
