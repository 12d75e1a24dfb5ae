"""Pictures in the engine: room, order, failures, and what may share what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from shuzhai import InvalidRequestError, MemoryBudgetError
from shuzhai.engine.engine import Engine
from shuzhai.engine.picture_pool import PicturePool
from shuzhai.engine.request import FinishReason, ImageSpan, Request, SamplingParams
from shuzhai.engine.runner import Runner
from shuzhai.engine.sequence import Sequence
from shuzhai.errors import OverloadedError, ShuzhaiError
from shuzhai.step import StepInput
from tests.engine.test_engine import all_free, finish, load, tokens_of
from tests.support.tiny_vision import TinyInternVL2, write_internvl2, write_xcomposer2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of 56 pixels, 4 tokens each."""
    return write_internvl2(tmp_path_factory.mktemp("vision"), TinyInternVL2(tile_size=56))


def span(start: int, tiles: int, seed: int = 0) -> ImageSpan:
    pixels = np.random.default_rng(seed).integers(0, 256, (tiles, 56, 56, 3), np.uint8)
    return ImageSpan(start, start + 4 * tiles, f"{seed} {tiles}".encode(), pixels)


def asked(name: str, *images: ImageSpan, length: int = 80, **more: object) -> Request:
    ids = [(7 * i + 3 * len(name)) % 300 + 10 for i in range(length)]
    for image in images:
        ids[image.start : image.end] = [-1] * (image.end - image.start)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    return Request(name, tuple(ids), params, images=images, **more)


def answers(engine: Engine, *requests: Request) -> dict[str, list[int]]:
    for request in requests:
        engine.check(request)
        engine.add(request)
    return {name: tokens_of(outputs) for name, outputs in finish(engine).items()}


def picture_room(engine: Engine) -> int:
    return engine._scheduler.pictures.num_free_rows


def watch(engine: Engine, monkeypatch: pytest.MonkeyPatch, poison: int | None = None) -> list[int]:
    """Sizes of the encoder's batches from now on; those with a pixel of `poison` fail."""
    encode, batches = Runner.encode, []

    def watched(self: Runner, parts: list[np.ndarray]) -> Tensor:
        pixels = np.concatenate(parts)
        batches.append(len(pixels))
        if poison is not None and (pixels == poison).all(axis=(1, 2, 3)).any():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return encode(self, parts)

    monkeypatch.setattr(Runner, "encode", watched)
    return batches


def test_the_picture_matters_and_so_does_its_place(folder: Path) -> None:
    engine = load(folder)
    white = ImageSpan(10, 22, b"white", np.full((3, 56, 56, 3), 255, np.uint8))
    images = span(10, 3), white, span(30, 3), span(10, 3)
    results = [answers(engine, asked("a", image))["a"] for image in images]
    assert results[0] == results[3]
    assert len({tuple(r) for r in results}) == 3


def test_a_picture_is_encoded_once_for_all_who_send_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folder, enable_prefix_caching=False)
    batches = watch(engine, monkeypatch)
    together = answers(engine, *(asked(name, span(10, 3)) for name in ("a", "b", "c")))
    assert sum(batches) == 3
    later = answers(engine, asked("a", span(10, 3)), asked("dd", span(20, 3)))
    assert sum(batches) == 3
    assert later["a"] == together["a"] == together["b"]
    answers(engine, asked("a", span(10, 3), cache_salt=b"another tenant"))
    assert sum(batches) == 6
    assert all_free(engine)


def test_a_picture_in_the_prefix_cache_is_not_encoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folder)
    cold = answers(engine, asked("a", span(10, 3)), asked("bb", span(20, 2, seed=1)))
    engine._scheduler.pictures = PicturePool(1000)
    batches = watch(engine, monkeypatch)
    assert answers(engine, asked("a", span(10, 3)), asked("bb", span(20, 2, seed=1))) == cold
    assert batches == []


def test_other_streams_go_on_while_a_picture_is_encoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step encodes no more than the planned batch, and everybody else moves in it."""
    monkeypatch.setattr("shuzhai.engine.workspace._TILE_BATCH_BYTES", 1)
    engine = load(folder)
    assert engine.plan.tiles_per_batch == 1
    batches = watch(engine, monkeypatch)
    engine.add(asked("text"))
    engine.step()
    engine.add(asked("picture", span(4, 5)))
    seen = [output.request_id for _ in range(4) for output in engine.step()]
    assert seen.count("text") == 4
    finish(engine)
    assert batches == [1] * 5


def test_pictures_wait_for_room(folder: Path) -> None:
    """Room for one picture: the others wait for it, and all are answered as if alone."""
    requests = [asked("x" * n, span(8, 4, n), span(40, 2, n + 9)) for n in range(1, 5)]
    expected = {}
    for request in requests:
        expected |= answers(load(folder), request)
    engine = load(folder, max_num_batched_tokens=24)
    engine._scheduler.pictures = PicturePool(16)
    assert answers(engine, *requests) == expected
    assert picture_room(engine) == 16
    assert all_free(engine)


def test_small_pictures_do_not_overtake_a_large_one_for_ever(folder: Path) -> None:
    engine = load(folder, max_num_batched_tokens=2000)
    engine._scheduler.pictures = PicturePool(24)
    engine.add(asked("first", span(4, 3, seed=99)))
    engine.step()
    engine.add(asked("large", span(4, 6)))
    seen: list[str] = []
    for i in range(60):
        engine.add(asked(f"small {i}", span(4, 3, seed=i)))
        seen += [output.request_id for output in engine.step() if output.finish_reason]
        if "large" in seen:
            break
    assert "large" in seen


@pytest.mark.parametrize("steps", range(8))
def test_leaving_at_any_moment_gives_everything_back(folder: Path, steps: int) -> None:
    engine = load(folder, max_num_batched_tokens=16)
    room = picture_room(engine)
    for name in ("a", "bb", "ccc"):
        engine.add(asked(name, span(10, 5, seed=len(name)), span(40, 2)))
    for _ in range(steps):
        engine.step()
    for name in ("a", "bb", "ccc"):
        engine.abort(name)
    assert all_free(engine)
    assert picture_room(engine) == room
    engine._scheduler.pictures.check()


def test_a_picture_that_exhausts_the_memory_fails_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folder)
    good = answers(engine, asked("good", span(10, 2), cache_salt=b"1"))["good"]
    watch(engine, monkeypatch, poison=66)
    black = ImageSpan(10, 14, b"black", np.full((1, 56, 56, 3), 66, np.uint8))
    for request in (
        asked("good", span(10, 2), cache_salt=b"2"),
        asked("bad", black),
        asked("worse", black),
        asked("text"),
    ):
        engine.add(request)
    outputs = finish(engine)
    assert tokens_of(outputs["good"]) == good
    assert len(tokens_of(outputs["text"])) == 6
    for name in ("bad", "worse"):
        assert outputs[name][-1].finish_reason is FinishReason.ERROR
        assert isinstance(outputs[name][-1].error, OverloadedError)
    assert all_free(engine)
    assert answers(engine, asked("good", span(10, 2), cache_salt=b"3"))["good"] == good


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (replace(asked("a", span(78, 3)), token_ids=(5,) * 80), "stands for pictures"),
        (asked("a", span(10, 3), span(20, 1)), "positions"),
        (asked("a", span(20, 3), span(10, 1)), "positions"),
        (asked("a", ImageSpan(0, 5, b"", np.zeros((1, 56, 56, 3), np.uint8))), "positions"),
        (asked("a", ImageSpan(0, 4, b"", np.zeros((1, 28, 28, 3), np.uint8))), "size"),
        (Request("a", (1, -1, 2), SamplingParams(max_tokens=1)), "token ids"),
        (
            Request("a", (-1,) * 9, SamplingParams(max_tokens=1), images=(span(1, 2),)),
            "-1 stands for pictures",
        ),
        (
            Request(
                "a",
                (-1,) * 9,
                SamplingParams(max_tokens=1, prompt_logprobs=1),
                images=(span(1, 2),),
            ),
            "prompt_logprobs",
        ),
        (asked("a", span(10, 300), length=1300), "fewer tiles"),
    ],
)
def test_pictures_that_cannot_be_are_refused(folder: Path, request_: Request, named: str) -> None:
    engine = load(folder)
    engine._runner = replace(engine._runner, plan=replace(engine.plan, picture_rows=1000))
    with pytest.raises(InvalidRequestError, match=named):
        engine.check(request_)


def test_a_text_model_refuses_pictures(tiny_folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match="text only"):
        load(tiny_folder).check(asked("a", span(10, 3)))


def test_a_digest_that_collides_with_another_size_is_another_picture(folder: Path) -> None:
    engine = load(folder)
    small, large = span(10, 1), span(10, 3)
    twin = ImageSpan(10, 14, large.digest, small.pixels)
    expected = answers(load(folder), asked("a", small))["a"]
    both = answers(engine, asked("bb", large), asked("a", twin))
    assert both["a"] == expected


def test_prefixes_with_pictures_share_only_what_is_equal() -> None:
    def hashes(*images: ImageSpan) -> list[bytes]:
        sequence = Sequence(asked("a", *images))
        return sequence.hashes(16, sequence.num_prompt_tokens // 16)

    plain, same = hashes(span(20, 3)), hashes(span(20, 3))
    assert plain == same
    assert plain[0] == hashes()[0]
    one_tile_less = ImageSpan(20, 28, span(20, 3).digest, span(20, 2).pixels)
    for other in (hashes(span(20, 3, seed=1)), hashes(span(24, 3)), hashes(one_tile_less)):
        assert plain[0] == other[0]
        assert not set(plain[1:]) & set(other[1:])


def test_the_plan_counts_the_tower(folder: Path) -> None:
    engine = load(folder, memory="1GiB")
    plan = engine.plan
    total = plan.weight_bytes + plan.kv_bytes + plan.vision_bytes + plan.workspace_bytes
    assert total <= 2**30
    assert plan.vision_bytes >= plan.picture_rows * 32 * 4
    assert "pictures" in plan.line()
    with pytest.raises(MemoryBudgetError, match="give memory="):
        load(folder, memory=plan.weight_bytes + plan.workspace_bytes + plan.vision_bytes // 2)


def test_steps_without_pictures_do_no_work_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decode steps of a model with partial LoRA: no rows are named, so nothing is computed."""
    engine = load(write_xcomposer2(tmp_path))
    steps: list[StepInput] = []
    run = Runner.run

    def noted(self: Runner, step: StepInput) -> Tensor:
        steps.append(step)
        return run(self, step)

    monkeypatch.setattr(Runner, "run", noted)
    pixels = np.zeros((1, 56, 56, 3), np.uint8)
    answers(engine, asked("a", ImageSpan(5, 21, b"", pixels)))
    with_rows = [step for step in steps if step.image_rows is not None]
    assert len(with_rows) < len(steps)
    assert sum(len(step.image_rows) for step in with_rows) == 16
    assert all(len(step.token_ids) > 1 for step in with_rows)


def test_features_are_those_of_whole_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = span(0, 7).pixels
    whole = load(folder).vision_features(pixels)
    monkeypatch.setattr("shuzhai.engine.workspace._TILE_BATCH_BYTES", 1)
    torch.testing.assert_close(load(folder).vision_features(pixels), whole, atol=1e-5, rtol=0)


def test_what_a_preempted_picture_had_is_kept_until_its_room_is_needed() -> None:
    pool = PicturePool(24)
    first, second = span(0, 4), span(0, 4, seed=1)
    picture = pool.hold(b"", first)
    assert picture is not None
    picture.advance(3)
    pool.release(picture)
    assert pool.next_tiles(9) == []
    assert pool.hold(b"", first) is picture
    assert pool.next_tiles(9) == [(picture, 3, 4)]
    pool.release(picture)
    assert pool.hold(b"", second) is not None
    assert pool.hold(b"", first) is None
    pool.check()


def test_who_waits_for_picture_room_takes_no_place(folder: Path) -> None:
    engine = load(folder, max_num_seqs=3)
    engine._scheduler.pictures = PicturePool(40)
    for i in range(6):
        engine.add(asked(f"picture {i}", span(4, 10, seed=i)))
    engine.step()
    assert engine.stats().num_running == 1
    engine.add(asked("text"))
    assert "text" in [output.request_id for output in engine.step()]
    assert len(finish(engine)) == 7


def test_prompts_that_run_keep_what_they_will_need(folder: Path) -> None:
    """A prompt that waits for its tiles has few blocks yet; nobody is let in on the others."""
    engine = load(folder, num_blocks=12, max_model_len=150)
    for name in ("a", "bb", "ccc"):
        engine.add(asked(name, span(4, 3, seed=len(name)), length=120))
    engine.step()
    assert engine.stats().num_running == 1
    assert len(finish(engine)) == 3
    assert engine.stats().num_preemptions == 0


def test_a_fault_of_the_tower_is_no_shortage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Runner, parts: list[np.ndarray]) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Runner, "encode", broken)
    engine = load(folder)
    engine.add(asked("a", span(4, 2)))
    error = finish(engine)["a"][-1].error
    assert type(error) is ShuzhaiError
    assert "shapes" not in str(error)


def test_pictures_alone_can_be_penalised(tmp_path: Path) -> None:
    engine = load(write_xcomposer2(tmp_path))
    params = SamplingParams(temperature=0, max_tokens=3, repetition_penalty=1.3, ignore_eos=True)
    image = ImageSpan(0, 16, b"", np.zeros((1, 56, 56, 3), np.uint8))
    assert len(answers(engine, Request("a", (-1,) * 16, params, images=(image,)))["a"]) == 3
