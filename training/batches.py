"""Dialogues to tensors, in worker processes: ids in chunks of like length, scenes as tables.

Everything that decides a shape is decided here, so that the GPU is never asked for one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from training.lettering import HEIGHT, WIDTH
from training.prompts import Encoded, Encoder
from training.scenes import Scene, Sprite
from training.tasks import Dialogue, Teacher, World

TILE = 224
_SMALL = 56.0  # pixels on a tile: below, a drawing is sampled from its smaller copy
_MULTIPLE = 32


@dataclass(slots=True)
class Chunk:
    """Some dialogues of like length, padded at the end.

    ids          [b, L]
    image_rows   [I] places in the flattened ids that pictures take, in the order of the tiles
    answer_rows  [A] places whose next id is to be learnt
    targets      [A] those ids
    weights      [A] of an id among them: a short answer counts for more than one of its length
    """

    ids: Tensor
    image_rows: Tensor
    answer_rows: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(slots=True)
class Canvas:
    """Scenes cut into N tiles.

    tile_scene  [N]
    boxes       [N, 4] x, y, width, height of a tile in its scene's unit square
    units       [S, 2] width and height of a scene in its shorter side
    plain       [S] bool, on white and untouched
    sprites     [P, 6] x, y, size, angle, stretch (negative: flipped) and 1 where colours stay
    drawings    [P]
    pairs       [Q, 2] tile and sprite, sorted by layers
    groups      (first, last + 1, is_small) of pairs that may be drawn at once
    texts       [K, 5] x, y, width, height, angle;  strings [K]
    text_pairs  [R, 2] tile and text
    """

    tile_scene: Tensor
    boxes: Tensor
    units: Tensor
    plain: Tensor
    sprites: Tensor
    sprite_scene: Tensor
    drawings: Tensor
    pairs: Tensor
    groups: list[tuple[int, int, bool]]
    texts: Tensor
    strings: Tensor
    text_pairs: Tensor


@dataclass(slots=True)
class Batch:
    chunks: list[Chunk]
    canvas: Canvas
    dialogues: list[Dialogue]


def to_device(part: Any, device: torch.device) -> Any:
    """A copy of any of these with its tensors on a device."""
    if isinstance(part, Tensor):
        return part.to(device, non_blocking=True)
    if isinstance(part, (Chunk, Canvas, Batch)):
        return type(part)(*(to_device(getattr(part, f.name), device) for f in fields(part)))
    if isinstance(part, list) and part and isinstance(part[0], Chunk):
        return [to_device(chunk, device) for chunk in part]
    return part


def make_batch(
    dialogues: Sequence[Dialogue],
    encoder: Encoder,
    world: World,
    num_chunks: int = 3,
) -> Batch:
    """Dialogues sorted by length."""
    encoded = sorted(((encoder.encode(d), d) for d in dialogues), key=lambda pair: len(pair[0].ids))
    size = math.ceil(len(encoded) / num_chunks)
    chunks = [
        make_chunk([e for e, _ in encoded[i : i + size]], encoder.image_id)
        for i in range(0, len(encoded), size)
    ]
    ordered = [d for _, d in encoded]
    scenes = [s for d in ordered for turn in d.turns for s in turn.scenes]
    return Batch(chunks, make_canvas(scenes, encoder, world), ordered)


def make_chunk(encoded: Sequence[Encoded], image_id: int) -> Chunk:
    longest = max(len(e.ids) for e in encoded)
    length = math.ceil(longest / _MULTIPLE) * _MULTIPLE
    ids = np.zeros((len(encoded), length), np.int64)
    learn = np.zeros((len(encoded), length), bool)
    for row, e in enumerate(encoded):
        ids[row, : len(e.ids)] = e.ids
        learn[row, : len(e.ids)] = e.is_answer
    flat = ids.reshape(-1)
    answers = np.flatnonzero(learn.reshape(-1))
    return Chunk(
        torch.from_numpy(ids),
        torch.from_numpy(np.flatnonzero(flat == image_id)),
        torch.from_numpy(answers - 1),
        torch.from_numpy(flat[answers]),
        torch.from_numpy(weigh_answers(answers)),
    )


def weigh_answers(places: np.ndarray) -> np.ndarray:
    """[A] places of ids -> [A] float32, one over the root of their answer's length: a "Yes." is to
    matter beside a long list. Answers are runs of places: no two touch."""
    starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    lengths = np.diff(starts, append=len(places))
    return np.repeat(lengths**-0.5, lengths).astype(np.float32)


def cut_tiles(columns: int, rows: int, num_tiles: int) -> list[tuple[float, float, float, float]]:
    """The boxes of a picture's tiles: row by row, then the whole."""
    whole = [(0.0, 0.0, 1.0, 1.0)]
    if num_tiles == 1:
        return whole
    wide, high = 1 / columns, 1 / rows
    return [(c * wide, r * high, wide, high) for r in range(rows) for c in range(columns)] + whole


def make_canvas(scenes: Sequence[Scene], encoder: Encoder, world: World) -> Canvas:
    tile_scene: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    sprites: list[tuple[float, ...]] = []
    sprite_scene: list[int] = []
    drawings: list[int] = []
    texts: list[tuple[float, ...]] = []
    strings: list[int] = []
    layers: dict[tuple[int, bool], list[tuple[int, int]]] = {}
    text_pairs: list[tuple[int, int]] = []
    for number, scene in enumerate(scenes):
        units = max(1.0, scene.aspect), max(1.0, 1 / scene.aspect)
        first = len(boxes)
        count = encoder.num_tiles(scene.columns, scene.rows)
        boxes += cut_tiles(scene.columns, scene.rows, count)
        tile_scene += [number] * count
        for layer, sprite in enumerate(scene.sprites):
            for tile in range(first, first + count):
                if _touches(sprite, boxes[tile], units):
                    pixels = (
                        sprite.size
                        * TILE
                        / min(units[0] * boxes[tile][2], units[1] * boxes[tile][3])
                    )
                    key = layer, pixels < _SMALL
                    layers.setdefault(key, []).append((tile, len(sprites)))
            stretch = -sprite.stretch if sprite.flip else sprite.stretch
            sprites.append((sprite.x, sprite.y, sprite.size, sprite.angle, stretch, sprite.keeps))
            sprite_scene.append(number)
            drawings.append(sprite.drawing)
        for text in scene.texts:
            text_pairs += [(tile, len(texts)) for tile in range(first, first + count)]
            texts.append((text.x, text.y, text.size, text.size * HEIGHT / WIDTH, text.angle))
            strings.append(text.index)
    pairs: list[tuple[int, int]] = []
    groups: list[tuple[int, int, bool]] = []
    for (_, is_small), members in sorted(layers.items()):
        groups.append((len(pairs), len(pairs) + len(members), is_small))
        pairs += members
    return Canvas(
        tile_scene=torch.tensor(tile_scene),
        boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        units=torch.tensor([(max(1.0, s.aspect), max(1.0, 1 / s.aspect)) for s in scenes]).view(
            -1, 2
        ),
        plain=torch.tensor([s.is_plain for s in scenes]),
        sprites=torch.tensor(sprites, dtype=torch.float32).view(-1, 6),
        sprite_scene=torch.tensor(sprite_scene, dtype=torch.int64),
        drawings=torch.tensor(drawings, dtype=torch.int64),
        pairs=torch.tensor(pairs, dtype=torch.int64).view(-1, 2),
        groups=groups,
        texts=torch.tensor(texts, dtype=torch.float32).view(-1, 5),
        strings=torch.tensor(strings, dtype=torch.int64),
        text_pairs=torch.tensor(text_pairs, dtype=torch.int64).view(-1, 2),
    )


def _touches(
    sprite: Sprite, box: tuple[float, float, float, float], units: tuple[float, float]
) -> bool:
    """The circle around a sprite reaches into a tile."""
    radius = sprite.size * max(1.0, sprite.stretch) * 0.71
    across, down = radius / units[0], radius / units[1]
    inside_x = box[0] - across < sprite.x < box[0] + box[2] + across
    return inside_x and box[1] - down < sprite.y < box[1] + box[3] + down


class Lessons(IterableDataset):
    """An endless stream of batches, another one in every worker."""

    def __init__(self, world: World, encoder: Encoder, *, num_dialogues: int, seed: int) -> None:
        self._world, self._encoder, self._seed = world, encoder, seed
        self._num_dialogues = num_dialogues

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(self._seed * 1000 + (worker.id if worker else 0))
        teacher = Teacher(self._world, rng)
        while True:
            dialogues = [teacher.dialogue() for _ in range(self._num_dialogues)]
            yield make_batch(dialogues, self._encoder, self._world)
