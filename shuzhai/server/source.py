"""Where the engine of a served model comes from.

To make a source and to look reads a few small files, before a server begins. fetch and load take
long: they run in a thread.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shuzhai.checkpoint import CheckpointConfig, read_checkpoint_config
from shuzhai.config import EngineConfig, Environment, VisionConfig
from shuzhai.engine.engine import forecast
from shuzhai.engine.engine import resolve as resolve_config
from shuzhai.engine.memory import MemoryNeed, allowed_length, memory_need
from shuzhai.engine.runner import sizes_here
from shuzhai.errors import CheckpointError, ConfigError, ModelNotFoundError
from shuzhai.frontend.async_engine import AsyncEngine
from shuzhai.hub.catalog import CatalogEntry, find
from shuzhai.hub.progress import Progress, SilentProgress
from shuzhai.hub.pull import is_local, pull, resolve
from shuzhai.hub.shapes import SHAPES
from shuzhai.hub.store import Store
from shuzhai.server.loading import LoadProgress


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model without loading it.

    max_model_len  if memory does not limit it further; None until it is here
    need           about, until it is here; None if not even that is known
    """

    input_modalities: tuple[str, ...]
    max_model_len: int | None = None
    need: MemoryNeed | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model is, for people; this never changes.

    shipped         it is part of this package; download_bytes   about what a pull fetches
    languages       that it was trained to speak; None: unknown
    """

    title: str
    shipped: bool = False
    download_bytes: int = 0
    languages: tuple[str, ...] | None = None


class ModelSource(Protocol):
    """A model that can be loaded again and again."""

    @property
    def name(self) -> str: ...

    @property
    def card(self) -> ModelCard: ...

    @property
    def aliases(self) -> tuple[str, ...]:
        """What it is called besides."""
        ...

    @property
    def secrets(self) -> tuple[str, ...]:
        """Paths that its errors may name, and clients must not see."""
        ...

    def is_here(self) -> bool:
        """Nothing would have to be fetched."""
        ...

    def look(self) -> ModelFacts:
        """What can be known at once; nothing is fetched."""
        ...

    def fetch(self, progress: Progress) -> ModelFacts:
        """Make it be here; all there is to know."""
        ...

    def load(self, memory_bytes: int, progress: LoadProgress) -> AsyncEngine:
        """An engine that keeps within so many bytes."""
        ...


class CheckpointSource:
    """A name of the catalog, or a checkpoint folder. ModelNotFoundError if it is neither.

    model    as the user wrote it
    is_name  it is a name, whatever folders there are
    name     for clients; None: its own
    options  of AsyncEngine.load beside those of EngineConfig: chat_template, max_tiles
    """

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        environment: Environment,
        *,
        name: str | None = None,
        is_name: bool = False,
        **options: Any,
    ) -> None:
        self._model = model
        self._config = config
        self._environment = environment
        self._store = Store.at_home(environment)
        self._options = options
        self._is_folder = not is_name and is_local(model) and os.path.isdir(model)
        if self._is_folder:
            own, self._guess = self._folder().resolve().name, ModelFacts(("text",))
            self.card = ModelCard(own)
        else:
            entry = find(model)
            own, self._guess = entry.name, self._expect(entry)
            self.card = ModelCard(entry.title, entry.shipped, entry.download_bytes, entry.languages)
        self.name = name or own
        self.aliases = (own, model)
        known = [str(self._store.root), str(environment.home), os.path.expanduser("~")]
        known += [model, os.path.abspath(model)] if self._is_folder else []
        self.secrets = _spellings(known)

    def is_here(self) -> bool:
        return self._is_folder or self._store.has(self._model)

    def look(self) -> ModelFacts:
        if not self.is_here():
            return self._guess
        try:
            return self._read(self._folder())
        except (CheckpointError, ConfigError, ModelNotFoundError):  # told when it is loaded
            return self._guess

    def fetch(self, progress: Progress) -> ModelFacts:
        return self._read(self._folder(progress))

    def load(self, memory_bytes: int, progress: LoadProgress) -> AsyncEngine:
        config = dataclasses.asdict(self._config) | {"memory": memory_bytes}
        return AsyncEngine.load(
            self._folder(), load_progress=progress.loaded, **self._options, **config
        )

    def _expect(self, entry: CatalogEntry) -> ModelFacts:
        """Of a model that is not here."""
        modalities = ("text",) if entry.kind == "text" else ("text", "image")
        shape = SHAPES.get(entry.name)
        if shape is None:
            return ModelFacts(modalities)
        try:
            config = resolve_config(self._config)
            need = memory_need(shape, config, sizes_here(shape, config))
            return ModelFacts(modalities, allowed_length(shape.decoder, config), need)
        except ConfigError:  # told when it is loaded
            return ModelFacts(modalities)

    def _folder(self, progress: Progress | None = None) -> Path:
        get = resolve if self._is_folder else pull
        return get(
            self._model, self._store, progress or SilentProgress(), environment=self._environment
        )

    def _read(self, folder: Path) -> ModelFacts:
        checkpoint = read_checkpoint_config(folder)
        ahead = forecast(checkpoint, self._config, folder)
        return ModelFacts(_modalities(checkpoint), ahead.max_model_len, ahead.need)


def _spellings(paths: Iterable[str]) -> tuple[str, ...]:
    """How errors may write these paths. A single word is left out: it is found in any text."""
    found = {each for path in paths for each in (Path(path), Path(path).resolve())}
    texts = {text for path in found for text in (str(path), path.as_posix())}
    return tuple(text for text in {*paths, *texts} if len(Path(text).parts) > 1)


def _modalities(checkpoint: CheckpointConfig) -> tuple[str, ...]:
    if checkpoint.vision is None:
        return ("text",)
    vision = checkpoint.vision
    has_video = isinstance(vision, VisionConfig) and vision.image_spec.has_video
    return ("text", "image", "video") if has_video else ("text", "image")
