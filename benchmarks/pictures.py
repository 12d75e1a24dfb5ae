"""Time to the first token of an answer about a picture, part by part.

    python -m benchmarks.pictures --random-weights internvl2-2b
    python -m benchmarks.pictures --random-weights internlm-xcomposer2-vl-1.8b

Prints a card, one table of medians and, last, one line of JSON. The parts are timed by themselves:

    decode   the file (JPEG) -> RGB            tile     RGB -> tiles of uint8
    encode   tiles -> rows of the decoder      prefill  rows and words -> first token

"first" is the whole way with a picture that is new to the engine, and not the sum of the parts.
Encoding and prefill are matrix products: their limit is the rate of a large one of float32 or
bfloat16, whichever is higher, measured in this run.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from PIL import Image

from shuzhai.bench.machine import Limits, device_name, measure_limits, median_seconds
from shuzhai.bench.work import encode_flops, prefill_flops
from shuzhai.config import EngineConfig, ImageSpec, ModelConfig
from shuzhai.engine.engine import Engine
from shuzhai.engine.request import ImageSpan, Request, SamplingParams
from shuzhai.frontend.images import open_image, prepare_image
from shuzhai.frontend.outputs import EncodedImage
from shuzhai.hub.shapes import SHAPES

WORDS_BEFORE, WORDS_AFTER = 64, 16  # a system prompt, and a question
# Pictures that dynamic tiling cuts into so many tiles, the thumbnail included.
SIZES = {1: (500, 500), 7: (1536, 1024), 13: (1600, 1200)}
VISION_SHAPES = sorted(name for name, model in SHAPES.items() if model.vision)


@dataclass(frozen=True)
class Result:
    """A row of the table: seconds, and the limits of the two parts that have one."""

    num_tiles: int
    num_tokens: int
    decode_s: float
    tile_s: float
    encode_s: float
    prefill_s: float
    first_s: float
    encode_limit_s: float
    prefill_limit_s: float

    @property
    def encode_share(self) -> float:
        return self.encode_limit_s / self.encode_s

    @property
    def prefill_share(self) -> float:
        return self.prefill_limit_s / self.prefill_s

    @property
    def first_share(self) -> float:
        return (self.encode_limit_s + self.prefill_limit_s) / self.first_s

    def line(self) -> str:
        return (
            f"{self.num_tiles:>5}{self.num_tokens:>8}{self.decode_s:>9.3f}{self.tile_s:>9.3f}"
            f"{self.encode_s:>9.2f}{self.encode_share:>7.0%}"
            f"{self.prefill_s:>9.2f}{self.prefill_share:>7.0%}"
            f"{self.first_s:>9.2f}{self.first_share:>7.0%}"
        )

    def record(self) -> dict[str, float]:
        return asdict(self) | {
            "encode_share": self.encode_share,
            "prefill_share": self.prefill_share,
            "first_share": self.first_share,
        }


def jpeg(width: int, height: int, seed: int) -> bytes:
    """Blotches with some grain, as a photograph has both."""
    generator = np.random.default_rng(seed)
    blotches = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    picture = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    picture = (picture + generator.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    return file.getvalue()


class Bench:
    """One engine, timed at pictures of some sizes."""

    def __init__(self, engine: Engine, limits: Limits, repeats: int) -> None:
        vision = engine.model_config.vision
        assert vision is not None, "VISION_SHAPES have a tower"
        self._engine = engine
        self.spec: ImageSpec = vision.image_spec
        self._limits = limits
        self._repeats = repeats
        self._count = 0

    def _first_token(self, image: EncodedImage) -> None:
        """Run a chat about the picture until its first token."""
        self._count += 1
        end = WORDS_BEFORE + image.num_tokens
        ids = [*range(5, 5 + WORDS_BEFORE), *[-1] * image.num_tokens, *range(9, 9 + WORDS_AFTER)]
        request = Request(
            str(self._count),
            tuple(ids),
            SamplingParams(temperature=0, max_tokens=1),
            images=(ImageSpan(WORDS_BEFORE, end, image.digest, image.pixels),),
        )
        self._engine.check(request)
        self._engine.add(request)
        while self._engine.has_work:
            self._engine.step()

    def _encode(self, file: bytes) -> EncodedImage:
        return prepare_image(open_image(file, "picture"), self.spec, None)

    def _first_tokens(self, files: list[bytes]) -> float:
        """The median of the whole way, over files that the engine has not seen."""
        times = []
        for file in files:
            start = time.perf_counter()
            self._first_token(self._encode(file))
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def measure(self, size: tuple[int, int]) -> Result:
        files = [jpeg(*size, seed) for seed in range(self._repeats + 1)]
        picture = open_image(files[0], "picture")
        image = self._encode(files[0])
        model, num_tiles = self._engine.model_config, len(image.pixels)
        num_tokens = WORDS_BEFORE + image.num_tokens + WORDS_AFTER

        def median(call: Callable[[], object]) -> float:
            return median_seconds(call, self._repeats)

        return Result(
            num_tiles=num_tiles,
            num_tokens=num_tokens,
            decode_s=median(lambda: open_image(files[0], "picture")),
            tile_s=median(lambda: prepare_image(picture, self.spec, None)),
            encode_s=median(lambda: self._engine.vision_features(image.pixels)),
            # The first call, which is not counted, leaves the picture's rows with the engine.
            prefill_s=median(lambda: self._first_token(image)),
            first_s=self._first_tokens(files[1:]),
            encode_limit_s=encode_flops(model, num_tiles) / self._limits.flops_per_s,
            prefill_limit_s=prefill_flops(model, num_tokens, image.num_tokens)
            / self._limits.flops_per_s,
        )


def load(args: argparse.Namespace) -> Engine:
    model = SHAPES[args.random_weights]
    assert model.vision is not None, "VISION_SHAPES have a tower"
    if args.layers is not None:
        model = ModelConfig(
            replace(model.decoder, num_layers=args.layers),
            replace(model.vision, num_layers=args.layers),
        )
    most_tiles = 1 if model.vision.max_tiles == 1 else max(args.tiles)
    tokens = WORDS_BEFORE + most_tiles * model.vision.tokens_per_tile + WORDS_AFTER + 1
    config = EngineConfig(
        device="cpu", dtype=args.dtype, max_model_len=tokens, enable_prefix_caching=False
    )
    return Engine.random(model, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--random-weights", choices=VISION_SHAPES, default="internvl2-2b")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
    parser.add_argument(
        "--tiles", type=int, nargs="+", choices=sorted(SIZES), default=sorted(SIZES),
        help="of a picture, for models that tile",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, help="run the first so many of each stack only")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    device = torch.device("cpu")
    limits = measure_limits(device, torch.float32)
    engine = load(args)
    bench = Bench(engine, limits, args.repeats)
    cut = "" if args.layers is None else f", cut to {args.layers} layers"
    name = f"random {args.random_weights}{cut}"
    print(f"model    {name}, {args.dtype}")
    print(f"memory   {engine.plan.line()}")
    print(f"machine  {device_name(device)}\nlimits   {limits.line()}\n")
    sizes = [SIZES[n] for n in args.tiles] if bench.spec.max_tiles > 1 else [SIZES[13]]
    results = [bench.measure(size) for size in sizes]
    print(
        f"{'tiles':>5}{'tokens':>8}{'decode':>9}{'tile':>9}{'encode':>9}{'share':>7}"
        f"{'prefill':>9}{'share':>7}{'first':>9}{'share':>7}     (seconds)"
    )
    for result in results:
        print(result.line())
    record = {f"{r.num_tiles} tiles": r.record() for r in results}
    print(json.dumps({"model": name, "dtype": args.dtype, **record}))


if __name__ == "__main__":
    main()
