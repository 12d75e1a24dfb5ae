"""The numbers of a model without its weights: from its folder, else as the catalog knows them."""

from __future__ import annotations

import os
from pathlib import Path

from shuzhai.checkpoint import read_checkpoint_config
from shuzhai.config import Environment, ModelConfig
from shuzhai.errors import ModelNotFoundError
from shuzhai.hub.catalog import find
from shuzhai.hub.pull import is_local
from shuzhai.hub.shapes import shape_of
from shuzhai.hub.store import Store
from shuzhai.models.weights import read_model_config


def known_model(model: str, environment: Environment) -> tuple[str, ModelConfig]:
    """The name and the numbers of a checkpoint folder or a catalog name; nothing is fetched.

    ModelNotFoundError if it is neither, or if the numbers are in files that are not here.
    """
    if is_local(model) and os.path.isdir(model):
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise ModelNotFoundError(f"the folder {model} holds no checkpoint: no config.json")
        return folder.resolve().name, _read(folder)
    name = find(model).name
    store = Store.at_home(environment)
    return name, _read(store.path_of(name)) if store.has(name) else shape_of(name)


def _read(folder: Path) -> ModelConfig:
    return read_model_config(folder, read_checkpoint_config(folder))
