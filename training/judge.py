"""A finished checkpoint, asked through shuzhai on the CPU as a user would ask it:
python -m training.judge CHECKPOINT_FOLDER DATA_FOLDER [DRAWINGS]

Held-out drawings on white, a fixed sample of them, named in both languages.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from shuzhai import LLM, SamplingParams
from training.data import HELD_OUT_SETS, load_artwork, load_concepts
from training.evaluate import TEST_SEED
from training.phrases import QUESTIONS


def judge(folder: Path, data: Path, count: int) -> dict[str, float]:
    """The share of accepted names, by language; what is said is printed."""
    concepts = load_concepts(data)
    art = load_artwork(data, HELD_OUT_SETS, len(concepts))
    chosen = random.Random(TEST_SEED).sample(range(len(art.concept)), count)
    shares: dict[str, float] = {}
    with LLM(folder, dtype="float32") as llm:
        for language in ("en", "zh"):
            right = 0
            for drawing in chosen:
                concept = concepts[art.concept[drawing]]
                said = _ask(llm, _on_white(art.pixels[drawing]), language)
                right += concept.accepts(said, language)
                print(f"{concept.name(language)} | {said}")
            shares[language] = right / count
    return shares


def _ask(llm: LLM, picture: Image.Image, language: str) -> str:
    content = [
        {"type": "image", "image": picture},
        {"type": "text", "text": QUESTIONS["name"][language][0]},
    ]
    params = SamplingParams(temperature=0, max_tokens=40)
    return llm.chat([{"role": "user", "content": content}], params).text


def _on_white(rgba: np.ndarray) -> Image.Image:
    drawing = Image.fromarray(rgba.transpose(1, 2, 0))
    paper = Image.new("RGBA", drawing.size, "white")
    return Image.alpha_composite(paper, drawing).convert("RGB")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    number = int(arguments[2]) if len(arguments) > 2 else 40
    print(judge(Path(arguments[0]), Path(arguments[1]), number))
