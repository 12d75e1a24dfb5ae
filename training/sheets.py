"""Tiles for the tower alone, made on the device: a drawing, a sheet of drawings, or a line of text.

Every tile comes with what is to be seen at each of its patches. Unlike scenes, sheets are never
asked about, so that no worker has to plan them.

Letters in shape comments: N tiles, M drawings on them, P patches of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from training.batches import TILE, Canvas
from training.compose import Composer, bend, placement, restyle
from training.lettering import CHARACTERS, HEIGHT, WIDTH, Lettering
from training.tasks import World

PATCH = 14
NOTHING = -1
# How many of the tiles with one drawing are stained.
_STAINED = 0.35


@dataclass(frozen=True, slots=True)
class Mix:
    """How many tiles of each kind: one drawing; 2 x 2, 3 x 3, 4 x 4 cells; text."""

    portraits: int = 512
    cells: tuple[tuple[int, int], ...] = ((2, 96), (3, 96), (4, 64))
    texts: int = 160


@dataclass(frozen=True, slots=True)
class Sheets:
    """labels are classes: concepts, then characters.

    tiles        [N, 3, 224, 224] from 0 to 1; portraits first, two of each concept
    labels       [portraits]
    patches      [N - portraits, P] the class at each patch of the other tiles, NOTHING where none
    """

    tiles: Tensor
    labels: Tensor
    patches: Tensor


def num_classes(num_concepts: int) -> int:
    return num_concepts + len(CHARACTERS)


class SheetMaker:
    """Draws sheets of a world with a composer's colours, backgrounds and faults."""

    def __init__(self, world: World, composer: Composer, mix: Mix) -> None:
        self._composer = composer
        self._mix = mix
        device = composer.device
        drawn = [c.index for c in world.drawn]
        lists = [world.artwork.of_concept[i] for i in drawn]
        most = max(map(len, lists))
        padded = [[*row, *[row[0]] * (most - len(row))] for row in lists]
        self._concepts = torch.tensor(drawn, device=device)
        self._drawings = torch.tensor(padded, device=device)
        self._counts = torch.tensor([len(row) for row in lists], device=device)
        self._keeps = torch.tensor([c.keeps_colour for c in world.drawn], device=device)
        self._flips = torch.tensor([c.may_flip for c in world.drawn], device=device)
        self._needs_colour = torch.tensor([c.keeps_colour for c in world.concepts], device=device)
        self._num_concepts = len(world.concepts)
        self._lettering(world.lettering, device)

    def _lettering(self, lettering: Lettering, device: torch.device) -> None:
        taught = torch.tensor([*lettering.digits, *lettering.words])
        self._strings = taught.to(device)
        self._widths = torch.from_numpy(lettering.width).float().to(device)
        self._chars = torch.from_numpy(lettering.chars).to(device)

    @torch.no_grad()
    def __call__(self) -> Sheets:
        with torch.autocast(self._composer.device.type, enabled=False):
            return self._make()

    def _make(self) -> Sheets:
        mix, composer = self._mix, self._composer
        tiles, labels = self._portraits(mix.portraits)
        parts, patches = [tiles], []
        for side, count in mix.cells:
            tiles, at = self._cells(side, count)
            parts.append(tiles)
            patches.append(at)
        plain = composer.rand(sum(map(len, parts)) + mix.texts) < 0.3
        textures = composer.backgrounds(plain)
        below = F.interpolate(textures.to(composer.dtype), size=(TILE, TILE), mode="bilinear")
        at = 0
        for part in parts:
            under = below[at : at + len(part)]
            under.mul_(1 - part[:, 3:]).add_(part[:, :3])
            at += len(part)
        # A heart that is known by its colour is taken last.
        order = composer.rand(len(labels)) + self._needs_colour[labels]
        stained = order.argsort()[: round(_STAINED * len(labels))]
        below[stained] = composer.stain(below[stained])
        if mix.texts:
            patches.append(self._write(below[at:], textures[at:], plain[at:]))
        spoilt = composer.spoil(below, plain).clamp_(0, 1)
        return Sheets(spoilt, labels, torch.cat(patches))

    def _portraits(self, count: int) -> tuple[Tensor, Tensor]:
        """[count, 4, 224, 224] premultiplied, and their concepts: each twice, in two styles."""
        composer = self._composer
        half = count // 2
        rows = torch.randperm(
            len(self._concepts), generator=composer.generator, device=composer.device
        )[:half]
        number = self._counts[rows]
        first = (composer.rand(half) * number).long()
        step = 1 + (composer.rand(half) * (number - 1)).long()
        both = torch.cat([rows, rows])
        which = torch.cat([first, (first + step) % number])
        simple = composer.rand(count) < 0.35
        size = torch.where(
            simple, 0.75 + 0.27 * composer.rand(count), 0.45 + 0.65 * composer.rand(count)
        )
        room = (1 - size[:, None]).abs() / 2 * torch.where(simple, 0.1, 1.0)[:, None]
        centre = (2 * composer.rand(count, 2) - 1) * room
        return self._draw(both, which, centre, size, simple, TILE), self._concepts[both]

    def _cells(self, side: int, count: int) -> tuple[Tensor, Tensor]:
        """[count, 4, 224, 224] premultiplied, and the class at each patch [count, P]."""
        composer = self._composer
        cell = TILE // side
        number = count * side * side
        rows = torch.randint(
            len(self._concepts), (number,), generator=composer.generator, device=composer.device
        )
        which = (composer.rand(number) * self._counts[rows]).long()
        size = 0.6 + 0.42 * composer.rand(number)
        centre = (2 * composer.rand(number, 2) - 1) * (1 - size[:, None]).clamp(min=0) / 2
        drawn = self._draw(rows, which, centre, size, composer.rand(number) < 0.35, cell)
        share = 0.3 + 0.6 * composer.rand(count, 1)
        is_there = (composer.rand(count, side * side) < share).view(-1, 1, 1, 1)
        drawn = (drawn * is_there).view(count, side, side, 4, cell, cell)
        tiles = drawn.permute(0, 3, 1, 4, 2, 5).reshape(count, 4, side * cell, side * cell)
        tiles = F.pad(tiles, (0, TILE - side * cell, 0, TILE - side * cell))
        place = ((torch.arange(TILE // PATCH, device=composer.device) + 0.5) * PATCH / cell).long()
        place = place.clamp(max=side - 1)
        at = (place[:, None] * side + place).flatten()  # [P] the cell of each patch
        concepts = self._concepts[rows].view(count, -1)[:, at]
        covered = F.avg_pool2d(tiles[:, 3:].float(), PATCH).flatten(1)
        return tiles, torch.where(covered > 0.25, concepts, NOTHING)

    def _draw(
        self, rows: Tensor, which: Tensor, centre: Tensor, size: Tensor, simple: Tensor, side: int
    ) -> Tensor:
        """[M, 4, side, side]. centre: from the middle, in sides; simple: upright and unbent."""
        composer, count = self._composer, len(rows)
        source = composer.atlas.small if side < 64 else composer.atlas.drawings
        x = source[self._drawings[rows, which]].to(composer.dtype) / 255
        colours, styles = composer.styles(self._keeps[rows], simple & (composer.rand(count) < 0.7))
        x = bend(restyle(x, colours.to(composer.dtype), styles), composer.knots(~simple))
        upright = torch.where(simple, 0.0, 1.0)
        angle = 0.16 * composer.normal(count) * upright
        stretch = 1 + (composer.rand(count) - 0.5) * 0.4 * upright
        flip = self._flips[rows] & (composer.rand(count) < 0.4) & ~simple
        stretch = torch.where(flip, -stretch, stretch)
        cos, sin = angle.cos(), angle.sin()
        theta = torch.stack([
            torch.stack([cos / stretch, sin / stretch], 1), torch.stack([-sin, cos], 1)
        ], 1) / size[:, None, None]  # fmt: skip
        shift = -(theta @ (2 * centre)[:, :, None])
        grid = F.affine_grid(
            torch.cat([theta, shift], 2), [count, 1, side, side], align_corners=False
        )
        return F.grid_sample(x, grid.to(x.dtype), align_corners=False)

    def _write(self, tiles: Tensor, textures: Tensor, plain: Tensor) -> Tensor:
        """A string on each tile, in place; the class of each patch's middle."""
        composer, count = self._composer, len(tiles)
        pick = (composer.rand(count) * len(self._strings)).long()
        strings = self._strings[pick]
        widest = 0.95 / self._widths[strings]
        size = (widest * (0.45 + 0.55 * composer.rand(count))).clamp(max=4.0)
        extent = torch.stack([size * self._widths[strings], size * HEIGHT / WIDTH], 1)
        centre = 0.5 + (composer.rand(count, 2) - 0.5) * (1 - extent).clamp(min=0)
        angle = 0.05 * composer.normal(count) * (composer.rand(count) < 0.5)
        texts = torch.cat(
            [centre, size[:, None], size[:, None] * HEIGHT / WIDTH, angle[:, None]], 1
        )
        canvas = _canvas_of_texts(texts, strings, plain)
        composer.write(tiles, canvas, textures, plain)
        number = torch.arange(count, device=tiles.device)
        theta = placement(texts[:, :2], texts[:, 2:4], texts[:, 4], canvas, number)
        side = TILE // PATCH
        grid = F.affine_grid(theta, [count, 1, side, side], align_corners=False)
        inside = (grid[..., 0].abs() < 1) & (grid[..., 1].abs() < 0.65)
        column = ((grid[..., 0] + 1) / 2 * WIDTH).long().clamp(0, WIDTH - 1)
        char = self._chars[strings[:, None, None], column].long()
        seen = inside & (char > 0)
        return torch.where(seen, self._num_concepts + char - 1, NOTHING).flatten(1)


def _canvas_of_texts(texts: Tensor, strings: Tensor, plain: Tensor) -> Canvas:
    """One string on each of as many tiles."""
    count, device = len(texts), texts.device
    number = torch.arange(count, device=device)
    none = torch.zeros(0, device=device)
    return Canvas(
        tile_scene=number,
        boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device).expand(count, 4),
        units=torch.ones(count, 2, device=device),
        plain=plain,
        sprites=none, sprite_scene=none, drawings=none, pairs=none, groups=[],
        texts=texts,
        strings=strings,
        text_pairs=torch.stack([number, number], 1),
    )  # fmt: skip
