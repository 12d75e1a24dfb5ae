"""Benchmark of pictures: preparing them, encoding them, and the time to the first token."""

from __future__ import annotations

import time

import numpy as np
from PIL import Image

from shuzhai.bench.driver import Driver
from shuzhai.bench.report import Report, median, milliseconds, percentile
from shuzhai.bench.work import Work
from shuzhai.engine.request import ImageSpan, Request
from shuzhai.frontend.images import prepare_image
from shuzhai.frontend.outputs import EncodedImage

# A system prompt, and a question.
WORDS_BEFORE, WORDS_AFTER = 64, 16
# Which dynamic tiling cuts into 12 tiles and a thumbnail.
LARGE_PICTURE = (1600, 1200)


def picture_latency(driver: Driver, work: Work, size: tuple[int, int], repeats: int) -> Report:
    """A picture that is new, and the same one again: the difference is what encoding takes.

    The engine must not keep prefixes: what it keeps is the picture's rows.
    """
    vision = driver.engine.model_config.vision
    assert vision is not None, "only models with a tower are asked"
    assert not driver.engine.config.enable_prefix_caching, "or nothing would be run again"
    prepared, new, again = [], [], []
    for seed in range(repeats + 1):
        picture = _noise(*size, seed)
        start = time.perf_counter()
        image = prepare_image(picture, vision.image_spec, None)
        prepared.append(time.perf_counter() - start)
        for times in (new, again):
            times.append(driver.run([_question(driver, image)]).first_token)
    num_tokens = WORDS_BEFORE + image.num_tokens + WORDS_AFTER
    encoded = [max(1e-9, first - second) for first, second in zip(new, again, strict=True)]
    encode_limit = work.encode_seconds(len(image.pixels))
    prefill_limit = work.prefill_seconds(num_tokens, image.num_tokens)
    rows, results = [], []
    for name, times, least in (
        ("prepare (host)", prepared, 0.0),
        ("encode", encoded, encode_limit),
        ("prefill, first token", again, prefill_limit),
        ("first token of a new picture", new, encode_limit + prefill_limit),
    ):
        middle, worst = median(times[1:]), percentile(times[1:], 0.99)  # the first one warms up
        limit, share = milliseconds(least) if least else "", f"{least / middle:.0%}"
        rows.append(
            (name, milliseconds(middle), milliseconds(worst), limit, share if least else "")
        )
        results.append({"what": name, "median_s": middle, "p99_s": worst, "limit_s": least})
    results[-1] |= {"tiles": len(image.pixels), "prompt_tokens": num_tokens}
    what = f"{size[0]}x{size[1]}, {len(image.pixels)} tiles, {num_tokens:,} tokens"
    return Report((what, "median", "p99", "limit", "share"), rows, results)


def _question(driver: Driver, image: EncodedImage) -> Request:
    end = WORDS_BEFORE + image.num_tokens
    ids = driver.random_ids(WORDS_BEFORE + WORDS_AFTER)
    prompt = [*ids[:WORDS_BEFORE], *[-1] * image.num_tokens, *ids[WORDS_BEFORE:]]
    span = ImageSpan(WORDS_BEFORE, end, image.digest, image.pixels)
    return driver.request(prompt, 1, (span,))


def _noise(width: int, height: int, seed: int) -> Image.Image:
    """Blotches with some grain, as a photograph has both."""
    generator = np.random.default_rng(seed)
    blotches = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    picture = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    picture = (picture + generator.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(picture)
