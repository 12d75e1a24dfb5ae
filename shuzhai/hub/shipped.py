"""The demo models that are part of this package: folders of it, read where they lie."""

from __future__ import annotations

import json
from pathlib import Path

from shuzhai.errors import CheckpointError

_FOLDER = Path(__file__).parents[1] / "demo"
_WEIGHTS = "model.safetensors"
_NEEDED = ("config.json", "generation_config.json", "tokenizer.model", _WEIGHTS)


def folder_of(name: str) -> Path:
    """Where a shipped model lies, whether it is whole or not."""
    return _FOLDER / name


def check(name: str) -> Path:
    """The folder of a shipped model. CheckpointError when it is not as this package came.

    Sizes alone are looked at: who changes the bytes of an installed package means to.
    """
    folder = folder_of(name)
    what = _fault(folder)
    if what is None:
        return folder
    raise CheckpointError(
        f"{name} is part of shuzhai, but its folder {folder} {what}. Install shuzhai again, "
        "such as by `pip install --force-reinstall --no-deps .` in its source folder."
    )


def _fault(folder: Path) -> str | None:
    missing = [file for file in _NEEDED if not (folder / file).is_file()]
    if missing:
        return f"lacks {', '.join(missing)}"
    for file in _NEEDED:
        try:
            with (folder / file).open("rb"):
                pass
        except OSError as error:
            return f"has {file}, which cannot be read ({error.strerror or error})"
    return None if _is_whole(folder / _WEIGHTS) else f"has a damaged {_WEIGHTS}"


def _is_whole(weights: Path) -> bool:
    """The file is as long as its header says: a copy that broke off is not."""
    with weights.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        size = weights.stat().st_size
        try:
            header = json.loads(stream.read(min(header_bytes, size)))
            ends = [e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"]
            return size == 8 + header_bytes + max(ends)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return False
