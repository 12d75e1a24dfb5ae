"""From a model's name to an engine and the processor that speaks for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shuzhai.config import EngineConfig, Environment, read_checkpoint_config
from shuzhai.engine.engine import Engine
from shuzhai.errors import ConfigError, ModelNotFoundError
from shuzhai.frontend.processor import Processor
from shuzhai.hub.catalog import CATALOG, find
from shuzhai.hub.progress import Progress, SilentProgress
from shuzhai.hub.pull import resolve
from shuzhai.hub.store import Store


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to work. `name` is its catalog name, or its folder's."""

    name: str
    engine: Engine
    processor: Processor


def load_model(
    model: str | Path,
    config: EngineConfig,
    *,
    chat_template: str | None = None,
    pull_progress: Progress | None = None,
    load_progress: Callable[[float], None] | None = None,
) -> LoadedModel:
    """Load a catalog name (fetched first if it is not in the store) or a checkpoint folder.

    load_progress is called with the share of the weights that is loaded, 0 to 1.
    """
    _refuse_vision(model)
    environment = Environment.read()
    store = Store.at_home(environment)
    folder = resolve(model, store, pull_progress or SilentProgress(), environment=environment)
    checkpoint = read_checkpoint_config(folder)
    engine = Engine.load(checkpoint.decoder, config, folder, load_progress)
    processor = Processor.load(folder, checkpoint, engine.max_model_len, chat_template)
    return LoadedModel(folder.resolve().name, engine, processor)


def _refuse_vision(model: str | Path) -> None:
    """Say so before gigabytes are fetched, not after."""
    with suppress(ModelNotFoundError):
        entry = find(str(model))
        if entry.kind == "vision":
            text = ", ".join(e.name for e in CATALOG.values() if e.kind == "text")
            raise ConfigError(
                f"{entry.name} reads pictures, which this version cannot do yet; it runs {text}"
            )
