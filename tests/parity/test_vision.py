"""The vision models against their own reference code, through the real engine, in float32.

Alone, in company of texts, chunked inside a picture, from a cold and from a warm prefix cache.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from shuzhai import LLM
from shuzhai.engine.engine import Engine
from shuzhai.engine.request import ImageSpan, Request
from shuzhai.frontend.images import open_image, prepare_image
from tests.parity.test_internlm2 import GREEDY, SETTINGS, load, run
from tests.support.reference import BESIDE, LOGITS_TOLERANCE, OWN, VISION_TOLERANCE, Reference

FOLDERS = [OWN / "internvl2", BESIDE / "internlm-xcomposer2"]


@pytest.fixture(params=FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def reference(request: pytest.FixtureRequest) -> Reference:
    if not request.param.exists():
        pytest.skip("no reference data beside the checkout")
    return _read(request.param)


@cache
def _read(folder: Path) -> Reference:
    return Reference.read(folder)


def ids_of(case: dict[str, Any]) -> list[int]:
    return case.get("input_ids") or case["input_ids_with_minus1_for_image"]


def request_of(case: dict[str, Any], reference: Reference, engine: Engine, **more) -> Request:
    """The ids of a case with its pictures at their places."""
    ids, spans, at = ids_of(case), [], 0
    assert engine.model_config.vision is not None
    for entry in case["images"]:
        picture = open_image(reference.folder / entry["file"], "a picture")
        spec = engine.model_config.vision.image_spec
        image = prepare_image(picture, spec, case.get("max_num"))
        if "tiles_uint8_sha256" in entry:
            digest = hashlib.sha256(image.pixels.tobytes()).hexdigest()
            assert digest == entry["tiles_uint8_sha256"]
        start = ids.index(reference.image_id, at)
        at = start + image.num_tokens
        assert set(ids[start:at]) == {reference.image_id}
        spans.append(ImageSpan(start, at, image.digest, image.pixels))
    return Request(case["name"], tuple(ids), GREEDY, images=tuple(spans), **more)


@pytest.mark.parametrize("setting", SETTINGS)
def test_logits_and_greedy_continuations(reference: Reference, setting: str) -> None:
    options = dict(SETTINGS[setting])
    if setting == "chunked" and reference.image_id < 0:
        options["max_num_batched_tokens"] = 150  # its one picture has 1225 rows
    if setting == "tiny-pool":
        longest = max(len(ids_of(case)) for case in reference.cases)
        options["num_blocks"] = (longest + 24) // 16 + 1
    engine = load(reference.folder, **options)
    for case in reference.cases:
        asked = request_of(case, reference, engine, want_prompt_logits=True)
        tokens, parts = run(engine, [asked])[case["name"]]
        logits = torch.cat(parts)
        assert logits.argmax(-1).tolist() == case["argmax"]
        expected = reference.tensors[case["name"] + ".logits"]
        difference = (logits[case["logits_positions"]] - expected).abs().max().item()
        assert difference < LOGITS_TOLERANCE
        assert tokens == case["greedy_ids"]


@pytest.mark.parametrize("setting", ["whole", "chunked", "no-cache"])
def test_pictures_and_texts_in_one_batch_twice(reference: Reference, setting: str) -> None:
    """The second round finds the prompts, pictures included, in the prefix cache."""
    engine = load(reference.folder, **SETTINGS[setting])
    for turn in ("cold", "warm"):
        before = engine.stats().num_cached_prompt_tokens
        results = run(engine, [request_of(case, reference, engine) for case in reference.cases])
        for case in reference.cases:
            assert results[case["name"]][0] == case["greedy_ids"], (turn, case["name"])
    found = engine.stats().num_cached_prompt_tokens - before
    total = sum(len(ids_of(case)) - 17 for case in reference.cases)
    assert found == 0 if setting == "no-cache" else found > total


def test_vision_features(reference: Reference) -> None:
    engine = load(reference.folder)
    for case in reference.cases:
        images = request_of(case, reference, engine).images
        if not images:
            continue
        key = case.get("vision_key") or case["images"][0]["vision_key"]
        expected = reference.tensors[key]
        features = torch.cat([engine.vision_features(image.pixels) for image in images])
        assert features.shape == expected.flatten(0, -2).shape
        assert (features - expected.flatten(0, -2)).abs().max() < VISION_TOLERANCE


def messages_of(case: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The chat of a case as a user writes it: pictures stand where the reference has marks."""
    pictures = [{"type": "image", "image": folder / entry["file"]} for entry in case["images"]]
    questions = [question for question, _ in case["history_in"]]
    messages: list[dict[str, Any]] = []
    for i, question in enumerate([*questions, case.get("question") or case["query"]]):
        texts = re.split("<image>|<ImageHere>", question)
        if len(texts) == 1 and pictures:
            texts = ["", *texts]  # the reference puts a single picture in front by itself
        parts: list[dict[str, Any]] = []
        for text in texts:
            parts += [pictures.pop(0)] if parts else []
            parts.append({"type": "text", "text": text})
        messages.append({"role": "user", "content": parts})
        if i < len(questions):
            messages.append({"role": "assistant", "content": case["history_in"][i][1]})
    return messages


@pytest.mark.skipif(not BESIDE.exists(), reason="no reference data beside the checkout")
@pytest.mark.parametrize("name", ["internvl2", "internlm-xcomposer2"])
def test_prompts_and_answers_through_the_public_interface(name: str) -> None:
    reference = _read(BESIDE / name)
    for template in (None, "internlm-xcomposer2-demo"):
        cases = [c for c in reference.cases if (c.get("single_bos") is False) == bool(template)]
        if not cases:
            continue
        with LLM(reference.folder, dtype="float32", chat_template=template) as llm:
            for case in cases:
                prompt = llm.encode_chat(
                    messages_of(case, reference.folder), max_tiles=case.get("max_num")
                )
                assert prompt.text == case["prompt"]
                assert prompt.token_ids == ids_of(case)
                logits = llm.logits(prompt)[case["logits_positions"]]
                expected = reference.tensors[case["name"] + ".logits"]
                assert (logits - expected).abs().max() < LOGITS_TOLERANCE
                assert llm.generate(prompt, GREEDY).token_ids == case["greedy_ids"]
