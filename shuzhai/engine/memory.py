"""The memory planner: from bytes and shapes to a number of KV blocks, and to the parts of several
models in one budget. Pure; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shuzhai.config import (
    MAX_TILES,
    DecoderConfig,
    EngineConfig,
    ModelConfig,
    parse_bytes,
)
from shuzhai.engine.memory_table import ENGLISH, TableWords, render
from shuzhai.engine.workspace import (
    ElementSizes,
    Workspace,
    tile_bytes,
    tiles_per_batch,
    workspace_of,
)
from shuzhai.errors import ConfigError, MemoryBudgetError

# With memory = "auto": leave room for the rest of the machine, and on a CPU take no more for cached
# chats than what helps. The memory of a GPU has no other use.
_AUTO_SHARE = 0.8
_AUTO_KV_BYTES = 4 * 2**30
_AUTO_TOKENS_PER_SEQ = 8192
_GPU_SPARE_SHARE = 0.05
_GPU_SPARE_BYTES = 2**28
# Rows of pictures that are kept: at least those of the largest picture there can be.
_PICTURE_ROWS = 16384
# Dynamic NTK works beyond the training length, with falling quality.
_DYNAMIC_STRETCH = 8

# Fewer tokens a step are no advice.
_LEAST_STEP_TOKENS = 64

# Options of EngineConfig with their new values.
Change = dict[str, int | str]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where the bytes go. kv_bytes = num_blocks * block_bytes.

    vision_bytes      for encoding a batch of tiles, and for rows of pictures
    tiles_per_batch   tiles that are encoded at a time; picture_rows   that are kept at a time
    """

    budget_bytes: int
    weight_bytes: int
    workspace: Workspace
    vision_bytes: int
    tiles_per_batch: int
    picture_rows: int
    block_bytes: int
    block_size: int
    num_blocks: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int

    @property
    def kv_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def workspace_bytes(self) -> int:
        return self.workspace.total_bytes

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.workspace_bytes + self.vision_bytes + self.kv_bytes

    @property
    def num_tokens(self) -> int:
        """That the KV cache holds, of all chats together."""
        return self.num_blocks * self.block_size

    def num_chats(self, num_tokens: int) -> int:
        """How many chats of so many tokens run at a time without waiting for each other."""
        if num_tokens > self.max_model_len:
            return 0
        return min(self.max_num_seqs, self.num_blocks // -(-num_tokens // self.block_size))

    def line(self) -> str:
        """One line for people."""
        weights, kv, vision, workspace, budget = (
            f"{size / 2**30:.2f} GiB"
            for size in (
                self.weight_bytes,
                self.kv_bytes,
                self.vision_bytes,
                self.workspace_bytes,
                self.budget_bytes,
            )
        )
        pictures = f"{vision} pictures + " if self.vision_bytes else ""
        return (
            f"{weights} weights + {kv} KV cache ({self.num_tokens:,} tokens) + {pictures}"
            f"{workspace} workspace of {budget}; context {self.max_model_len:,} tokens"
        )

    def table(self, words: TableWords = ENGLISH) -> str:
        """Every part with its reason, then the context, and how many chats there is room for."""
        return render(self, words)


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a model can do with memory.

    least_bytes  plan_memory refuses less
    good_bytes   the KV cache holds one long chat
    most_bytes   it has no use for more
    """

    least_bytes: int
    good_bytes: int
    most_bytes: int


def memory_budget(config: EngineConfig, available_bytes: int, *, is_gpu: bool = False) -> int:
    """What the engines of this process may take together; available_bytes is free now, and what
    this process has taken of a GPU already."""
    if config.memory != "auto":
        return parse_bytes(config.memory)
    if is_gpu:
        spare = max(_GPU_SPARE_BYTES, int(available_bytes * _GPU_SPARE_SHARE))
        return max(0, available_bytes - spare)
    return int(available_bytes * _AUTO_SHARE)


def memory_need(model: ModelConfig, config: EngineConfig, sizes: ElementSizes) -> MemoryNeed:
    """How far this model's memory can be stretched; `config` is resolved for the device."""
    limit = allowed_length(model.decoder, config)
    block_bytes = _block_bytes(model.decoder, config, sizes)
    fixed = _fixed_bytes(model, config, sizes)

    def with_tokens(tokens: int) -> int:
        return fixed + -(-tokens // config.block_size) * block_bytes

    if config.num_blocks is not None:
        _check_blocks(config.num_blocks, config)
        exact = fixed + config.num_blocks * block_bytes
        return MemoryNeed(exact, exact, exact)
    least = with_tokens(_needed_tokens(limit, config))
    good = max(least, with_tokens(min(limit, _AUTO_TOKENS_PER_SEQ)))
    most = with_tokens(_useful_tokens(limit, config))
    if config.memory == "auto" and not sizes.is_gpu:
        most = min(most, fixed + _AUTO_KV_BYTES)
    return MemoryNeed(least, good, max(good, most))


def share_memory(free_bytes: int, own: MemoryNeed, others: Sequence[MemoryNeed]) -> int:
    """The part of the free memory for a model that is being loaded; free_bytes >= own.good_bytes.

    `others` may be loaded later. Each whose good_bytes still fit keeps them, in their order; what
    is left is shared out equally, and what one has no use for goes to the rest.
    """
    spare = free_bytes - own.good_bytes
    wishes = [own.most_bytes - own.good_bytes]
    for other in others:
        if other.good_bytes <= spare:
            spare -= other.good_bytes
            wishes.append(other.most_bytes - other.good_bytes)
    part = 0
    for num_served, wish in enumerate(sorted(wishes)):
        part = min(wish, spare // (len(wishes) - num_served))
        spare -= part
        if wish > part:
            break
    return own.good_bytes + min(wishes[0], part)


def plan_memory(
    model: ModelConfig, config: EngineConfig, *, available_bytes: int, sizes: ElementSizes
) -> MemoryPlan:
    """Share out the memory. MemoryBudgetError says what would fit when the model does not,
    ConfigError what the model's positions allow.

    config           resolved for the device
    available_bytes  what the device has free now, before the weights are loaded
    """
    budget = memory_budget(config, available_bytes, is_gpu=sizes.is_gpu)
    block_bytes = _block_bytes(model.decoder, config, sizes)
    workspace = workspace_of(model, config, sizes)
    num_tiles, picture_rows, vision = _plan_vision(model, sizes)
    limit = allowed_length(model.decoder, config)
    room = max(0, budget - sizes.weight_bytes - workspace.total_bytes - vision)
    if config.num_blocks is not None:
        num_blocks = config.num_blocks
        _check_blocks(num_blocks, config)
    else:
        if config.memory == "auto" and not sizes.is_gpu:
            promised = -(-_needed_tokens(limit, config) // config.block_size) * block_bytes
            room = min(room, max(_AUTO_KV_BYTES, promised))
        tokens = _useful_tokens(limit, config)
        num_blocks = min(-(-tokens // config.block_size), room // block_bytes)
    if memory_need(model, config, sizes).least_bytes > budget:
        raise MemoryBudgetError(_shortage(model, config, budget, sizes))
    assert config.max_num_seqs is not None, "the config is resolved"
    assert config.max_num_batched_tokens is not None, "the config is resolved"
    return MemoryPlan(
        budget_bytes=budget,
        weight_bytes=sizes.weight_bytes,
        workspace=workspace,
        vision_bytes=vision,
        tiles_per_batch=num_tiles,
        picture_rows=picture_rows,
        block_bytes=block_bytes,
        block_size=config.block_size,
        num_blocks=num_blocks,
        max_model_len=min(limit, num_blocks * config.block_size),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
    )


def fit_plan(
    plan: MemoryPlan, model: ModelConfig, config: EngineConfig, measured_bytes: int
) -> MemoryPlan:
    """The plan with as many KV blocks as the budget holds beside what was measured: all that is
    taken but the KV cache and CUDA graphs. MemoryBudgetError if what was promised does not fit.
    """
    limit = allowed_length(model.decoder, config)
    room = plan.budget_bytes - measured_bytes - plan.workspace.graph_bytes
    useful = -(-_useful_tokens(limit, config) // plan.block_size)
    num_blocks = min(config.num_blocks or useful, max(0, room) // plan.block_bytes)
    promised = max(_needed_tokens(limit, config), (config.num_blocks or 0) * plan.block_size)
    if num_blocks * plan.block_size < promised:
        short = -(-promised // plan.block_size) * plan.block_bytes - room
        raise MemoryBudgetError(
            f"weights and the largest steps took {measured_bytes / 2**30:.2f} GiB, which leaves "
            f"{num_blocks * plan.block_size} tokens of KV cache, but {promised} are needed; give "
            f"memory={size_that_holds(plan.budget_bytes + short)} or more"
        )
    return replace(
        plan,
        num_blocks=num_blocks,
        max_model_len=min(limit, num_blocks * plan.block_size),
        **_measured_parts(plan, measured_bytes),
    )


def _measured_parts(plan: MemoryPlan, measured_bytes: int) -> dict[str, Any]:
    """The plan's parts, none larger than planned, with what was measured as their sum."""
    space, rest = plan.workspace, measured_bytes - plan.weight_bytes
    parts = {}
    for name, size in (
        ("context_bytes", space.context_bytes),
        ("vision_bytes", plan.vision_bytes),
        ("library_bytes", space.library_bytes),
        ("activation_bytes", space.activation_bytes),
        ("sampler_bytes", space.sampler_bytes),
    ):
        parts[name] = max(0, min(size, rest))
        rest -= parts[name]
    vision_bytes = parts.pop("vision_bytes")
    workspace = replace(space, **parts, margin_bytes=max(0, rest))
    return {"vision_bytes": vision_bytes, "workspace": workspace}


def changes_that_fit(
    model: ModelConfig, config: EngineConfig, budget_bytes: int, sizes: ElementSizes
) -> list[Change]:
    """What would make a model fit that does not: options of EngineConfig, each set of them enough.
    More memory comes first. If no other option is enough by itself, several together come last."""
    need = memory_need(model, config, sizes).least_bytes
    formats: list[Change] = [{"kv_dtype": name} for name, _ in sizes.smaller_kv]
    seqs = _halves("max_num_seqs", config.max_num_seqs, 1)
    tokens = _halves("max_num_batched_tokens", config.max_num_batched_tokens, _LEAST_STEP_TOKENS)

    def room(change: Change) -> int:
        """Bytes that are left, or missing, with this change."""
        changed, smaller = _changed(config, sizes, change)
        return budget_bytes - memory_need(model, changed, smaller).least_bytes

    def shorter(change: Change) -> list[Change]:
        """The change, and as much KV cache as there is room for then."""
        changed, smaller = _changed(config, sizes, change)
        space = budget_bytes - _fixed_bytes(model, changed, smaller)
        num_blocks = space // _block_bytes(model.decoder, changed, smaller)
        num_tokens = num_blocks * config.block_size
        if num_blocks < 1:
            return []
        if config.num_blocks is not None:
            holds = num_tokens >= (config.max_model_len or 0)
            return [change | {"num_blocks": num_blocks}] if holds else []
        return [change | {"max_model_len": num_tokens}] if config.max_model_len else []

    alone = [[c for c in options if room(c) >= 0][:1] for options in (formats, seqs, tokens)]
    changes = [change for found in (*alone, shorter({})) for change in found]
    if not changes:
        together = [
            _at(formats, i) | _at(seqs, i) | _at(tokens, i)
            for i in range(max(len(formats), len(seqs), len(tokens), 1))
        ]
        changes = [change for change in together if room(change) >= 0][:1]
        changes = changes or _mildest([short for change in together for short in shorter(change)])
    return [{"memory": size_that_holds(need)}, *changes]


def size_that_holds(num_bytes: int) -> str:
    """As a value of `memory`, which is no less."""
    return f"{num_bytes / 2**30 + 0.01:.2f}GiB"


def _changed(
    config: EngineConfig, sizes: ElementSizes, change: Change
) -> tuple[EngineConfig, ElementSizes]:
    heads = dict(sizes.smaller_kv)
    head_bytes = heads.get(str(change.get("kv_dtype")), sizes.kv_head_bytes)
    return EngineConfig.from_options(asdict(config) | change), replace(
        sizes, kv_head_bytes=head_bytes
    )


def _halves(name: str, value: int | None, least: int) -> list[Change]:
    """The option at a half, a quarter and so on of its value."""
    halves: list[Change] = []
    while value is not None and value // 2 >= least:
        value //= 2
        halves.append({name: value})
    return halves


def _mildest(shorter: list[Change]) -> list[Change]:
    """The first, which slows down least, that leaves half of the longest context that is left."""
    lengths = [int(change.get("max_model_len", change.get("num_blocks", 0))) for change in shorter]
    half = max(lengths, default=0) / 2
    return [c for c, length in zip(shorter, lengths, strict=True) if length >= half][:1]


def _at(options: list[Change], place: int) -> Change:
    """The option at this place, the last one beyond it; no change where there is none."""
    return options[min(place, len(options) - 1)] if options else {}


def _shortage(
    model: ModelConfig, config: EngineConfig, budget_bytes: int, sizes: ElementSizes
) -> str:
    """Why it does not fit, and what would."""
    fixed = _fixed_bytes(model, config, sizes)
    num_blocks = max(0, budget_bytes - fixed) // _block_bytes(model.decoder, config, sizes)
    limit = allowed_length(model.decoder, config)
    held, needed = num_blocks * config.block_size, _needed_tokens(limit, config)
    if config.num_blocks is not None:
        what = f"num_blocks {config.num_blocks} are more than fit; {num_blocks} do"
    else:
        what = (
            f"{budget_bytes / 2**30:.2f} GiB hold {held} tokens of KV cache beside "
            f"{sizes.weight_bytes / 2**30:.2f} GiB of weights and "
            f"{(fixed - sizes.weight_bytes) / 2**30:.2f} GiB of workspace, but {needed} are needed"
        )
    changes = changes_that_fit(model, config, budget_bytes, sizes)
    advice = [" and ".join(f"{k}={v}" for k, v in change.items()) for change in changes]
    return f"{what}; give {advice[0]} or more" + "".join(f", or {each}" for each in advice[1:])


def context_limit(model: DecoderConfig) -> int:
    """The longest sequence that the model's positions allow."""
    scaling = model.rope_scaling
    if scaling is None:
        return model.max_position_embeddings
    stretch = _DYNAMIC_STRETCH if scaling.kind == "dynamic" else scaling.factor
    return int(model.max_position_embeddings * stretch)


def allowed_length(model: DecoderConfig, config: EngineConfig) -> int:
    """The longest sequence that the model and the config allow, were there memory enough."""
    limit = context_limit(model)
    if config.max_model_len is None:
        return limit
    if config.max_model_len > limit:
        raise ConfigError(f"max_model_len {config.max_model_len} is beyond the model's {limit}")
    return config.max_model_len


def _fixed_bytes(model: ModelConfig, config: EngineConfig, sizes: ElementSizes) -> int:
    """All but the KV cache."""
    workspace = workspace_of(model, config, sizes).total_bytes
    return sizes.weight_bytes + workspace + _plan_vision(model, sizes)[2]


def _needed_tokens(limit: int, config: EngineConfig) -> int:
    """Tokens that the KV cache must hold: what was promised, else enough to run at all."""
    return config.max_model_len or min(limit, config.block_size)


def _check_blocks(num_blocks: int, config: EngineConfig) -> None:
    held, promised = num_blocks * config.block_size, config.max_model_len or 0
    if held < promised:
        raise ConfigError(
            f"num_blocks {num_blocks} hold {held} tokens and max_model_len promises {promised}: "
            f"give num_blocks {-(-promised // config.block_size)} or more, or lower max_model_len"
        )


def _useful_tokens(limit: int, config: EngineConfig) -> int:
    assert config.max_num_seqs is not None, "the config is resolved"
    return max(limit, config.max_num_seqs * min(limit, _AUTO_TOKENS_PER_SEQ))


def _block_bytes(model: DecoderConfig, config: EngineConfig, sizes: ElementSizes) -> int:
    per_token = 2 * model.num_layers * model.num_kv_heads * sizes.kv_head_bytes
    return per_token * config.block_size


def _plan_vision(model: ModelConfig, sizes: ElementSizes) -> tuple[int, int, int]:
    """(tiles encoded at a time, rows of pictures kept, bytes of both); zeros without a tower."""
    vision = model.vision
    if vision is None:
        return 0, 0, 0
    num_tiles = tiles_per_batch(vision, sizes)
    largest = vision.tokens_per_tile * (1 if vision.max_tiles == 1 else MAX_TILES + 1)
    rows = max(_PICTURE_ROWS, largest)
    row_bytes = model.decoder.hidden_size * sizes.activation_bytes
    return num_tiles, rows, num_tiles * tile_bytes(vision, sizes) + rows * row_bytes
