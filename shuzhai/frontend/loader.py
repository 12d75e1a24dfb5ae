"""From a model's name to an engine and the processor that speaks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shuzhai.checkpoint import read_checkpoint_config
from shuzhai.config import EngineConfig, Environment
from shuzhai.engine.engine import Engine
from shuzhai.frontend.processor import Processor
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
    max_tiles: int | None = None,
    pull_progress: Progress | None = None,
    load_progress: Callable[[float], None] | None = None,
) -> LoadedModel:
    """Load a catalog name (fetched first if it is not in the store) or a checkpoint folder.

    max_tiles      of a picture, instead of the model's own number
    load_progress  is called with the share of the weights that is loaded, 0 to 1
    """
    environment = Environment.read()
    store = Store.at_home(environment)
    folder = resolve(model, store, pull_progress or SilentProgress(), environment=environment)
    checkpoint = read_checkpoint_config(folder)
    engine = Engine.load(checkpoint, config, folder, load_progress)
    processor = Processor.load(
        folder,
        checkpoint,
        engine.max_model_len,
        vision=engine.model_config.vision,
        chat_template=chat_template,
        max_tiles=max_tiles,
    )
    return LoadedModel(folder.resolve().name, engine, processor)
