"""Both vision models on random checkpoints of many shapes, against a slow float64 oracle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from shuzhai import LLM, CheckpointError, InvalidRequestError, SamplingParams
from shuzhai.frontend.outputs import EncodedPrompt
from tests.support.reference import LOGITS_TOLERANCE, VISION_TOLERANCE
from tests.support.tiny import TinyShape, write_json
from tests.support.tiny_vision import (
    TinyInternVL2,
    TinyXComposer2,
    write_internvl2,
    write_xcomposer2,
)
from tests.support.vision_oracle import Oracle

CLIP = "vit.vision_tower.vision_model."
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@dataclass(frozen=True)
class Case:
    """A checkpoint to write, and how to run it."""

    shape: TinyInternVL2 | TinyXComposer2
    files: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        if isinstance(self.shape, TinyInternVL2):
            return write_internvl2(folder, self.shape, **self.files)
        return write_xcomposer2(folder, self.shape, **self.files)


MHA = TinyShape(48, 64, 1, 3, 3)
DEEP = TinyShape(64, 96, 4, 8, 2)
ONE_KV_HEAD = TinyShape(32, 40, 2, 4, 1, bias=True)
CASES = {
    "internvl": Case(TinyInternVL2()),
    "internvl-56px-deep-3-shards": Case(
        TinyInternVL2(DEEP, 56, 48, 80, num_layers=4, num_heads=3), {"seed": 1, "shards": 3}
    ),
    "internvl-112px-mha-bin": Case(
        TinyInternVL2(MHA, 112, 64, 72, num_layers=1, num_heads=2), {"seed": 2, "as_bin": True}
    ),
    "internvl-56px-bias-3-bins-chunked": Case(
        TinyInternVL2(ONE_KV_HEAD, 56, 16, 64, num_layers=3, num_heads=1, max_tiles=6),
        {"seed": 3, "shards": 3, "as_bin": True},
        {"max_num_batched_tokens": 7},
    ),
    "internvl-28px-no-thumbnail-small-blocks": Case(
        TinyInternVL2(use_thumbnail=False), {"seed": 4}, {"block_size": 4}
    ),
    "xcomposer": Case(TinyXComposer2()),
    "xcomposer-ranks-unused-tensors-3-shards": Case(
        TinyXComposer2(DEEP, 70, 128, 80, num_layers=3, ranks=(4, 16, 6, 2, 12), unused=True),
        {"seed": 6, "shards": 3},
    ),
    "xcomposer-84px-mha-bin-chunked": Case(
        TinyXComposer2(MHA, 84, 64, 256, num_layers=1, ranks=(3, 1, 5, 5, 7)),
        {"seed": 7, "as_bin": True},
        {"max_num_batched_tokens": 10},
    ),
    "xcomposer-14px-bias-no-cache": Case(
        TinyXComposer2(ONE_KV_HEAD, 14, 192, 48), {"seed": 8}, {"enable_prefix_caching": False}
    ),
}


@dataclass(frozen=True)
class Model:
    llm: LLM
    oracle: Oracle

    def rows(self, prompt: EncodedPrompt) -> Tensor | None:
        rows = [self.oracle.vision_rows(image.pixels).flatten(0, 1) for image in prompt.images]
        return torch.cat(rows) if rows else None

    def check(self, prompt: EncodedPrompt) -> list[int]:
        """Logits at every position and a greedy answer; the ids of the answer."""
        rows = self.rows(prompt)
        assert prompt.token_ids.count(self.oracle.image_token) == (0 if rows is None else len(rows))
        logits = self.llm.logits(prompt)
        expected = self.oracle.logits(prompt.token_ids, rows)
        assert (logits - expected).abs().max() < LOGITS_TOLERANCE
        answer = self.llm.generate(prompt, GREEDY).token_ids
        self.check_greedy(prompt, answer)
        return answer

    def check_greedy(self, prompt: EncodedPrompt, answer: list[int]) -> None:
        ids = prompt.token_ids + answer[:-1]
        logits = self.oracle.logits(ids, self.rows(prompt))[-len(answer) :]
        assert logits.argmax(-1).tolist() == answer


def load(folder: Path, **options: Any) -> Model:
    return Model(LLM(folder, device="cpu", dtype="float32", **options), Oracle(folder))


@pytest.fixture(params=CASES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    case = CASES[request.param]
    return load(case.write(tmp_path / "model"), **case.options)


@pytest.fixture(scope="module")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_internvl2(tmp_path_factory.mktemp("internvl"), seed=10))


@pytest.fixture(scope="module")
def xcomposer(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_xcomposer2(tmp_path_factory.mktemp("xcomposer"), seed=11))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Large smooth blotches: their colours survive any resizing."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def turn(role: str, *parts: str | Image.Image) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": role, "content": content}


CHATS = {
    "one picture": [turn("user", picture(60, 60, 1), "What is this?")],
    "three pictures in a turn, no system prompt": [
        {"role": "system", "content": ""},
        turn("user", picture(200, 90, 2), picture(33, 80, 3), "and", picture(50, 40, 4), "?"),
    ],
    "pictures in two turns": [
        turn("user", "Look: ", picture(90, 200, 5), "What is this?"),
        {"role": "assistant", "content": "A test."},
        turn("user", picture(300, 100, 6), "And this? 请再说一遍"),
    ],
    "no picture": [{"role": "user", "content": "Hello!"}],
}


def test_chats(model: Model) -> None:
    for messages in CHATS.values():
        model.check(model.llm.encode_chat(messages))


@pytest.mark.parametrize("size", [(60, 60), (30, 100), (400, 90)])
def test_vision_features(model: Model, size: tuple[int, int]) -> None:
    image = picture(*size)
    prompt = model.llm.encode_chat([turn("user", image)])
    expected = model.rows(prompt)
    features = model.llm.vision_features(image)
    assert (features.view_as(expected) - expected).abs().max() < VISION_TOLERANCE


@pytest.mark.parametrize(("use_thumbnail", "num_tiles"), [(True, 19), (False, 18)])
def test_18_tiles_in_one_picture(tmp_path: Path, use_thumbnail: bool, num_tiles: int) -> None:
    shape = TinyInternVL2(tile_size=56, max_tiles=18, use_thumbnail=use_thumbnail)
    model = load(write_internvl2(tmp_path, shape, seed=12))
    prompt = model.llm.encode_chat([turn("user", picture(1200, 600), "What is this?")])
    assert [len(image.pixels) for image in prompt.images] == [num_tiles]
    model.check(prompt)


def test_max_tiles_of_a_call(internvl: Model) -> None:
    for max_tiles, num_tiles in ((1, 1), (4, 3), (18, 19)):
        messages = [turn("user", picture(1200, 600), "What is this?")]
        prompt = internvl.llm.encode_chat(messages, max_tiles=max_tiles)
        assert [len(image.pixels) for image in prompt.images] == [num_tiles]
        internvl.check(prompt)


@pytest.mark.parametrize("kind", ["internvl", "xcomposer"])
def test_pictures_of_one_size_are_not_mixed_up(kind: str, request: pytest.FixtureRequest) -> None:
    """The prompts' ids are equal, so only the pictures tell their prefixes apart."""
    model: Model = request.getfixturevalue(kind)
    one, other = (
        model.llm.encode_chat([turn("user", picture(200, 160, seed), "What is this?" * 3)])
        for seed in (20, 21)
    )
    assert one.token_ids == other.token_ids
    assert one.images[0].digest != other.images[0].digest
    first, second = (model.oracle.logits(p.token_ids, model.rows(p)) for p in (one, other))
    assert (first - second)[-1].abs().max() > 100 * LOGITS_TOLERANCE
    answers = [model.check(prompt) for prompt in (one, other, one, other)]
    assert answers[:2] == answers[2:]
    batch = model.llm.generate([other, one, [1, 5, 9], other], GREEDY)
    assert [batch[i].token_ids for i in (0, 1, 3)] == [answers[1], answers[0], answers[1]]
    text = EncodedPrompt("", [1, 5, 9])
    model.check_greedy(text, batch[2].token_ids)


@pytest.mark.parametrize("kind", ["internvl", "xcomposer"])
def test_the_pictures_of_a_prompt_can_be_put_behind_other_words(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model: Model = request.getfixturevalue(kind)
    prompt = model.llm.encode_chat([turn("user", picture(200, 60), "What is this?")])
    images = [i for i in prompt.token_ids if i == model.oracle.image_token]
    model.check(replace(prompt, token_ids=[1, 40, 41, *images, 42]))
    model.check(replace(prompt, token_ids=[*images, 42]))
    model.check(replace(prompt, token_ids=[1, *images]))


@pytest.mark.parametrize("kind", ["internvl", "xcomposer"])
def test_positions_that_do_not_agree_with_the_pictures(
    kind: str, request: pytest.FixtureRequest
) -> None:
    llm: LLM = request.getfixturevalue(kind).llm
    prompt = llm.encode_chat([turn("user", picture(200, 60), "What is this?")])
    token = request.getfixturevalue(kind).oracle.image_token
    count = prompt.token_ids.count(token)
    for ids in ([1, 42], [1, *[token] * (count - 1), 42], [token, 42, *[token] * (count - 1)]):
        with pytest.raises(InvalidRequestError):
            llm.logits(replace(prompt, token_ids=ids))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        LLM(folder, device="cpu", dtype="float32")


WRITERS = {"internvl": write_internvl2, "xcomposer": write_xcomposer2}
TENSORS = [
    ("internvl", "language_model.model.layers.1.attention.wo.weight"),
    ("internvl", "language_model.output.weight"),
    ("internvl", "mlp1.0.bias"),
    ("internvl", "mlp1.1.weight"),
    ("internvl", "vision_model.embeddings.class_embedding"),
    ("internvl", "vision_model.embeddings.patch_embedding.bias"),
    ("internvl", "vision_model.embeddings.position_embedding"),
    ("internvl", "vision_model.encoder.layers.1.attn.qkv.weight"),
    ("internvl", "vision_model.encoder.layers.1.ls2"),
    ("xcomposer", "model.layers.0.attention.wqkv.Plora_A.weight"),
    ("xcomposer", "model.layers.1.attention.wo.Plora_B.weight"),
    ("xcomposer", "model.layers.1.feed_forward.w3.Plora_B.weight"),
    ("xcomposer", CLIP + "embeddings.class_embedding"),
    ("xcomposer", CLIP + "embeddings.patch_embedding.weight"),
    ("xcomposer", CLIP + "embeddings.position_embedding.weight"),
    ("xcomposer", CLIP + "pre_layrnorm.weight"),
    ("xcomposer", CLIP + "encoder.layers.0.self_attn.k_proj.bias"),
    ("xcomposer", CLIP + "encoder.layers.1.mlp.fc2.weight"),
    ("xcomposer", "vision_proj.0.weight"),
    ("xcomposer", "vision_proj.2.bias"),
]


@pytest.mark.parametrize(("kind", "name"), TENSORS)
def test_a_missing_tensor_is_named(kind: str, name: str, tmp_path: Path) -> None:
    folder = WRITERS[kind](tmp_path)
    rewrite(folder, lambda tensors: tensors.pop(name))
    refused(folder, name.replace(".", r"\."))


@pytest.mark.parametrize(("kind", "name"), TENSORS)
def test_a_tensor_of_a_wrong_shape_is_named(kind: str, name: str, tmp_path: Path) -> None:
    folder = WRITERS[kind](tmp_path)
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name][..., :-1].clone()}))
    refused(folder, name.removesuffix("A.weight").removesuffix("B.weight").replace(".", r"\."))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("internvl", "language_model.model.layers.0.attention.wqkv.weight"),
        ("internvl", "vision_model.embeddings.patch_embedding.weight"),
        ("internvl", "vision_model.embeddings.position_embedding"),
        ("xcomposer", "model.layers.0.attention.wqkv.weight"),
        ("xcomposer", "model.layers.1.attention.wqkv.Plora_B.weight"),
        ("xcomposer", CLIP + "embeddings.patch_embedding.weight"),
    ],
)
def test_a_transposed_tensor_is_named(kind: str, name: str, tmp_path: Path) -> None:
    """It has as many numbers as it should, in another order."""
    folder = WRITERS[kind](tmp_path)
    axes = (0, 1) if "layers" in name else (1, -1)
    rewrite(folder, lambda t: t.update({name: t[name].transpose(*axes).contiguous()}))
    refused(folder, name.replace(".", r"\."))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("internvl", "vision_model.encoder.layers.0.attn.q_norm.weight"),
        ("internvl", "vision_model.encoder.layers.2.ls1"),
        ("internvl", "model.norm.weight"),
        ("internvl", "mlp1.2.weight"),
        ("xcomposer", "model.layers.0.attention.wqkv.Plora_C.weight"),
        ("xcomposer", "model.layers.2.attention.wo.Plora_A.weight"),
        ("xcomposer", CLIP + "embeddings.patch_embedding.bias"),
        ("xcomposer", "vision_proj.1.weight"),
        ("xcomposer", "vit.text_model.weight"),
    ],
)
def test_a_left_over_tensor_is_named(kind: str, name: str, tmp_path: Path) -> None:
    folder = WRITERS[kind](tmp_path)
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(2)}))
    refused(folder, name.replace(".", r"\."))


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("internvl", "select_layer", -2),
        ("internvl", "ps_version", "v1"),
        ("internvl", "downsample_ratio", 0.3),
        ("internvl", "use_llm_lora", 16),
        ("internvl", "use_backbone_lora", 16),
        ("internvl", "max_dynamic_patch", 0),
        ("internvl", "min_dynamic_patch", 13),
        ("internvl", "something_new", 3),
        ("internvl", "vision_config", None),
        ("internvl", "llm_config", None),
        ("internvl", "vision_config.norm_type", "rms_norm"),
        ("internvl", "vision_config.qk_normalization", True),
        ("internvl", "vision_config.hidden_act", "quick_gelu"),
        ("internvl", "vision_config.num_channels", 1),
        ("internvl", "vision_config.num_attention_heads", 0),
        ("internvl", "vision_config.patch_size", 0),
        ("internvl", "vision_config.image_size", 30),
        ("internvl", "vision_config.layer_norm_eps", "small"),
        ("internvl", "vision_config.something_new", 3),
        ("internvl", "llm_config.architectures", ["OtherForCausalLM"]),
        ("internvl", "llm_config.hidden_act", "gelu"),
        ("internvl", "llm_config.something_new", 3),
        ("xcomposer", "img_size", 0),
        ("xcomposer", "hidden_act", "gelu"),
        ("xcomposer", "something_new", 3),
    ],
)
def test_a_config_that_is_not_implemented_is_named(
    kind: str, key: str, value: object, tmp_path: Path
) -> None:
    folder = WRITERS[kind](tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    *outer, last = key.split(".")
    (config[outer[0]] if outer else config)[last] = value
    write_json(path, config)
    refused(folder, last)


@pytest.mark.parametrize(
    ("write", "name", "key", "start"),
    [
        (write_xcomposer2, f"{CLIP}embeddings.position_embedding.weight", "img_size", 56),
        (write_internvl2, "vision_model.embeddings.position_embedding", "force_image_size", 28),
    ],
)
def test_position_embeddings_are_stretched_to_the_pictures(
    write: Callable, name: str, key: str, start: int, tmp_path: Path
) -> None:
    """A tower for pictures of 84 pixels with embeddings for fewer, and the same with its own."""
    small = write(tmp_path / "small", **{key: 84})
    shutil.copytree(small, tmp_path / "whole")
    tensors = load_file(small / "model.safetensors")
    shape, side = tensors[name].shape, start // 14
    first, grid = tensors[name].view(-1, shape[-1]).split([1, side * side])
    grid = grid.t().view(1, -1, side, side)
    grid = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    whole = torch.cat([first, grid.flatten(2)[0].t()])
    tensors[name] = whole.view(*shape[:-2], 37, shape[-1]).contiguous()
    save_file(tensors, tmp_path / "whole" / "model.safetensors")
    config = json.loads((tmp_path / "whole" / "config.json").read_text(encoding="utf-8"))
    if "vision_config" in config:
        config["vision_config"]["image_size"] = 84
    write_json(tmp_path / "whole" / "config.json", config)
    picture = Image.effect_noise((84, 84), 80).convert("RGB")
    features = []
    for folder in (small, tmp_path / "whole"):
        with LLM(folder, dtype="float32") as llm:
            features.append(llm.vision_features(picture, max_tiles=1))
    torch.testing.assert_close(features[0], features[1], atol=1e-6, rtol=0)
