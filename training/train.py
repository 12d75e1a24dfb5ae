"""Train one of the two models: python -m training.train internvl2 --data FOLDER --out FOLDER

The schedule follows the clock: `--minutes` of training, whatever the machine makes of them, and a
report on held-out drawings and composed tests at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import profile, record_function
from torch.utils.data import DataLoader

from training.batches import Batch, Lessons, to_device
from training.compose import Atlas, Composer
from training.data import TRAIN_SETS, load_artwork, load_concepts
from training.evaluate import report
from training.lettering import draw_lettering
from training.model import Shape, VisionLanguageModel, build
from training.optim import Optimizer
from training.prompts import Encoder
from training.tasks import World

# The first and the last step that --profile looks at.
PROFILED = (40, 44)


@dataclass(frozen=True, slots=True)
class Options:
    family: str
    data: Path
    out: Path
    minutes: float = 7.5
    rate: float = 2e-3
    num_dialogues: int = 192
    num_labels: int = 192
    workers: int = 7
    device: str = "cuda"
    compile: bool = False
    profile: bool = False
    max_steps: int = 10**9
    test_size: int = 256


class AuxiliaryHeads(nn.Module):
    """What a picture shows, told from its patches alone; thrown away after training."""

    def __init__(self, size: int, num_concepts: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.classify = nn.Linear(size, num_concepts)
        self.embed = nn.Linear(size, 128)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.norm(patches.float().mean(1))
        return self.classify(pooled), F.normalize(self.embed(pooled).float(), dim=1)


def contrast(embedded: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrast (arXiv:2004.11362): the other drawings of a concept are its nearest."""
    scores = embedded @ embedded.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    alike = (labels[:, None] == labels) & ~itself
    log_share = scores - scores.masked_fill(itself, float("-inf")).logsumexp(1, keepdim=True)
    return -(log_share * alike).sum(1).div(alike.sum(1).clamp(min=1)).mean()


def losses(
    model: VisionLanguageModel, heads: AuxiliaryHeads, batch: Batch, tiles: Tensor
) -> dict[str, Tensor]:
    """Each loss of a batch, and the share of answers' ids that are right."""
    patches = model.tower(tiles)
    for_tower = len(batch.labels)
    split = len(tiles) - for_tower
    rows = model.project(patches[:split]).flatten(0, 1)
    total, correct, count, at = 0.0, 0.0, 0, 0
    for chunk in batch.chunks:
        taken = len(chunk.image_rows)
        x, is_image = model.decoder.embed(chunk.ids, chunk.image_rows, rows[at : at + taken])
        at += taken
        hidden = model.decoder(x, is_image).flatten(0, 1)[chunk.answer_rows]
        logits = model.decoder.logits(hidden).float()
        total = total + F.cross_entropy(logits, chunk.targets, reduction="sum")
        correct = correct + (logits.argmax(1) == chunk.targets).sum()
        count += len(chunk.targets)
    classes, embedded = heads(patches[split:])
    return {
        "answer": total / count,
        "class": F.cross_entropy(classes.float(), batch.labels, label_smoothing=0.1),
        "contrast": contrast(embedded, batch.labels),
        "right": correct / count,
        "class_right": (classes.argmax(1) == batch.labels).float().mean(),
    }


def learning_rate(peak: float, share: float, warm_up: float = 0.03) -> float:
    """By the share of the time that is over: up in a line, then down a cosine to nothing."""
    if share < warm_up:
        return peak * (share + 1e-3) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warm_up) / (1 - warm_up))))


def train(options: Options) -> None:
    begun = time.monotonic()
    device = torch.device(options.device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    # Batches are many small tensors: by name, not by open files, of which there may be too few.
    torch.multiprocessing.set_sharing_strategy("file_system")
    concepts = load_concepts(options.data)
    world = World(
        concepts, load_artwork(options.data, TRAIN_SETS, len(concepts)), draw_lettering(concepts)
    )
    encoder = Encoder(options.family, options.data / "tokenizer.model")
    lessons = Lessons(
        world, encoder, seed=1,
        num_dialogues=options.num_dialogues, num_labels=options.num_labels,
    )  # fmt: skip
    loader = DataLoader(
        lessons, batch_size=None, num_workers=options.workers,
        prefetch_factor=4 if options.workers else None, pin_memory=False,
    )  # fmt: skip
    batches = iter(loader)
    shape = Shape(options.family, encoder.vocab_size)
    model = build(shape).to(device)
    heads = AuxiliaryHeads(shape.vit_hidden, len(concepts)).to(device)
    generator = torch.Generator(device).manual_seed(1)
    composer = Composer(Atlas.load(world.artwork, world.lettering, device), generator, augment=True)
    if options.compile:
        compile_blocks(model)
    print(f"{options.family}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
          f"{time.monotonic() - begun:.1f} s to load", flush=True)  # fmt: skip
    history = run(options, model, heads, composer, batches)
    save(options, model)
    result = {"options": asdict(options), "seconds": time.monotonic() - begun, "history": history}
    write(options, result)
    model.eval()
    tests = report(model, encoder, world, options.data, device, options.test_size)
    write(options, result | {"tests": tests, "seconds_with_tests": time.monotonic() - begun})
    print(json.dumps(tests, ensure_ascii=False, indent=1), flush=True)


def run(
    options: Options,
    model: VisionLanguageModel,
    heads: AuxiliaryHeads,
    composer: Composer,
    batches: Iterator[Batch],
) -> list[dict[str, float]]:
    """Steps until the time is over; means of the losses, every hundred steps."""
    device = torch.device(options.device)
    optimizer = Optimizer([model, heads])
    history: list[dict[str, float]] = []
    sums: dict[str, Tensor] = {}
    profiler: profile | None = None
    begun, step, summed, waited, every = time.monotonic(), 0, 0, 0.0, 100
    while (share := (time.monotonic() - begun) / (60 * options.minutes)) < 1:
        if step >= options.max_steps:
            break
        asked = time.monotonic()
        batch = to_device(next(batches), device)
        waited += time.monotonic() - asked
        if options.profile and step == PROFILED[0]:
            profiler = profile()
            profiler.start()
        with record_function("# compose"):
            tiles = composer(batch.canvas)
        with record_function("# forward"), torch.autocast(device.type, torch.bfloat16):
            parts = losses(model, heads, batch, tiles)
        loss = parts["answer"] + 0.3 * parts["class"] + 0.1 * parts["contrast"]
        with record_function("# backward"):
            loss.backward()
        with record_function("# optimizer"):
            optimizer.step(learning_rate(options.rate, share))
        if profiler is not None and step == PROFILED[1]:
            profiler.stop()
            table = profiler.key_averages().table("self_device_time_total", row_limit=40)
            print(f"{len(tiles)} tiles in the last step\n{table}", flush=True)
            profiler = None
        for name, value in parts.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        step, summed = step + 1, summed + 1
        if step % every == 0 or step in (10, options.max_steps):
            means = {name: round(float(value) / summed, 4) for name, value in sums.items()}
            seconds = round(time.monotonic() - begun, 1)
            history.append({"step": step, "seconds": seconds, "waited": round(waited, 1), **means})
            print(f"{options.family} {json.dumps(history[-1])}", flush=True)
            sums, summed = {}, 0
    print(f"{options.family}: {step} steps", flush=True)
    return history


def compile_blocks(model: VisionLanguageModel) -> None:
    """Fuse the blocks of tower and decoder; where that fails they run as they are."""
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.cache_size_limit = 64
    for block in (*model.tower.encoder.layers, *model.decoder.model.layers):
        block.compile(dynamic=True)


def save(options: Options, model: VisionLanguageModel) -> None:
    """The weights under the checkpoint's own names, in bfloat16."""
    weights = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in
               model.state_dict().items()}  # fmt: skip
    save_file(weights, options.out / f"{options.family}.safetensors")


def write(options: Options, result: dict[str, object]) -> None:
    path = options.out / f"{options.family}.json"
    path.write_text(json.dumps(result, ensure_ascii=False, indent=1, default=str), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="train one of the two models")
    parser.add_argument("family", choices=("internvl2", "xcomposer2"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--num-dialogues", type=int, default=192)
    parser.add_argument("--num-labels", type=int, default=192)
    parser.add_argument("--workers", type=int, default=7)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print where some steps' time goes")
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--test-size", type=int, default=256)
    train(Options(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
