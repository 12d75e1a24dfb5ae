"""The memory planner: from bytes and shapes to a number of KV blocks, and to the parts of several
models in one budget. Pure; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shuzhai.config import (
    MAX_TILES,
    DecoderConfig,
    EngineConfig,
    ModelConfig,
    VisionConfig,
    parse_bytes,
)
from shuzhai.errors import ConfigError, MemoryBudgetError

# With memory = "auto": leave room for the rest of the machine, and take no more for cached chats
# than what helps.
_AUTO_SHARE = 0.8
_AUTO_KV_BYTES = 4 * 2**30
_AUTO_TOKENS_PER_SEQ = 8192
# For the activations of the tiles that are encoded at a time: enough to keep a device busy.
_TILE_BATCH_BYTES = 128 * 2**20
# Rows of pictures that are kept: at least those of the largest picture there can be.
_PICTURE_ROWS = 16384
# Dynamic NTK works beyond the training length, with falling quality.
_DYNAMIC_STRETCH = 8


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where the bytes go. kv_bytes = num_blocks * block_bytes.

    vision_bytes      for encoding a batch of tiles, and for rows of pictures
    tiles_per_batch   tiles that are encoded at a time; picture_rows   that are kept at a time
    """

    budget_bytes: int
    weight_bytes: int
    workspace_bytes: int
    vision_bytes: int
    tiles_per_batch: int
    picture_rows: int
    block_bytes: int
    block_size: int
    num_blocks: int
    max_model_len: int

    @property
    def kv_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.workspace_bytes + self.vision_bytes + self.kv_bytes

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
        tokens = self.num_blocks * self.block_size
        pictures = f"{vision} pictures + " if self.vision_bytes else ""
        return (
            f"{weights} weights + {kv} KV cache ({tokens:,} tokens) + {pictures}{workspace} "
            f"workspace of {budget}; context {self.max_model_len:,} tokens"
        )


@dataclass(frozen=True, slots=True)
class ElementSizes:
    """Bytes of all weights, of one number in the KV cache, and of one activation."""

    weight_bytes: int
    kv_element_bytes: int
    activation_bytes: int


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


def memory_budget(config: EngineConfig, available_bytes: int) -> int:
    """What the engines of this process may take together; available_bytes is free now."""
    if config.memory != "auto":
        return parse_bytes(config.memory)
    return int(available_bytes * _AUTO_SHARE)


def memory_need(model: ModelConfig, config: EngineConfig, sizes: ElementSizes) -> MemoryNeed:
    """How far this model's memory can be stretched."""
    limit = allowed_length(model.decoder, config)
    block_bytes = _block_bytes(model.decoder, config, sizes)
    workspace = workspace_bytes(model.decoder, config, sizes.activation_bytes)
    vision = _plan_vision(model, sizes.activation_bytes)[2]
    fixed = sizes.weight_bytes + workspace + vision

    def with_tokens(tokens: int) -> int:
        return fixed + -(-tokens // config.block_size) * block_bytes

    if config.num_blocks is not None:
        _check_blocks(config.num_blocks, config)
        exact = fixed + config.num_blocks * block_bytes
        return MemoryNeed(exact, exact, exact)
    least = with_tokens(_needed_tokens(limit, config))
    good = max(least, with_tokens(min(limit, _AUTO_TOKENS_PER_SEQ)))
    most = with_tokens(_useful_tokens(limit, config))
    if config.memory == "auto":
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

    available_bytes  what the device has free now, before the weights are loaded
    """
    budget = memory_budget(config, available_bytes)
    weight_bytes = sizes.weight_bytes
    block_bytes = _block_bytes(model.decoder, config, sizes)
    workspace = workspace_bytes(model.decoder, config, sizes.activation_bytes)
    tiles_per_batch, picture_rows, vision = _plan_vision(model, sizes.activation_bytes)
    limit = allowed_length(model.decoder, config)
    room = max(0, budget - weight_bytes - workspace - vision)
    if config.num_blocks is not None:
        num_blocks = config.num_blocks
        _check_blocks(num_blocks, config)
        if num_blocks * block_bytes > room:
            raise MemoryBudgetError(
                f"num_blocks {num_blocks} are more than fit; at most {room // block_bytes} do"
            )
    else:
        if config.memory == "auto":
            room = min(room, _AUTO_KV_BYTES)
        tokens = _useful_tokens(limit, config)
        num_blocks = min(-(-tokens // config.block_size), room // block_bytes)

    capacity = num_blocks * config.block_size
    needed = _needed_tokens(limit, config)
    if capacity < needed:
        fit = weight_bytes + workspace + vision + -(-needed // config.block_size) * block_bytes
        raise MemoryBudgetError(
            f"{budget / 2**30:.2f} GiB hold {capacity} tokens of KV cache beside "
            f"{weight_bytes / 2**30:.2f} GiB of weights and "
            f"{(workspace + vision) / 2**30:.2f} GiB of workspace, but {needed} are needed; "
            f"give memory={fit / 2**30 + 0.01:.2f}GiB or more, or lower max_model_len"
        )
    return MemoryPlan(
        budget, weight_bytes, workspace, vision, tiles_per_batch, picture_rows, block_bytes,
        config.block_size, num_blocks, min(limit, capacity),
    )  # fmt: skip


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
    return max(limit, config.max_num_seqs * min(limit, _AUTO_TOKENS_PER_SEQ))


def _block_bytes(model: DecoderConfig, config: EngineConfig, sizes: ElementSizes) -> int:
    per_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * sizes.kv_element_bytes
    return per_token * config.block_size


def workspace_bytes(model: DecoderConfig, config: EngineConfig, activation_bytes: int) -> int:
    """Activations of the widest layer for a full step, and logits for every sequence of a step."""
    tokens = config.max_num_batched_tokens
    widest = 3 * model.intermediate_size + 4 * model.hidden_size
    logits_copies = 4  # as they come, adjusted, probabilities, and their running sum
    logits = min(config.max_num_seqs, tokens) * model.vocab_size * 4 * logits_copies
    return tokens * widest * activation_bytes + logits


def _plan_vision(model: ModelConfig, activation_bytes: int) -> tuple[int, int, int]:
    """(tiles encoded at a time, rows of pictures kept, bytes of both); zeros without a tower."""
    vision = model.vision
    if vision is None:
        return 0, 0, 0
    tile = tile_bytes(vision)
    tiles = max(1, min(MAX_TILES, _TILE_BATCH_BYTES // tile))
    largest = vision.tokens_per_tile * (1 if vision.max_tiles == 1 else MAX_TILES + 1)
    rows = max(_PICTURE_ROWS, largest)
    return tiles, rows, tiles * tile + rows * model.decoder.hidden_size * activation_bytes


def tile_bytes(vision: VisionConfig) -> int:
    """Activations of a block of the tower for one tile, in float32 at worst."""
    per_position = 10 * vision.hidden_size + 3 * vision.intermediate_size
    return (vision.patches_per_side**2 + 1) * per_position * 4
