"""The planner as a function: what a model needs, and how a budget is shared."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuzhai.config import (
    DecoderConfig,
    EngineConfig,
    LoraRanks,
    ModelConfig,
    VisionConfig,
    parse_bytes,
)
from shuzhai.engine.memory import (
    Change,
    ElementSizes,
    MemoryNeed,
    MemoryPlan,
    changes_that_fit,
    fit_plan,
    memory_budget,
    memory_need,
    plan_memory,
    share_memory,
    size_that_holds,
)
from shuzhai.engine.workspace import (
    context_estimate,
    graph_sizes,
    graph_tiles,
    tile_bytes,
    tiles_per_batch,
    with_recorded,
    workspace_of,
)
from shuzhai.errors import ConfigError, MemoryBudgetError

GIB = 2**30
SIZES = ElementSizes(540_000_000, 256, 4, smaller_kv=(("int8", 68), ("int4", 36)))
GPU_SIZES = dataclasses.replace(
    SIZES, kv_head_bytes=128, activation_bytes=2, is_gpu=True, context_bytes=context_estimate(None)
)


def decoder(length: int = 8192, layers: int = 30) -> ModelConfig:
    return ModelConfig(
        DecoderConfig(
            layout="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536,
            num_layers=layers, num_heads=9, num_kv_heads=3, head_dim=64, rms_norm_eps=1e-5,
            rope_theta=1e5, rope_scaling=None, max_position_embeddings=length,
            attention_bias=False, tie_word_embeddings=True, dtype="bfloat16", stop_ids=(2,),
        )
    )  # fmt: skip


def seeing(length: int = 8192) -> ModelConfig:
    """The same decoder with a tower and a partial LoRA."""
    tower = VisionConfig(
        family="internvl", hidden_size=256, intermediate_size=1024, num_layers=4, num_heads=4,
        image_size=448, patch_size=14, layer_norm_eps=1e-6, position_side=32,
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), downsample=2, max_tiles=12, use_thumbnail=True,
    )  # fmt: skip
    text = dataclasses.replace(decoder(length).decoder, lora=LoraRanks(8, 8, 8, 8, 8))
    return ModelConfig(text, tower)


configs = st.builds(
    EngineConfig,
    memory=st.sampled_from(["auto", "8GiB"]),
    max_model_len=st.sampled_from([None, 1, 100, 4096]),
    max_num_seqs=st.sampled_from([1, 64]),
    block_size=st.sampled_from([1, 16, 64]),
    num_blocks=st.sampled_from([None, 4096]),
).map(lambda config: config.resolved("cpu"))
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


def plan(model: ModelConfig, config: EngineConfig, memory: int, sizes: ElementSizes) -> MemoryPlan:
    given = dataclasses.replace(config, memory=memory)
    return plan_memory(model, given, available_bytes=0, sizes=sizes)


cases = st.tuples(
    st.sampled_from([decoder(), decoder(32768, layers=2), seeing()]),
    st.builds(
        EngineConfig,
        max_model_len=st.sampled_from([None, 1, 100, 4096]),
        max_num_seqs=st.sampled_from([None, 1, 7]),
        max_num_batched_tokens=st.sampled_from([None, 16, 300]),
        block_size=st.sampled_from([1, 16, 64]),
        num_blocks=st.sampled_from([None, None, 4096]),
    ),
    st.sampled_from([SIZES, GPU_SIZES]),
).map(lambda case: (case[0], case[1].resolved("cuda" if case[2].is_gpu else "cpu"), case[2]))


@settings(max_examples=50)
@given(case=cases, memory=st.integers(0, 6 * GIB), more=st.integers(0, 2 * GIB))
def test_a_plan_keeps_the_budget_and_more_memory_never_gives_less(
    case: tuple[ModelConfig, EngineConfig, ElementSizes], memory: int, more: int
) -> None:
    model, config, sizes = case
    memory = max(memory, memory_need(model, config, sizes).least_bytes)
    small, large = (plan(model, config, n, sizes) for n in (memory, memory + more))
    assert small.total_bytes <= memory
    assert small.num_blocks <= large.num_blocks
    assert small.max_model_len <= large.max_model_len
    assert small.max_model_len >= (config.max_model_len or 1)
    for tokens in (1, small.max_model_len):
        assert 1 <= small.num_chats(tokens) <= large.num_chats(tokens)
    assert small.num_chats(100) <= large.num_chats(100)
    assert small.num_chats(small.max_model_len + 1) == 0
    parts = small.workspace
    assert sizes.is_gpu == bool(parts.context_bytes and parts.graph_bytes and parts.margin_bytes)
    assert small.total_bytes == (
        small.weight_bytes + small.kv_bytes + small.vision_bytes + small.workspace_bytes
    )


def changed(config: EngineConfig, sizes: ElementSizes, change: Change) -> tuple:
    heads = dict(SIZES.smaller_kv).get(change.get("kv_dtype", ""), sizes.kv_head_bytes)
    return dataclasses.replace(config, **change), dataclasses.replace(sizes, kv_head_bytes=heads)


@settings(max_examples=50)
@given(case=cases, share=st.floats(0, 1, exclude_max=True))
def test_what_an_error_advises_does_fit(
    case: tuple[ModelConfig, EngineConfig, ElementSizes], share: float
) -> None:
    model, config, sizes = case
    budget = int(share * memory_need(model, config, sizes).least_bytes)
    with pytest.raises(MemoryBudgetError, match="give memory=") as caught:
        plan(model, config, budget, sizes)
    changes = changes_that_fit(model, config, budget, sizes)
    assert list(changes[0]) == ["memory"]
    for change in changes:
        words = " and ".join(f"{name}={value}" for name, value in change.items())
        assert words in str(caught.value)
        other, smaller = changed(dataclasses.replace(config, memory=budget), sizes, change)
        fits = plan_memory(model, other, available_bytes=0, sizes=smaller)
        assert fits.total_bytes <= fits.budget_bytes


def test_which_advice_is_given() -> None:
    config = EngineConfig(max_model_len=8192).resolved("cuda")
    need = memory_need(decoder(), config, GPU_SIZES).least_bytes
    kv_bytes = need - memory_need(decoder(), EngineConfig().resolved("cuda"), GPU_SIZES).least_bytes
    few = changes_that_fit(decoder(), config, need - kv_bytes // 4, GPU_SIZES)
    assert [list(change) for change in few] == [
        ["memory"], ["kv_dtype"], ["max_num_seqs"], ["max_num_batched_tokens"], ["max_model_len"],
    ]  # fmt: skip
    assert few[1] == {"kv_dtype": "int8"}
    assert few[4]["max_model_len"] in range(5000, 8192)
    together = changes_that_fit(decoder(), config, need - kv_bytes - GIB // 5, GPU_SIZES)
    assert len(together[-1]) > 1
    assert len(changes_that_fit(decoder(), config, GIB // 10, GPU_SIZES)) == 1


def test_the_table_has_every_part() -> None:
    text = plan(seeing(), EngineConfig().resolved("cuda"), 4 * GIB, GPU_SIZES).table()
    names = [
        "weights", "KV cache", "pictures", "activations", "sampling", "libraries", "CUDA graphs",
        "CUDA context", "margin", "budget",
    ]  # fmt: skip
    lines = text.splitlines()
    assert [name for name in names if any(line.startswith(name) for line in lines)] == names
    assert "Context: 65,536" not in text
    assert "Chats at a time: " in lines[-1]
    assert "2,048" in lines[-1]
    on_cpu = plan(decoder(), EngineConfig().resolved("cpu"), 4 * GIB, SIZES).table()
    assert not any(name in on_cpu for name in ("pictures", "CUDA", "margin"))


def test_graphs_fill_few_places_in_vain() -> None:
    for most in (1, 3, 5, 64, 100, 256, 1000):
        sizes = [s.num_seqs for s in graph_sizes(most, 4096) if not s.num_tokens]
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == min(most, 512)
        assert all(b - a <= max(8, a / 4) for a, b in pairwise(sizes))


@given(st.integers(0, 2**45))
def test_a_size_that_is_advised_is_enough(num_bytes: int) -> None:
    assert num_bytes <= parse_bytes(size_that_holds(num_bytes)) <= num_bytes + 2**24


def test_batches_of_tiles_that_are_recorded() -> None:
    assert [list(graph_tiles(n)) for n in (0, 1, 3)] == [[], [1], [1, 2, 3]]
    assert graph_tiles(7)[-1] == 7
    assert graph_tiles(64)[-1] == graph_tiles(8)[-1] == 8


@pytest.mark.parametrize("num_tokens", [512, 4096])
def test_the_plan_counts_a_recorded_tower(num_tokens: int) -> None:
    """Steps and tiles take turns in the memory of the largest of them; the rest adds up."""
    config = EngineConfig(max_num_batched_tokens=num_tokens).resolved("cuda")
    model = seeing()
    blind = workspace_of(dataclasses.replace(model, vision=None), config, GPU_SIZES)
    both = workspace_of(model, config, GPU_SIZES)
    assert model.vision is not None
    num_tiles = len(graph_tiles(tiles_per_batch(model.vision, GPU_SIZES)))
    assert both.num_graphs == blind.num_graphs + num_tiles
    own = num_tiles * (5 * 2**20 + 448 * 448 * 3 + 256 * 576 * 2)
    steps = graph_sizes(config.max_num_seqs, num_tokens)
    handed_on = sum(size.num_seqs + size.num_chunks for size in steps) * 576 * 2
    widest = blind.graph_bytes - len(steps) * 5 * 2**20 - handed_on
    tower = num_tiles * tile_bytes(model.vision, GPU_SIZES)
    assert (tower > widest) == (num_tokens == 512)
    assert both.graph_bytes == blind.graph_bytes + own + max(0, tower - widest)
    assert dataclasses.replace(both, num_graphs=0, graph_bytes=0) == dataclasses.replace(
        blind, num_graphs=0, graph_bytes=0
    )
    few = with_recorded(both, model, steps[:3], GPU_SIZES)
    assert few.num_graphs == 3 + num_tiles
    assert few.graph_bytes < both.graph_bytes
    assert with_recorded(few, model, steps, GPU_SIZES) == both
    on_cpu = EngineConfig().resolved("cpu")
    assert workspace_of(model, on_cpu, SIZES).num_graphs == 0


def test_auto_on_a_gpu_takes_what_is_free_and_leaves_a_margin() -> None:
    assert memory_budget(EngineConfig(), 80 * GIB, is_gpu=True) == 76 * GIB
    assert memory_budget(EngineConfig(), GIB, is_gpu=True) == GIB - GIB // 4
    config = EngineConfig().resolved("cuda")
    whole = plan_memory(decoder(32768), config, available_bytes=80 * GIB, sizes=GPU_SIZES)
    assert whole.kv_bytes > 40 * GIB


def test_auto_on_a_cpu_caches_no_more_than_helps_but_what_was_promised() -> None:
    config = EngineConfig().resolved("cpu")
    usual = plan_memory(decoder(32768), config, available_bytes=80 * GIB, sizes=SIZES)
    assert 3.9 * GIB < usual.kv_bytes <= 4 * GIB
    config = EngineConfig(max_model_len=131072, max_num_seqs=1).resolved("cpu")
    long = plan_memory(decoder(131072), config, available_bytes=80 * GIB, sizes=SIZES)
    assert long.max_model_len == 131072


def test_a_need_beyond_the_positions() -> None:
    with pytest.raises(ConfigError, match="beyond the model's 8192"):
        memory_need(decoder(), EngineConfig(max_model_len=9000).resolved("cpu"), SIZES)


def test_blocks_that_do_not_hold_what_is_promised() -> None:
    config = EngineConfig(num_blocks=2, max_model_len=33, memory=GIB).resolved("cpu")
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
    config = EngineConfig().resolved("cpu")
    text = memory_need(decoder(), config, SIZES)
    small = memory_need(decoder(4096, layers=6), config, ElementSizes(32_000_000, 256, 4))
    left = memory_budget(EngineConfig(), 4 * GIB)
    for own, others in ((text, [small, small]), (small, [small]), (small, [])):
        assert own.good_bytes <= left
        left -= share_memory(left, own, others)
    assert left >= 0


@given(
    measured=st.integers(0, 12 * GIB),
    memory=st.sampled_from([2 * GIB, 4 * GIB, 8 * GIB]),
    max_model_len=st.sampled_from([None, 4096]),
    model=st.sampled_from([decoder(), seeing()]),
)
def test_a_plan_fitted_to_what_was_measured(
    measured: int, memory: int, max_model_len: int | None, model: ModelConfig
) -> None:
    """It keeps the budget, and takes all that is of use; what an error advises does fit."""

    def planned(budget: int) -> tuple[MemoryPlan, EngineConfig]:
        config = EngineConfig(memory=budget, max_model_len=max_model_len).resolved("cuda")
        return plan_memory(model, config, available_bytes=0, sizes=GPU_SIZES), config

    def fitted(budget: int) -> MemoryPlan:
        plan, config = planned(budget)
        return fit_plan(plan, model, config, measured)

    is_planned = False
    with suppress(MemoryBudgetError):
        planned(memory)
        is_planned = True
    if not is_planned:
        return
    try:
        plan = fitted(memory)
    except MemoryBudgetError as error:
        advised = float(str(error).split("memory=")[1].split("GiB")[0])
        assert advised * GIB > memory
        assert fitted(int(advised * GIB)).num_blocks > 0
        return
    check_fitted(plan, measured, memory, fitted(memory + plan.block_bytes))


def check_fitted(plan: MemoryPlan, measured: int, memory: int, more: MemoryPlan) -> None:
    """more: with a block's worth of memory more."""
    taken = measured + plan.workspace.graph_bytes
    assert taken + plan.kv_bytes <= memory
    assert plan.total_bytes == max(taken, plan.weight_bytes + plan.workspace.graph_bytes) + (
        plan.kv_bytes
    )
    assert more.num_blocks in (plan.num_blocks, plan.num_blocks + 1)
