"""Scenes to pixels, a whole batch at a time, on whatever device the drawings are.

Letters in shape comments: N tiles, S scenes, P sprites, Q pairs of a sprite and a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from training.batches import TILE, Canvas
from training.data import Artwork
from training.lettering import Lettering


@dataclass(frozen=True, slots=True)
class Atlas:
    """All drawings and strings on one device.

    drawings  [N, 4, 96, 96] uint8;  small [N, 4, 48, 48] uint8;  strings [M, 48, 256] uint8
    """

    drawings: Tensor
    small: Tensor
    strings: Tensor

    @classmethod
    def load(cls, artwork: Artwork, lettering: Lettering, device: torch.device) -> Atlas:
        drawings = torch.from_numpy(artwork.pixels).to(device)
        parts = [_premultiplied(part) for part in drawings.split(512)]
        drawings = torch.cat([(255 * part).round().byte() for part in parts])
        small = torch.cat([(255 * F.avg_pool2d(part, 2)).round().byte() for part in parts])
        return cls(drawings, small, torch.from_numpy(lettering.alpha).to(device))


def _premultiplied(rgba: Tensor) -> Tensor:
    """uint8 -> float, colours times alpha, so that sampling between pixels makes no fringes."""
    x = rgba.float() / 255
    return torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)


class Composer:
    """Draws canvases. augment: vary colours, styles, backgrounds; else all is plain on white."""

    def __init__(self, atlas: Atlas, generator: torch.Generator, *, augment: bool) -> None:
        self.atlas = atlas
        self.generator = generator
        self._augment = augment
        self.device = atlas.drawings.device
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self._dct = _dct_matrix(8).to(self.device)

    @torch.no_grad()
    def __call__(self, canvas: Canvas) -> Tensor:
        """[N, 3, 224, 224] from 0 to 1"""
        with torch.autocast(self.device.type, enabled=False):
            return self._compose(canvas)

    def _compose(self, canvas: Canvas) -> Tensor:
        plain = canvas.plain
        if not self._augment:
            plain = torch.ones_like(plain)
        textures = self.backgrounds(plain)
        tiles = self._sample_backgrounds(textures, canvas)
        keeps = canvas.sprites[:, 5].bool()
        colours, styles = self.styles(keeps, plain[canvas.sprite_scene])
        knots = self.knots(~plain[canvas.sprite_scene])
        for first, last, is_small in canvas.groups:
            pairs = canvas.pairs[first:last]
            self._draw(tiles, canvas, pairs, is_small, colours, styles, knots)
        if len(canvas.texts):
            self.write(tiles, canvas, textures, plain)
        return self.spoil(tiles, plain[canvas.tile_scene]).clamp_(0, 1)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def backgrounds(self, plain: Tensor) -> Tensor:
        """[S, 3, 8, 8]: white, pale, of a colour, black, a gradient, a rough pattern or the
        blurred colours of some drawing."""
        count = len(plain)
        kind = self.rand(count)
        one = torch.ones(count, 3, 8, 8, device=self.device)
        colour, other = (self.rand(count, 3, 1, 1) for _ in range(2))
        angle = 2 * math.pi * self.rand(count, 1, 1)
        ramp = torch.linspace(-0.5, 0.5, 8, device=self.device)
        along = 0.5 + 0.7 * (angle.cos() * ramp + angle.sin() * ramp[:, None])
        gradient = colour + (other - colour) * along.clamp(0, 1)[:, None]
        rough = colour + (self.rand(count, 3, 8, 8) - 0.5) * self.rand(count, 1, 1, 1)
        which = torch.randint(
            len(self.atlas.small), (count,), generator=self.generator, device=self.device
        )
        art = F.adaptive_avg_pool2d(self.atlas.small[which].float() / 255, 8)
        art = art[:, :3] + (1 - art[:, 3:]) * other
        out = one
        for limit, texture in (
            (0.70, 1 - 0.25 * colour * one), (0.58, colour * one), (0.44, colour * 0.08 * one),
            (0.38, gradient), (0.26, rough), (0.13, art),
        ):  # fmt: skip
            out = torch.where((kind < limit)[:, None, None, None], texture, out)
        return torch.where(plain[:, None, None, None], one, out).clamp(0, 1)

    def _sample_backgrounds(self, textures: Tensor, canvas: Canvas) -> Tensor:
        boxes = canvas.boxes
        theta = torch.zeros(len(boxes), 2, 3, device=self.device)
        theta[:, 0, 0], theta[:, 1, 1] = boxes[:, 2], boxes[:, 3]
        theta[:, :, 2] = 2 * boxes[:, :2] + boxes[:, 2:] - 1
        grid = F.affine_grid(theta, [len(boxes), 3, TILE, TILE], align_corners=False)
        source = textures[canvas.tile_scene].to(self.dtype)
        return F.grid_sample(
            source, grid.to(self.dtype), padding_mode="border", align_corners=False
        )

    def styles(self, keeps: Tensor, plain: Tensor) -> tuple[Tensor, Tensor]:
        """A colour matrix [P, 3, 3] and a style [P] of each sprite: 0 as it is, 1 as black lines
        on white, 2 with black outlines, 3 flat with outlines."""
        count = len(keeps)
        pick = self.rand(count)
        free = ~keeps & ~plain
        hue = torch.where(free & (pick < 0.25), self.normal(count) * 0.6, self.normal(count) * 0.05)
        saturation = 1 + 0.3 * self.normal(count).clamp(-2, 2)
        grey = free & (pick > 0.92)
        saturation = torch.where(grey, torch.zeros_like(saturation), saturation)
        brightness = (1 + 0.15 * self.normal(count)).clamp(0.6, 1.4)
        matrix = _colour_matrix(hue, saturation.clamp(0, 1.6)) * brightness[:, None, None]
        same = torch.eye(3, device=self.device).expand(count, 3, 3)
        matrix = torch.where(plain[:, None, None], same, matrix)
        draw = self.rand(count)
        style = (draw < 0.26).long() * 2 + (draw < 0.13).long()
        style = torch.where(free & (draw > 0.92), torch.ones_like(style), style)
        return matrix, torch.where(plain, torch.zeros_like(style), style)

    def knots(self, is_bent: Tensor) -> Tensor:
        """[P, 2, 5, 5] for `bend`: nothing where it is not bent."""
        strength = 0.07 * self.rand(len(is_bent), 1, 1, 1) * is_bent.view(-1, 1, 1, 1)
        return (self.normal(len(is_bent), 2, 5, 5) * strength).to(self.dtype)

    def _draw(
        self,
        tiles: Tensor,
        canvas: Canvas,
        pairs: Tensor,
        is_small: bool,
        colours: Tensor,
        styles: Tensor,
        knots: Tensor,
    ) -> None:
        """One layer of sprites onto the tiles [N, 3, 224, 224], in place."""
        at, sprite = pairs[:, 0], pairs[:, 1]
        source = self.atlas.small if is_small else self.atlas.drawings
        x = source[canvas.drawings[sprite]].to(self.dtype) / 255
        x = bend(restyle(x, colours[sprite].to(self.dtype), styles[sprite]), knots[sprite])
        geometry = canvas.sprites[sprite]
        size = geometry[:, 2:3]
        extent = torch.cat([size * geometry[:, 4:5], size], 1)
        theta = placement(geometry[:, :2], extent, geometry[:, 3], canvas, at)
        drawn = self._sample(x, theta)
        tiles[at] = tiles[at] * (1 - drawn[:, 3:]) + drawn[:, :3]

    def _sample(self, x: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, [len(x), 1, TILE, TILE], align_corners=False)
        return F.grid_sample(x, grid.to(x.dtype), align_corners=False)

    def write(self, tiles: Tensor, canvas: Canvas, textures: Tensor, plain: Tensor) -> None:
        """Strings in a colour that stands out, some of them on a plate."""
        at, text = canvas.text_pairs[:, 0], canvas.text_pairs[:, 1]
        alpha = self.atlas.strings[canvas.strings].to(self.dtype)[:, None] / 255
        geometry = canvas.texts
        theta = placement(geometry[text, :2], geometry[text, 2:4], geometry[text, 4], canvas, at)
        count = len(geometry)
        scene = torch.zeros(count, dtype=torch.int64, device=self.device)
        scene[text] = canvas.tile_scene[at]
        light = textures.mean((1, 2, 3))[scene]
        has_plate = (self.rand(count) < 0.35) & ~plain[scene]
        plate = torch.where(self.rand(count, 1) < 0.5, 0.75 + 0.25 * self.rand(count, 3),
                            0.35 * self.rand(count, 3))  # fmt: skip
        light = torch.where(has_plate, plate.mean(1), light)
        ink = self.rand(count, 3) * 0.45
        ink = torch.where((light > 0.5)[:, None], ink, 1 - ink * 0.8)
        ink = torch.where(plain[scene][:, None], torch.zeros_like(ink), ink).to(self.dtype)
        mask = self._sample(alpha[text], theta)
        area = self._sample(torch.ones_like(alpha)[text], theta)
        area = area * has_plate[text][:, None, None, None]
        below = tiles[at] + area * (plate.to(self.dtype)[text][:, :, None, None] - tiles[at])
        tiles[at] = below + mask * (ink[text][:, :, None, None] - below)

    def spoil(self, tiles: Tensor, plain: Tensor) -> Tensor:
        """Contrast, blur, noise and the blocks of JPEG, each on some of the tiles."""
        if not self._augment:
            return tiles
        count = len(tiles)
        some = [((self.rand(count) < p) & ~plain)[:, None, None, None] for p in (0.5, 0.2, 0.25)]
        gain = (1 + 0.15 * self.normal(count, 1, 1, 1)).to(tiles.dtype)
        shift = (0.06 * self.normal(count, 1, 1, 1)).to(tiles.dtype)
        tiles = torch.where(some[0], (tiles - 0.5) * gain + 0.5 + shift, tiles)
        soft = F.interpolate(F.avg_pool2d(tiles, 2), scale_factor=2, mode="bilinear")
        tiles = torch.where(some[1], soft, tiles)
        level = (0.05 * self.rand(count, 1, 1, 1)).to(tiles.dtype)
        noise = torch.randn_like(tiles) if self.device.type == "cuda" else self.normal(*tiles.shape)
        tiles = torch.where(some[2], tiles + noise * level, tiles)
        last = count // 6
        start = int(torch.randint(count - last + 1, (1,)))
        tiles[start : start + last] = self._jpeg(tiles[start : start + last].clamp(0, 1))
        return tiles

    def stain(self, tiles: Tensor) -> Tensor:
        """Textures and colours by chance while shapes stay: each tile through a convolution of its
        own, mixed with itself (arXiv:2007.13003)."""
        count, size = len(tiles), 5
        kernels = self.normal(count * 3, 3, size, size).to(tiles.dtype)
        # From one pixel to all of the kernel: the wider, the more is blurred.
        reach = torch.arange(size, device=self.device) - size // 2
        reach = torch.maximum(reach.abs()[:, None], reach.abs())
        widest = (3 * self.rand(count, 1)).long().repeat_interleave(3, 0)[:, :, None, None]
        kernels = kernels * (reach <= widest)
        drawn = F.conv2d(tiles.reshape(1, count * 3, TILE, TILE), kernels, padding=size // 2,
                         groups=count).view(tiles.shape).float()  # fmt: skip
        mean, std = drawn.mean((1, 2, 3), keepdim=True), drawn.std((1, 2, 3), keepdim=True)
        drawn = 0.5 + 0.25 * (drawn - mean) / (std + 1e-3)
        share = self.rand(count, 1, 1, 1)
        return (share * tiles + (1 - share) * drawn).to(tiles.dtype)

    def _jpeg(self, tiles: Tensor) -> Tensor:
        """Squares of eight pixels with coarse frequencies."""
        d = self._dct.to(tiles.dtype)
        n = TILE // 8
        x = tiles.view(-1, 3, n, 8, n, 8) - 0.5
        x = torch.einsum("ai,bcniwj,dj->bcnawd", d, x, d)
        order = torch.arange(8, device=self.device)
        step = (1 + order[:, None] + order)[:, None].to(tiles.dtype) / 255
        step = step * (3 + 9 * self.rand(len(tiles), 1, 1, 1, 1, 1)).to(tiles.dtype)
        x = (x / step).round() * step
        return (torch.einsum("ai,bcnawd,dj->bcniwj", d, x, d) + 0.5).reshape(tiles.shape)


def placement(centre: Tensor, extent: Tensor, angle: Tensor, canvas: Canvas, at: Tensor) -> Tensor:
    """[Q, 2, 3]: from places on a tile, -1 to 1, to places on a sprite, -1 to 1.

    centre in the unit square, extent in the picture's shorter side, turned by angle.
    """
    box, units = canvas.boxes[at], canvas.units[canvas.tile_scene[at]]
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
    half = 2 / extent  # to half an extent
    scale = units * box[:, 2:] / 2
    offset = (box[:, :2] + box[:, 2:] / 2 - centre) * units
    linear = half[:, :, None] * turn * scale[:, None, :]
    shift = half * (turn @ offset[:, :, None])[:, :, 0]
    return torch.cat([linear, shift[:, :, None]], 2)


def bend(x: Tensor, knots: Tensor) -> Tensor:
    """Sprites [Q, 4, s, s] with smooth shifts by knots: lines as another hand would draw them."""
    same = torch.eye(2, 3, device=x.device).expand(len(x), 2, 3)
    grid = F.affine_grid(same, [len(x), 1, *x.shape[2:]], align_corners=False)
    field = F.interpolate(knots, size=x.shape[2:], mode="bilinear").permute(0, 2, 3, 1)
    return F.grid_sample(x, (grid + field).to(x.dtype), align_corners=False)


def restyle(x: Tensor, colours: Tensor, styles: Tensor) -> Tensor:
    """Premultiplied sprites [Q, 4, s, s] in other colours, as line-art or with outlines."""
    rgb, alpha = x[:, :3], x[:, 3:]
    rgb = torch.einsum("qij,qjhw->qihw", colours, rgb)
    rgb = rgb.clamp(min=0).minimum(alpha)
    grey = (rgb.mean(1, keepdim=True) + (1 - alpha)) * 0.6 + (1 - alpha) * 0.4
    across = F.pad(grey[..., 1:] - grey[..., :-1], (1, 0))
    down = F.pad(grey[..., 1:, :] - grey[..., :-1, :], (0, 0, 1, 0))
    edge = F.max_pool2d((across.abs() + down.abs()) * 2.5, 3, 1, 1).clamp(0, 1)
    border = (F.max_pool2d(alpha, 5, 1, 2) - alpha).clamp(0, 1)
    lines = (edge * alpha + border).clamp(max=1)
    flat = ((rgb * 4).round() / 4).minimum(alpha)
    style = styles[:, None, None, None]
    base = torch.where(style == 1, alpha, torch.where(style == 3, flat, rgb))
    ink = torch.where(style == 0, torch.zeros_like(lines), lines)
    return torch.cat([base * (1 - ink), torch.maximum(alpha, ink)], 1)


def _colour_matrix(hue: Tensor, saturation: Tensor) -> Tensor:
    """[P, 3, 3]: a turn about the grey axis by `hue` radians, then nearer to grey or further."""
    cos, sin = hue.cos()[:, None, None], hue.sin()[:, None, None]
    eye = torch.eye(3, device=hue.device)
    mean = torch.full((3, 3), 1 / 3, device=hue.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=hue.device) / math.sqrt(3)
    turn = cos * eye + (1 - cos) * mean + sin * cross
    return mean + saturation[:, None, None] * (turn - mean)


def _dct_matrix(n: int) -> Tensor:
    """The orthonormal discrete cosine transform, [frequency, place]."""
    k, i = torch.arange(n)[:, None], torch.arange(n)
    matrix = torch.cos(math.pi * (2 * i + 1) * k / (2 * n)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix
