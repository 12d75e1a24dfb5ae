"""Train one of the two models: python -m training.train internvl2 --data FOLDER --out FOLDER

The schedule follows the clock: `--minutes` of training, whatever the machine makes of them, and a
report on held-out drawings and composed tests at the end. The tower comes from training.tower.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
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
from training.sheets import Mix, SheetMaker
from training.tasks import World
from training.tower import (
    Heads,
    History,
    choose_patches,
    compile_layers,
    learning_rate,
    set_up,
    tower_losses,
    weigh,
)

# The first and the last step that --profile looks at.
PROFILED = (40, 44)
# Of what the decoder gets of a patch, and of whole patches: it must not know drawings by heart.
_DROPOUT = 0.1
# Sheets go on beside the dialogues, so that the tower forgets nothing.
_MIX = Mix(portraits=192, cells=((2, 32), (3, 32), (4, 24)), texts=48)


@dataclass(frozen=True, slots=True)
class Options:
    """tower: what training.tower wrote; start, heads: what an earlier run wrote, to go on with.

    listen   the share of the time, at first, in which the tower does not learn from answers
    """

    family: str
    data: Path
    out: Path
    tower: Path | None = None
    start: Path | None = None
    heads: Path | None = None
    minutes: float = 7.5
    rate: float = 3e-3
    tower_rate: float = 1e-3
    listen: float = 0.1
    num_dialogues: int = 256
    workers: int = 14
    device: str = "cuda"
    compile: bool = False
    profile: bool = False
    max_steps: int = 10**9
    test_size: int = 256


def answer_losses(
    model: VisionLanguageModel, batch: Batch, tiles: Tensor, *, teach_tower: bool
) -> dict[str, Tensor]:
    """The loss of the answers, and the share of their ids that are right."""
    with torch.set_grad_enabled(teach_tower):
        patches = model.tower(tiles)
    patches = F.dropout(F.dropout1d(patches, _DROPOUT), _DROPOUT)
    rows = model.project(patches).flatten(0, 1)
    total, weight, correct, count, at = 0.0, 0.0, 0.0, 0, 0
    for chunk in batch.chunks:
        taken = len(chunk.image_rows)
        x, is_image = model.decoder.embed(chunk.ids, chunk.image_rows, rows[at : at + taken])
        at += taken
        hidden = model.decoder(x, is_image).flatten(0, 1)[chunk.answer_rows]
        logits = model.decoder.logits(hidden).float()
        each = F.cross_entropy(logits, chunk.targets, reduction="none")
        total, weight = total + (each * chunk.weights).sum(), weight + chunk.weights.sum()
        correct = correct + (logits.argmax(1) == chunk.targets).sum()
        count += len(chunk.targets)
    return {"answer": total / weight, "right": correct / count}


def train(options: Options) -> None:
    begun = time.monotonic()
    device = set_up(options.device)
    # Batches are many small tensors: by name, not by open files, of which there may be too few.
    torch.multiprocessing.set_sharing_strategy("file_system")
    concepts = load_concepts(options.data)
    artwork = load_artwork(options.data, TRAIN_SETS, len(concepts))
    world = World(concepts, artwork, draw_lettering(concepts, options.data / "fonts"))
    encoder = Encoder(options.family, options.data / "tokenizer.model")
    loader = DataLoader(
        Lessons(world, encoder, seed=1, num_dialogues=options.num_dialogues),
        batch_size=None, num_workers=options.workers,
        prefetch_factor=4 if options.workers else None, pin_memory=False,
    )  # fmt: skip
    batches = iter(loader)
    generator = torch.Generator(device).manual_seed(1)
    composer = Composer(Atlas.load(artwork, world.lettering, device), generator, augment=True)
    shape = Shape(options.family, encoder.vocab_size)
    model = build(shape).to(device)
    heads = Heads(shape.vit_hidden, len(concepts)).to(device)
    start(options, model, heads)
    if options.compile:
        compile_layers(model.tower.encoder.layers, dynamic=True)
        compile_layers(model.decoder.model.layers, dynamic=True)
    print(f"{options.family}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
          f"{time.monotonic() - begun:.1f} s to load", flush=True)  # fmt: skip
    history = run(options, model, heads, composer, SheetMaker(world, composer, _MIX), batches)
    save(options, model, heads)
    result = {"options": asdict(options), "seconds": time.monotonic() - begun, "history": history}
    write(options, result)
    model.eval()
    tests = report(model, encoder, world, options.data, device, options.test_size)
    write(options, result | {"tests": tests, "seconds_with_tests": time.monotonic() - begun})
    print(json.dumps(tests, ensure_ascii=False, indent=1), flush=True)


def start(options: Options, model: VisionLanguageModel, heads: Heads) -> None:
    """Weights to begin with: of a taught tower, or of a whole model."""
    if options.tower is not None:
        weights = load_file(options.tower)
        for name, module in (("tower.", model.tower), ("heads.", heads)):
            module.load_state_dict(
                {k.removeprefix(name): t for k, t in weights.items() if k.startswith(name)}
            )
    if options.start is not None:
        model.load_state_dict(load_file(options.start))
    if options.heads is not None:
        heads.load_state_dict(load_file(options.heads))


def run(
    options: Options,
    model: VisionLanguageModel,
    heads: Heads,
    composer: Composer,
    maker: SheetMaker,
    batches: Iterator[Batch],
) -> list[dict[str, float]]:
    """Steps until the time is over; means of the losses, every hundred steps."""
    device = torch.device(options.device)
    seeing = Optimizer([model.tower, heads])
    seen = {id(p) for p in model.tower.parameters()}
    talking = Optimizer([model], without=seen)
    num_patches = (224 // 14) ** 2
    history = History(options.family)
    profiler: profile | None = None
    begun, step, waited = time.monotonic(), 0, 0.0
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
        with record_function("# sheets"):
            sheets = maker()
            keep = choose_patches(sheets, num_patches, 0.5)
        with record_function("# forward"), torch.autocast(device.type, torch.bfloat16):
            teach_tower = share > options.listen
            parts = answer_losses(model, batch, tiles, teach_tower=teach_tower)
            seen_parts = tower_losses(model.tower, heads, sheets, keep)
        with record_function("# backward"):
            (parts["answer"] + 0.5 * weigh(seen_parts)).backward()
        with record_function("# optimizer"):
            seeing.step(learning_rate(options.tower_rate, share))
            talking.step(learning_rate(options.rate, share))
        if profiler is not None and step == PROFILED[1]:
            profiler.stop()
            table = profiler.key_averages().table("self_device_time_total", row_limit=40)
            print(f"{len(tiles)} tiles in the last step\n{table}", flush=True)
            profiler = None
        history.add(parts | seen_parts)
        step += 1
        if step % 100 == 0 or step in (10, options.max_steps):
            history.report(step, waited=round(waited, 1), tiles=len(tiles))
    print(f"{options.family}: {step} steps", flush=True)
    return history.rows


def save(options: Options, model: VisionLanguageModel, heads: Heads) -> None:
    """The weights under the checkpoint's own names, in bfloat16, and the heads to go on with."""
    for name, module in ((options.family, model), (f"{options.family}-heads", heads)):
        weights = {k: t.detach().to("cpu", torch.bfloat16).contiguous() for k, t in
                   module.state_dict().items()}  # fmt: skip
        save_file(weights, options.out / f"{name}.safetensors")


def write(options: Options, result: dict[str, object]) -> None:
    path = options.out / f"{options.family}.json"
    path.write_text(json.dumps(result, ensure_ascii=False, indent=1, default=str), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="train one of the two models")
    parser.add_argument("family", choices=("internvl2", "xcomposer2"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tower", type=Path, help="what training.tower wrote")
    parser.add_argument("--start", type=Path, help="weights of this model to go on with")
    parser.add_argument("--heads", type=Path, help="and the heads beside them")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--tower-rate", type=float, default=1e-3)
    parser.add_argument("--listen", type=float, default=0.1)
    parser.add_argument("--num-dialogues", type=int, default=256)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print where some steps' time goes")
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--test-size", type=int, default=256)
    train(Options(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
