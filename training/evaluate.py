"""What a model knows: held-out drawings by name, and composed tests with a fixed seed.

While training, `report` asks the model in memory. On a finished checkpoint, shuzhai itself answers:
python -m training.judge (see there).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from training.batches import Batch, make_batch, to_device
from training.compose import Atlas, Composer
from training.data import HELD_OUT_SETS, Concept, load_artwork
from training.model import VisionLanguageModel
from training.phrases import QUESTIONS
from training.prompts import Encoder
from training.scenes import Scene, Sprite
from training.tasks import Dialogue, Teacher, Turn, World

TEST_SEED = 20_000
TESTS = (
    "count", "where", "what_at", "digits", "words", "colour", "compare", "list", "is_it",
    "is_there", "follow_up",
)  # fmt: skip
_MAX_NEW_TOKENS = 40


@torch.no_grad()
def answers(model: VisionLanguageModel, encoder: Encoder, batch: Batch, tiles: Tensor) -> list[str]:
    """The greedy answer to the last question of each dialogue, in the order of batch.dialogues."""
    rows = model.project(torch.cat([model.tower(part) for part in tiles.split(256)]))
    rows = rows.flatten(0, 1)
    texts: list[str] = []
    at = done = 0
    for chunk in batch.chunks:
        taken = len(chunk.image_rows)
        dialogues = batch.dialogues[done : done + len(chunk.ids)]
        ids = _greedy(model, encoder, chunk.ids, chunk.image_rows, rows[at : at + taken], dialogues)
        texts += [encoder.decode(new) for new in ids]
        at, done = at + taken, done + len(dialogues)
    return texts


def _greedy(
    model: VisionLanguageModel,
    encoder: Encoder,
    ids: Tensor,
    image_rows: Tensor,
    rows: Tensor,
    dialogues: Sequence[Dialogue],
) -> list[list[int]]:
    """Without a cache: the whole sequences again for every token, which tiny models allow."""
    x, is_image = model.decoder.embed(ids, image_rows, rows)
    x = torch.cat([x, x.new_zeros(len(x), _MAX_NEW_TOKENS, x.shape[2])], 1)
    is_image = torch.cat([is_image, is_image.new_zeros(len(x), _MAX_NEW_TOKENS, 1)], 1)
    ends = torch.tensor([encoder.encode(d).prompt_len for d in dialogues], device=ids.device)
    each = torch.arange(len(ids), device=ids.device)
    new: list[Tensor] = []
    for step in range(_MAX_NEW_TOKENS):
        hidden = model.decoder(x, is_image)[each, ends + step - 1]
        new.append(model.decoder.logits(hidden).argmax(1))
        x[each, ends + step] = model.decoder.model.tok_embeddings(new[-1]).to(x.dtype)
        if step % 8 == 7 and bool((torch.stack(new) == encoder.end).any(0).all()):
            break
    listed = torch.stack(new, 1).tolist()
    return [row[: row.index(encoder.end)] if encoder.end in row else row for row in listed]


def naming_tests(world: World, language: str, side: int) -> tuple[list[Dialogue], list[Concept]]:
    """Every held-out drawing, as it is, on white, with the template's own system prompt.

    side x side: its tiles, for models that cut pictures.
    """
    dialogues, concepts = [], []
    question = QUESTIONS["name"][language][0]
    for drawing, row in enumerate(world.artwork.concept):
        concept = world.concepts[row]
        scene = Scene(side, side, [Sprite(drawing, 0.5, 0.5, 1.0)], is_plain=True)
        dialogues.append(Dialogue("name", language, [Turn(question, str(drawing), [scene])]))
        concepts.append(concept)
    return dialogues, concepts


def composed_tests(world: World, task: str, language: str, count: int) -> list[Dialogue]:
    """The same every time; training never has their strings and combinations."""
    rng = random.Random(f"{TEST_SEED} {task} {language}")
    teacher = Teacher(world, rng, more=0)
    return [teacher.dialogue(task, language) for _ in range(count)]


def report(
    model: VisionLanguageModel,
    encoder: Encoder,
    world: World,
    folder: Path,
    device: torch.device,
    count: int,
) -> dict[str, dict[str, float]]:
    """Shares of right answers: held-out names, then each composed test in both languages.

    Composed tests are drawn from the held-out set, plain on white, and once more from the training
    sets, as varied as in training; their strings are never those of training.
    """
    result: dict[str, dict[str, float]] = defaultdict(dict)
    art = load_artwork(folder, HELD_OUT_SETS, len(world.concepts))
    held_out = World(world.concepts, art, world.lettering, held_out=True)
    seen = World(world.concepts, world.artwork, world.lettering, held_out=True)
    for source, tested in (("held-out", held_out), ("training", seen)):
        atlas = Atlas.load(tested.artwork, tested.lettering, device)
        generator = torch.Generator(device).manual_seed(TEST_SEED)
        composer = Composer(atlas, generator, augment=source == "training")
        for language in ("en", "zh"):
            sides = (1, 2) if encoder.is_internvl else (1,)
            for side in sides if source == "held-out" else ():
                dialogues, concepts = naming_tests(tested, language, side)
                said = _ask(model, encoder, tested, composer, dialogues, device)
                right = sum(
                    concepts[int(d.turns[0].answer)].accepts(text, language) for d, text in said
                )
                kind = "name" if side == 1 else "name, four tiles"
                result[f"{kind}, held-out drawings"][language] = round(right / len(said), 4)
            for task in TESTS:
                dialogues = composed_tests(tested, task, language, count)
                said = _ask(model, encoder, tested, composer, dialogues, device)
                right = sum(d.turns[-1].answer == text for d, text in said)
                result[f"{task}, {source} drawings"][language] = round(right / len(said), 4)
    return dict(result)


def _ask(
    model: VisionLanguageModel,
    encoder: Encoder,
    world: World,
    composer: Composer,
    dialogues: Sequence[Dialogue],
    device: torch.device,
) -> list[tuple[Dialogue, str]]:
    said: list[tuple[Dialogue, str]] = []
    for first in range(0, len(dialogues), 256):
        part = dialogues[first : first + 256]
        batch = to_device(make_batch(part, encoder, world), device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            tiles = composer(batch.canvas)
            said += zip(batch.dialogues, answers(model, encoder, batch, tiles), strict=True)
    return said
