"""Which model `shuzhai serve` loads first, how long it waits for it, and what it says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rich.console import Console

from shuzhai.cli import serve
from shuzhai.config import EngineConfig, Environment
from shuzhai.errors import (
    CheckpointError,
    ConfigError,
    DownloadError,
    MemoryBudgetError,
    ShuzhaiError,
)
from shuzhai.hub.progress import SilentProgress
from shuzhai.server.loading import LoadProgress
from shuzhai.server.registry import Registry
from shuzhai.server.source import CheckpointSource
from tests.server.fakes import FakeSource
from tests.server.play import play, until
from tests.support.tiny import write_checkpoint


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def demos(said: list[str]) -> tuple[FakeSource, Registry]:
    """The text demo, which does not come, and a registry that has another."""
    text = FakeSource("text")
    text.may_fetch.clear()
    text.num_fetched_bytes = 0
    return text, Registry([text, FakeSource("sees")], 100, say=said.append)


def be_patient(monkeypatch: pytest.MonkeyPatch, seconds: float, blind_seconds: float) -> None:
    monkeypatch.setattr(serve, "_PATIENCE_SECONDS", seconds)
    monkeypatch.setattr(serve, "_BLIND_PATIENCE_SECONDS", blind_seconds)


def test_the_text_demo_is_not_waited_for_when_nothing_comes(
    demos: tuple[FakeSource, Registry],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, registry = demos
    be_patient(monkeypatch, 0.0, 100.0)

    async def scenario() -> None:
        await serve._load_first(registry, Console(), is_default=True)
        assert [model.state for model in registry.models] == ["loading", "loaded"]
        assert "Nothing is seen of text so far" in capsys.readouterr().out
        text.fetch_error = DownloadError("the index is silent")
        text.may_fetch.set()
        with pytest.raises(ShuzhaiError, match="text could not be loaded: the index is silent"):
            await serve._load_first(registry, Console(), is_default=False)
        be_patient(monkeypatch, 100.0, 100.0)
        await serve._load_first(registry, Console(), is_default=True)
        assert [model.state for model in registry.models] == ["failed", "loaded"]
        assert "the index is silent Going on without text" in capsys.readouterr().out

    play(scenario)
    assert said[0] == "sees is loaded: all of it"


@pytest.mark.parametrize("is_measured", [True, False])
def test_the_text_demo_is_waited_for_while_it_comes(
    demos: tuple[FakeSource, Registry], monkeypatch: pytest.MonkeyPatch, is_measured: bool
) -> None:
    """Or where it is not told what comes; and however long it takes to read it then."""
    text, registry = demos
    if is_measured:
        text.num_fetched_bytes = 1
    else:
        text.size_bytes = None
    be_patient(monkeypatch, 100.0 if is_measured else 0.0, 100.0)

    async def scenario() -> None:
        first = asyncio.create_task(serve._load_first(registry, Console(), is_default=True))
        await until(lambda: text.num_fetches == 1)
        if is_measured:
            await until(lambda: (registry.models[0].progress or LoadProgress()).has_come)
            be_patient(monkeypatch, 0.0, 0.0)
            progress = registry.models[0].progress
            assert progress is not None
            progress.begin("Reading", None)
        await asyncio.sleep(0.5)
        assert not first.done()
        assert registry.models[1].state == "unloaded"
        text.may_fetch.set()
        await first
        assert [model.state for model in registry.models] == ["loaded", "unloaded"]

    play(scenario)


def test_any_default_model_will_do(said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    errors = [MemoryBudgetError("it needs 0.66GiB"), CheckpointError("it is damaged"), None]
    sources = [FakeSource(name) for name in ("text", "one", "two")]
    for source, error in zip(sources, errors, strict=True):
        source.load_error = error
    registry = Registry(sources, 100, say=said.append)

    async def scenario() -> None:
        await serve._load_first(registry, Console(width=200), is_default=True)
        printed = capsys.readouterr().out
        assert "text could not be loaded: it needs 0.66GiB Going on without text" in printed
        assert "one could not be loaded: it is damaged Going on without one" in printed
        assert [model.state for model in registry.models] == ["failed", "failed", "loaded"]
        await registry.unload("two")
        sources[2].load_error = ConfigError("max_model_len 9 is beyond the model's 8")
        with pytest.raises(ShuzhaiError, match="none of the default models can be loaded"):
            await serve._load_first(registry, Console(width=200), is_default=True)
        assert "two could not be loaded: max_model_len 9 is" in capsys.readouterr().out
        with pytest.raises(ShuzhaiError, match="text could not be loaded: it needs"):
            await serve._load_first(registry, Console(), is_default=False)

    play(scenario)
    assert said[0].startswith("two is loaded")


def test_a_default_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "tiny-internvl2")
    monkeypatch.chdir(tmp_path)
    home = Environment.read({"SHUZHAI_HOME": str(tmp_path)})
    for is_name, modalities in ((True, ("text", "image", "video")), (False, ("text",))):
        source = CheckpointSource(
            "tiny-internvl2", EngineConfig(device="cpu"), home, is_name=is_name
        )
        assert source.look().input_modalities == modalities
        assert source.fetch(SilentProgress()).input_modalities == modalities
