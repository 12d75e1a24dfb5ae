"""The planner as a function: what a model needs, and how a budget is shared."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuzhai.config import DecoderConfig, EngineConfig, ModelConfig
from shuzhai.engine.memory import (
    ElementSizes,
    MemoryNeed,
    memory_budget,
    memory_need,
    plan_memory,
    share_memory,
)
from shuzhai.errors import ConfigError, MemoryBudgetError

GIB = 2**30
SIZES = ElementSizes(540_000_000, 4, 4)


def decoder(length: int = 8192, layers: int = 30) -> ModelConfig:
    return ModelConfig(
        DecoderConfig(
            layout="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536,
            num_layers=layers, num_heads=9, num_kv_heads=3, head_dim=64, rms_norm_eps=1e-5,
            rope_theta=1e5, rope_scaling=None, max_position_embeddings=length,
            attention_bias=False, tie_word_embeddings=True, dtype="bfloat16", stop_ids=(2,),
        )
    )  # fmt: skip


configs = st.builds(
    EngineConfig,
    memory=st.sampled_from(["auto", "8GiB"]),
    max_model_len=st.sampled_from([None, 1, 100, 4096]),
    max_num_seqs=st.sampled_from([1, 64]),
    block_size=st.sampled_from([1, 16, 64]),
    num_blocks=st.sampled_from([None, 4096]),
)
lengths = st.sampled_from([4096, 8192, 32768])


@given(config=configs, length=lengths)
def test_a_need_is_what_the_planner_says(config: EngineConfig, length: int) -> None:
    def plan(memory: int) -> int:
        granted = dataclasses.replace(config, memory=memory)
        return plan_memory(decoder(length), granted, available_bytes=0, sizes=SIZES).total_bytes

    need = memory_need(decoder(length), config, SIZES)
    assert need.least_bytes <= need.good_bytes <= need.most_bytes
    for size in (need.least_bytes, need.good_bytes):
        assert plan(size) <= size
    with pytest.raises(MemoryBudgetError):
        plan(need.least_bytes - 1)
    if config.memory != "auto":
        assert plan(need.most_bytes) == plan(need.most_bytes + 10 * GIB) == need.most_bytes


def test_a_need_beyond_the_positions() -> None:
    with pytest.raises(ConfigError, match="beyond the model's 8192"):
        memory_need(decoder(), EngineConfig(max_model_len=9000), SIZES)


def test_blocks_that_do_not_hold_what_is_promised() -> None:
    config = EngineConfig(num_blocks=2, max_model_len=33, memory=GIB)
    for plan in (
        lambda: memory_need(decoder(), config, SIZES),
        lambda: plan_memory(decoder(), config, available_bytes=0, sizes=SIZES),
    ):
        with pytest.raises(ConfigError, match=r"hold 32 tokens .* promises 33: .* 3 or more"):
            plan()


def test_the_budget() -> None:
    assert memory_budget(EngineConfig(memory="2GiB"), 10 * GIB) == 2 * GIB
    assert memory_budget(EngineConfig(), 10 * GIB) == 8 * GIB


needs = st.tuples(*[st.integers(0, 1000)] * 3).map(lambda sizes: MemoryNeed(*sorted(sizes)))


@given(free=st.integers(0, 5000), own=needs, others=st.lists(needs, max_size=6))
def test_a_share_leaves_the_others_their_good_part(
    free: int, own: MemoryNeed, others: list[MemoryNeed]
) -> None:
    free = max(free, own.good_bytes)
    share = share_memory(free, own, others)
    assert own.good_bytes <= share <= min(free, own.most_bytes)
    room = free - own.good_bytes
    for other in others:
        if other.good_bytes <= room:
            room -= other.good_bytes
            assert share <= free - other.good_bytes
    assert share_memory(free, own, []) == min(free, own.most_bytes)


@given(free=st.integers(0, 9000), all_needs=st.lists(needs, min_size=1, max_size=6))
def test_models_that_fit_together_are_loaded_together(
    free: int, all_needs: list[MemoryNeed]
) -> None:
    """Whoever comes first leaves enough for all; and nothing is left over that one could use."""
    free = max(free, sum(need.good_bytes for need in all_needs))
    left = free
    for place, need in enumerate(all_needs):
        assert need.good_bytes <= left
        left -= share_memory(left, need, all_needs[place + 1 :])
    assert left >= 0
    wish = sum(need.most_bytes for need in all_needs)
    assert left <= max(len(all_needs), free - wish)


def test_the_demo_models_on_a_laptop_with_4_gib_free() -> None:
    text = memory_need(decoder(), EngineConfig(), SIZES)
    small = memory_need(decoder(4096, layers=6), EngineConfig(), ElementSizes(32_000_000, 4, 4))
    left = memory_budget(EngineConfig(), 4 * GIB)
    for own, others in ((text, [small, small]), (small, [small]), (small, [])):
        assert own.good_bytes <= left
        left -= share_memory(left, own, others)
    assert left >= 0
