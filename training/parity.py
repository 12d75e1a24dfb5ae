"""The training's forward pass and prompts against shuzhai's own, with random weights:
python -m training.parity DATA_FOLDER

To be run on a CPU before a machine is hired for training.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from shuzhai import LLM
from training.batches import make_chunk
from training.export import export
from training.model import Shape, VisionLanguageModel, build
from training.prompts import Encoder
from training.scenes import Scene
from training.tasks import Dialogue, Turn

TOLERANCE = 1e-3


def random_model(shape: Shape) -> VisionLanguageModel:
    """Every tensor random, so that none can stand in for another."""
    torch.manual_seed(0)
    model = build(shape)
    for parameter in model.parameters():
        noise = 0.1 * torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(noise if parameter.ndim == 1 else 0.3 * noise)
            parameter.copy_(parameter.bfloat16())
    return model.eval()


def messages_of(dialogue: Dialogue, pictures: list[Image.Image]) -> list[dict[str, Any]]:
    """As a client sends it; the last answer is left out."""
    left = iter(pictures)
    messages: list[dict[str, Any]] = []
    if dialogue.system is not None:
        messages.append({"role": "system", "content": dialogue.system})
    for turn in dialogue.turns:
        parts: list[dict[str, Any]] = [{"type": "image", "image": next(left)} for _ in turn.scenes]
        text = {"type": "text", "text": turn.question}
        parts = [text, *parts] if turn.pictures_last else [*parts, text]
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages[:-1]


def dialogues() -> list[Dialogue]:
    one, wide = Scene(1, 1), Scene(2, 1)
    return [
        Dialogue("", "en", [Turn("What is this?", "a cat", [one])]),
        Dialogue("", "zh", [Turn("这是什么？", "猫", [wide], pictures_last=True)], system=""),
        Dialogue("", "en", [Turn("Same?", "Yes.", [one, wide])], system="Be brief."),
        Dialogue("", "en", [Turn("One?", "cat", [one]), Turn("And this?", "dog", [wide])]),
        Dialogue("", "zh", [Turn("你好", "你好！"), Turn("是吗？", "是。")]),
    ]


@torch.no_grad()
def our_logits(
    model: VisionLanguageModel, encoder: Encoder, dialogue: Dialogue, tiles: Tensor
) -> tuple[list[int], Tensor]:
    """(the ids of the prompt, logits at each of them)"""
    encoded = encoder.encode(dialogue)
    chunk = make_chunk([encoded], encoder.image_id)
    hidden_size = model.decoder.model.tok_embeddings.embedding_dim
    rows = torch.zeros(0, hidden_size)
    if len(tiles):
        rows = model.project(model.tower(tiles)).flatten(0, 1)
    x, is_image = model.decoder.embed(chunk.ids, chunk.image_rows, rows)
    logits = model.decoder.logits(model.decoder(x, is_image))[0]
    return encoded.ids[: encoded.prompt_len], logits[: encoded.prompt_len]


def check(family: str, data: Path) -> float:
    """The largest difference of logits; AssertionError where prompts differ."""
    tokenizer = data / "tokenizer.model"
    encoder = Encoder(family, tokenizer)
    model = random_model(Shape(family, encoder.vocab_size))
    rng = np.random.default_rng(random.Random(0).randrange(100))
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder, weights = Path(temporary) / family, Path(temporary) / "w.safetensors"
        save_file({k: v.bfloat16() for k, v in model.state_dict().items()}, weights)
        export(family, weights, tokenizer, folder)
        with LLM(folder, dtype="float32") as llm:
            for dialogue in dialogues():
                scenes = [scene for turn in dialogue.turns for scene in turn.scenes]
                pictures = [
                    Image.fromarray(
                        rng.integers(0, 256, (224 * s.rows, 224 * s.columns, 3), np.uint8)
                    )
                    for s in scenes
                ]
                prompt = llm.encode_chat(messages_of(dialogue, pictures))
                pixels = [torch.tensor(np.array(i.pixels)) for i in prompt.images]
                tiles = torch.cat(pixels) if pixels else torch.zeros(0, 224, 224, 3)
                ids, ours = our_logits(
                    model, encoder, dialogue, tiles.permute(0, 3, 1, 2).float() / 255
                )
                theirs = [encoder.image_id if i < 0 else i for i in prompt.token_ids]
                assert ids == theirs, f"prompts differ: {ids} and {theirs}"
                worst = max(worst, float((ours - llm.logits(prompt)).abs().max()))
    return worst


if __name__ == "__main__":
    for name in ("internvl2", "xcomposer2"):
        difference = check(name, Path(sys.argv[1]))
        print(f"{name}: prompts equal, logits within {difference:.1e}")
        assert difference < TOLERANCE
