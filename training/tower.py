"""Teach a tower to see before it is asked to talk:
python -m training.tower internvl2 --data FOLDER --out FOLDER

Three tasks on sheets: which concept a tile shows, which concept or character stands at each patch,
and that two drawings of a concept are alike. Half of the patches are left out for most of the
time, which doubles the steps.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from training.compose import Atlas, Composer
from training.data import HELD_OUT_SETS, TRAIN_SETS, Artwork, load_artwork, load_concepts
from training.lettering import draw_lettering
from training.model import Shape, Vit, build
from training.optim import Optimizer
from training.sheets import NOTHING, Mix, SheetMaker, Sheets, num_classes
from training.tasks import World

# A patch of background counts for as little, or there would be nothing else to learn.
_BACKGROUND_WEIGHT = 0.1
# The step before which it is measured what sheets cost.
_MEASURED = 100


@dataclass(frozen=True, slots=True)
class Options:
    family: str
    data: Path
    out: Path
    minutes: float = 6.5
    rate: float = 3e-3
    keep: float = 0.5
    whole: float = 0.25
    device: str = "cuda"
    compile: bool = False
    max_steps: int = 10**9


class Heads(nn.Module):
    """What stands at a patch, or on the mean of them; thrown away after training."""

    def __init__(self, size: int, num_concepts: int) -> None:
        super().__init__()
        self.num_concepts = num_concepts
        self.nothing = num_classes(num_concepts)
        self.norm = nn.LayerNorm(size)
        self.classify = nn.Linear(size, self.nothing + 1)
        self.embed = nn.Linear(size, 128)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """[N, K, n] -> classes [N, C + 1] and directions [N, 128] of whole tiles"""
        pooled = self.norm(patches.float().mean(1))
        return self.classify(pooled), F.normalize(self.embed(pooled).float(), dim=1)

    def dense(self, patches: Tensor) -> Tensor:
        """[N, K, n] -> [N, K, C + 1]"""
        return self.classify(self.norm(patches.float()))


def contrast(embedded: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrast (arXiv:2004.11362): the other drawings of a concept are its nearest."""
    scores = embedded @ embedded.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    alike = (labels[:, None] == labels) & ~itself
    log_share = scores - scores.masked_fill(itself, float("-inf")).logsumexp(1, keepdim=True)
    return -(log_share * alike).sum(1).div(alike.sum(1).clamp(min=1)).mean()


def choose_patches(sheets: Sheets, num_patches: int, share: float) -> Tensor | None:
    """[N, K] a random share of each tile's patches; None for all."""
    if share >= 1:
        return None
    scores = torch.rand(len(sheets.tiles), num_patches, device=sheets.tiles.device)
    return scores.topk(int(share * num_patches), dim=1, sorted=False).indices


def tower_losses(
    tower: Vit, heads: Heads, sheets: Sheets, keep: Tensor | None
) -> dict[str, Tensor]:
    """Each loss, and shares of right answers."""
    patches = tower(sheets.tiles, keep)
    split = len(sheets.labels)
    classes, embedded = heads(patches[:split])
    classes = classes.float()
    dense = heads.dense(patches[split:]).float().flatten(0, 1)
    targets = sheets.patches if keep is None else sheets.patches.gather(1, keep[split:])
    targets = torch.where(targets == NOTHING, heads.nothing, targets).flatten()
    weight = torch.ones(heads.nothing + 1, device=dense.device)
    weight[heads.nothing] = _BACKGROUND_WEIGHT
    is_thing = targets < heads.num_concepts
    is_char = ~is_thing & (targets < heads.nothing)
    right = (dense.argmax(1) == targets).float()
    return {
        "class": F.cross_entropy(classes, sheets.labels, label_smoothing=0.1),
        "contrast": contrast(embedded, sheets.labels),
        "patch": F.cross_entropy(dense, targets, weight=weight),
        "class_right": (classes.argmax(1) == sheets.labels).float().mean(),
        "patch_right": (right * is_thing).sum() / is_thing.sum().clamp(min=1),
        "char_right": (right * is_char).sum() / is_char.sum().clamp(min=1),
    }


def weigh(parts: dict[str, Tensor]) -> Tensor:
    return parts["class"] + 0.2 * parts["contrast"] + parts["patch"]


def learning_rate(peak: float, share: float, warm_up: float = 0.03) -> float:
    """By the share of the time that is over: up in a line, then down a cosine to nothing."""
    if share < warm_up:
        return peak * (share + 1e-3) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warm_up) / (1 - warm_up))))


class History:
    """Means of what was measured since the last report; read from the device only then."""

    def __init__(self, name: str) -> None:
        self.rows: list[dict[str, float]] = []
        self._name = name
        self._begun = time.monotonic()
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            kept = self._sums.get(name)
            self._sums[name] = value.detach() if kept is None else kept + value.detach()
        self._count += 1

    def report(self, step: int, **more: float) -> None:
        means = {name: round(float(value) / self._count, 4) for name, value in self._sums.items()}
        seconds = round(time.monotonic() - self._begun, 1)
        self.rows.append({"step": step, "seconds": seconds, **more, **means})
        print(f"{self._name} {json.dumps(self.rows[-1])}", flush=True)
        self._sums, self._count = {}, 0


def compile_layers(layers: nn.ModuleList, *, dynamic: bool) -> None:
    """Fuse blocks; where that fails they run as they are."""
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.cache_size_limit = 64
    for block in layers:
        block.compile(dynamic=dynamic)


def plain_tiles(artwork: Artwork, size: float, device: torch.device) -> Tensor:
    """[N, 3, 224, 224] every drawing in the middle of white, as a user would send it."""
    x = torch.from_numpy(artwork.pixels).to(device).float() / 255
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)
    side = round(224 * size)
    x = F.interpolate(x, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    before = (224 - side) // 2
    x = F.pad(x, (before, 224 - side - before, before, 224 - side - before))
    return x[:, :3] + 1 - x[:, 3:]


@torch.no_grad()
def held_out(tower: Vit, heads: Heads, artwork: Artwork, device: torch.device) -> dict[str, float]:
    """Right classes in % of drawings of a set that is not learnt from."""
    labels = torch.from_numpy(artwork.concept).to(device)
    shares = {}
    for size in (1.0, 0.8):
        right = 0
        for tiles, expected in zip(
            plain_tiles(artwork, size, device).split(256), labels.split(256), strict=True
        ):
            classes = heads(tower(tiles))[0][:, : heads.num_concepts]
            right += int((classes.argmax(1) == expected).sum())
        shares[f"held_out_{size}"] = round(100 * right / len(labels), 1)
    return shares


def time_sheets(maker: SheetMaker, step: int, begun: float) -> None:
    """Print what twenty calls take; twice, twenty steps apart, so that these can be told too."""
    torch.cuda.synchronize()
    start = time.monotonic()
    for _ in range(20):
        maker()
    torch.cuda.synchronize()
    end = time.monotonic()
    print(f"step {step}: {50 * (end - start):.1f} ms to make sheets, from {start - begun:.3f} s to "
          f"{end - begun:.3f} s", flush=True)  # fmt: skip


def set_up(name: str) -> torch.device:
    """The device, with one seed and TF32 for what is not in bfloat16."""
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    return device


def train(options: Options) -> None:
    begun = time.monotonic()
    device = set_up(options.device)
    concepts = load_concepts(options.data)
    artwork = load_artwork(options.data, TRAIN_SETS, len(concepts))
    unseen = load_artwork(options.data, HELD_OUT_SETS, len(concepts))
    world = World(concepts, artwork, draw_lettering(concepts, options.data / "fonts"))
    generator = torch.Generator(device).manual_seed(2)
    composer = Composer(Atlas.load(artwork, world.lettering, device), generator, augment=True)
    maker = SheetMaker(world, composer, Mix())
    shape = Shape(options.family, 4096)
    tower = build(shape).tower.to(device)
    heads = Heads(shape.vit_hidden, len(concepts)).to(device)
    if options.compile:
        compile_layers(tower.encoder.layers, dynamic=False)
    print(f"{options.family}: {time.monotonic() - begun:.1f} s to load", flush=True)
    history = run(options, tower, heads, maker, unseen)
    weights = {f"tower.{name}": t for name, t in tower.state_dict().items()}
    weights |= {f"heads.{name}": t for name, t in heads.state_dict().items()}
    weights = {name: t.to("cpu", torch.float16).contiguous() for name, t in weights.items()}
    save_file(weights, options.out / f"{options.family}-tower.safetensors")
    result = {"options": asdict(options), "seconds": time.monotonic() - begun, "history": history}
    path = options.out / f"{options.family}-tower.json"
    path.write_text(json.dumps(result, indent=1, default=str), "utf-8")


def run(
    options: Options, tower: Vit, heads: Heads, maker: SheetMaker, unseen: Artwork
) -> list[dict[str, float]]:
    """Steps until the time is over; the last of them, `whole` of the time, see every patch."""
    device = torch.device(options.device)
    optimizer = Optimizer([tower, heads])
    history = History(options.family)
    num_patches = (224 // 14) ** 2
    begun, step = time.monotonic(), 0
    while (share := (time.monotonic() - begun) / (60 * options.minutes)) < 1:
        if step >= options.max_steps:
            break
        if step in (_MEASURED, _MEASURED + 20) and device.type == "cuda":
            time_sheets(maker, step, begun)
        sheets = maker()
        keep = choose_patches(sheets, num_patches, 1 if share > 1 - options.whole else options.keep)
        with torch.autocast(device.type, torch.bfloat16):
            parts = tower_losses(tower, heads, sheets, keep)
        weigh(parts).backward()
        optimizer.step(learning_rate(options.rate, share))
        history.add(parts)
        step += 1
        if step % 250 == 0 or step in (5, 50):
            with torch.autocast(device.type, torch.bfloat16):
                scores = held_out(tower, heads, unseen, device) if step % 1000 == 0 else {}
            history.report(step, **scores)
    with torch.autocast(device.type, torch.bfloat16):
        history.report(step, **held_out(tower, heads, unseen, device))
    return history.rows


def main() -> None:
    parser = argparse.ArgumentParser(description="teach a tower to see")
    parser.add_argument("family", choices=("internvl2", "xcomposer2"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.5)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--keep", type=float, default=0.5, help="share of patches that is seen")
    parser.add_argument("--whole", type=float, default=0.25, help="of the time: all are seen")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--max-steps", type=int, default=10**9)
    train(Options(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
