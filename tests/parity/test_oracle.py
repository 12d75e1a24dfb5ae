"""The oracle for random checkpoints agrees with the models' own code on the reference data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.reference import BESIDE, LOGITS_TOLERANCE, VISION_TOLERANCE, Reference
from tests.support.vision_oracle import Oracle

pytestmark = pytest.mark.skipif(not BESIDE.exists(), reason="no reference data beside the checkout")


def tiles_of(folder: Path, image: dict[str, Any], size: int) -> np.ndarray:
    """The picture as the reference cut it, by the grid that it notes."""
    picture = Image.open(folder / image["file"]).convert("RGB")
    columns, rows = image.get("grid_cols_rows", (1, 1))
    large = picture.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    tiles = [
        large.crop((c * size, r * size, (c + 1) * size, (r + 1) * size))
        for r in range(rows)
        for c in range(columns)
    ]
    if image.get("thumbnail"):
        tiles.append(picture.resize((size, size), Image.Resampling.BICUBIC))
    pixels = np.stack([np.asarray(tile) for tile in tiles])
    expected = image.get("tiles_uint8_sha256") or image["resized_uint8_sha256"]
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == expected
    return pixels


@pytest.mark.parametrize("name", ["internvl2", "internlm-xcomposer2"])
def test_vision_rows_logits_and_greedy_continuations(name: str) -> None:
    reference = Reference.read(BESIDE / name)
    oracle = Oracle(reference.folder)
    size = 112 if oracle.is_internvl else 490
    for case in reference.cases:
        rows = None
        if case["images"]:
            tiles = [tiles_of(reference.folder, image, size) for image in case["images"]]
            features = oracle.vision_rows(np.concatenate(tiles))
            key = case.get("vision_key") or case["images"][0]["vision_key"]
            expected = reference.tensors[key].view_as(features)
            assert (features - expected).abs().max() < VISION_TOLERANCE
            rows = features.flatten(0, 1)
        prompt = case.get("input_ids") or case["input_ids_with_minus1_for_image"]
        logits = oracle.logits(prompt + case["greedy_ids"][:-1], rows)
        assert logits.argmax(-1)[: len(prompt)].tolist() == case["argmax"]
        assert logits.argmax(-1)[len(prompt) - 1 :].tolist() == case["greedy_ids"]
        expected = reference.tensors[case["name"] + ".logits"]
        difference = (logits[torch.tensor(case["logits_positions"])] - expected).abs().max()
        assert difference < LOGITS_TOLERANCE
