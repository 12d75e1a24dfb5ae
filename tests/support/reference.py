"""Reference checkpoints with what the models' own code computes on them.

The project carries a compact copy without tokenizers; a fuller set may lie beside the checkout.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.support.tiny import write_json

OWN = Path(__file__).parents[1] / "parity" / "data"
BESIDE = Path(__file__).parents[3] / "shared" / "reference"

# Largest differences between float32 implementations, with a margin: a wrong detail is far above.
LOGITS_TOLERANCE = 2e-4
VISION_TOLERANCE = 5e-5


@dataclass(frozen=True)
class Reference:
    """A checkpoint folder with cases.json and tensors.safetensors.

    image_id   what stands at the positions of pictures
    """

    folder: Path
    cases: list[dict[str, Any]]
    tensors: dict[str, Tensor]
    image_id: int = -1

    @classmethod
    def read(cls, folder: Path) -> Reference:
        data = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "tensors.safetensors")
        return cls(folder, data["cases"], tensors, data.get("img_context_token_id", -1))

    def checkpoint(self, case: dict[str, Any], scratch: Path) -> Path:
        """The folder to load for a case: a copy with another config.json where the case asks."""
        if "config_overrides" not in case:
            return self.folder
        copy = scratch / case["name"]
        shutil.copytree(self.folder, copy)
        config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
        (copy / "config.json").unlink()
        write_json(copy / "config.json", config | case["config_overrides"])
        return copy


def messages_of(case: dict[str, Any]) -> list[dict[str, str]]:
    """The chat of a case; an empty system turn where it has no meta instruction."""
    messages = [] if case["meta_instruction"] else [{"role": "system", "content": ""}]
    for question, answer in case["history"]:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return [*messages, {"role": "user", "content": case["query"]}]
