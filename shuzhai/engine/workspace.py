"""What an engine takes beside weights, rows of pictures and KV cache, from the shapes of a model,
and which steps and batches of tiles are recorded. Pure; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from shuzhai.config import MAX_TILES, DecoderConfig, EngineConfig, ModelConfig, VisionConfig
from shuzhai.kernels.head_rows import head_rows

# What a CUDA context takes with the kernels of a library or two, where it was not measured: on
# data-centre cards, and on others.
CONTEXT_BYTES = 500 * 2**20
SMALL_CONTEXT_BYTES = 300 * 2**20
_SMALL_CARD_BYTES = 26 * 2**30
# cuBLAS takes 32 MiB for each of two streams, that of the graphs and the plain one; attention that
# is split over a sequence as much for its parts.
_LIBRARY_BYTES = 96 * 2**20
# A recorded step: some 200 launches with their parameters, rounded up by the driver.
_GRAPH_BYTES = 5 * 2**20
_MOST_GRAPH_SEQS = 512
# Recorded steps with chunks of prompts: sequences of one token, chunks, and tokens of chunks.
_MIXED_SEQS = (1, 16, 64)
_MIXED_CHUNKS = 32
_MIXED_TOKENS = (64, 256, 512, 1024)
# With places for all sequences, what many chats bring while others come.
_LARGE_MIXED_TOKENS = (1536, 2048)
# Larger ones, for a few prompts at a time: their rows, places for sequences included. Matrix
# products take 128 rows at a time.
_LONG_ROWS = (1536, 2048, 2560, 3072, 3584)
_LONG_SEQS = 16
# Those that are as full as a step may be, which many prompts at once bring.
_FULL_SEQS = (16, 64, 256)
_FULL_CHUNKS = 64
# Times slower that a host may become.
_HOST_MARGIN = 4
# Larger batches of tiles, which small towers have, are launched one by one.
_MOST_GRAPH_TILES = 8
# For the activations of the tiles that are encoded at a time: enough to keep a device busy. On a
# GPU the 13 tiles of a large picture make two batches.
_TILE_BATCH_BYTES = 128 * 2**20
_GPU_TILE_BATCH_BYTES = 256 * 2**20
# Sequences that draw, or want log-probabilities, at a time: each row of a real vocabulary is copied
# three times, 370 kB each.
SAMPLE_ROWS = 128
# Positions of prompts whose logits are made at a time.
LOGIT_ROWS = 128
# Tensors are rounded up to 2 MiB, and those of steps of many sizes leave holes.
_MARGIN_BYTES = 96 * 2**20
_MARGIN_WEIGHT_SHARE = 64
_MARGIN_ACTIVATION_SHARE = 4


@dataclass(frozen=True, slots=True)
class ElementSizes:
    """What a plan must know of how numbers are stored and of the device; sizes in bytes.

    weight_bytes      of all weights
    kv_head_bytes     of the key, or the value, of one head of one token (formats.kv.head_bytes)
    activation_bytes  of one activation
    is_gpu            the device is a GPU
    context_bytes     of the CUDA context: measured, or context_estimate; 0 on a CPU
    smaller_kv        (kv_dtype, kv_head_bytes) of formats that take less, the largest first: what
                      errors may advise
    """

    weight_bytes: int
    kv_head_bytes: int
    activation_bytes: int
    is_gpu: bool = False
    context_bytes: int = 0
    smaller_kv: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Workspace:
    """What is taken beside weights, pictures and KV cache, in bytes. The last four: on a GPU only.

    activation_bytes  the widest layer of a full step
    sampler_bytes     logits for every sequence of a step, and copies of some: on a GPU, what they
                      take beyond the activations, whose place they take
    graph_bytes       of num_graphs recorded steps and batches of tiles, with the memory that they
                      share
    """

    activation_bytes: int
    sampler_bytes: int
    library_bytes: int = 0
    num_graphs: int = 0
    graph_bytes: int = 0
    context_bytes: int = 0
    margin_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return (
            self.activation_bytes
            + self.sampler_bytes
            + self.library_bytes
            + self.graph_bytes
            + self.context_bytes
            + self.margin_bytes
        )


def context_estimate(device_bytes: int | None) -> int:
    """About what a CUDA context takes on a card with so much memory; None: of an unknown card."""
    is_small = device_bytes is not None and device_bytes < _SMALL_CARD_BYTES
    return SMALL_CONTEXT_BYTES if is_small else CONTEXT_BYTES


@dataclass(frozen=True, slots=True, order=True)
class GraphSize:
    """Places of a recorded step: for sequences that bring one token, and behind them for so many
    chunks of prompts with num_tokens tokens in all."""

    num_seqs: int
    num_chunks: int = 0
    num_tokens: int = 0


def graph_sizes(max_num_seqs: int, max_num_batched_tokens: int) -> list[GraphSize]:
    """Steps that are recorded. Of one token a sequence: a step leaves a fifth of its places empty
    or so, and one of more sequences takes so long that launches hide behind it. With chunks, the
    same, and few sizes: on a fast GPU what is left empty costs less there than launches do. Large
    ones with few sequences and with all, up to those that are full."""
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, _MOST_GRAPH_SEQS + 1, 32)]
    most = min(max_num_seqs, _MOST_GRAPH_SEQS)
    sizes = [GraphSize(n) for n in (*(n for n in steps if n < most), most)]
    mixed = [n for n in _MIXED_SEQS if n < most] + [most]
    for num_tokens in _MIXED_TOKENS:
        if num_tokens <= max_num_batched_tokens:
            sizes += [GraphSize(n, min(_MIXED_CHUNKS, most), num_tokens) for n in mixed]
    few = min(_LONG_SEQS, most)
    for num_rows in _LONG_ROWS:
        if num_rows < max_num_batched_tokens - _LONG_SEQS:
            sizes.append(GraphSize(few, min(_MIXED_CHUNKS, most), num_rows - few))
    for num_tokens in _LARGE_MIXED_TOKENS:
        if most > few and most + num_tokens < max_num_batched_tokens:
            sizes.append(GraphSize(most, min(_MIXED_CHUNKS, most), num_tokens))
    for n in full_step_seqs(max_num_seqs, max_num_batched_tokens):
        sizes.append(GraphSize(n, min(_FULL_CHUNKS, most), max_num_batched_tokens - n))
    return sizes


def full_step_seqs(max_num_seqs: int, max_num_batched_tokens: int) -> list[int]:
    """Places for sequences of one token in the recorded steps that are full: chunks of prompts have
    what they leave of max_num_batched_tokens."""
    most = min(max_num_seqs, _MOST_GRAPH_SEQS)
    if max_num_batched_tokens < 2 * _MIXED_TOKENS[-1] + most:
        return []
    return [*(n for n in _FULL_SEQS if n < most), most]


def worth_recording(sizes: Iterable[GraphSize], launch_tokens: int) -> list[GraphSize]:
    """Those whose launches the GPU may have to wait for, with chunks: the host may be slower later
    than it was at the start. A slow GPU would take seconds to record the others, and never gain."""
    most = _HOST_MARGIN * launch_tokens
    return [s for s in sizes if not s.num_tokens or s.num_seqs + s.num_tokens <= most]


def is_worth_its_places(size: GraphSize, num_tokens: int, launch_tokens: int) -> bool:
    """A recorded step is not much slower than launches one by one for so many tokens, those of
    sequences that bring one included: it has no chunks, or all its places take no longer than the
    launches, or an eighth of them at most stays empty.

    launch_tokens  that the GPU computes while the host launches a step (warmup.launch_tokens)
    """
    places = size.num_seqs + size.num_tokens
    return size.num_tokens == 0 or places <= launch_tokens or 8 * num_tokens >= 7 * places


def graph_tiles(most: int) -> range:
    """The batches of tiles that are recorded, of those of so many at most; 0: there is no tower."""
    return range(1, min(most, _MOST_GRAPH_TILES) + 1)


def tiles_per_batch(vision: VisionConfig | None, sizes: ElementSizes) -> int:
    """Tiles that are encoded at a time; 0 without a tower."""
    if vision is None:
        return 0
    batch_bytes = _GPU_TILE_BATCH_BYTES if sizes.is_gpu else _TILE_BATCH_BYTES
    return max(1, min(MAX_TILES, batch_bytes // tile_bytes(vision, sizes)))


def tile_bytes(vision: VisionConfig, sizes: ElementSizes) -> int:
    """Activations of a block of the tower for one tile; on a CPU in float32 at worst."""
    positions = vision.patches_per_side**2 + 1
    if not sizes.is_gpu:
        return positions * (10 * vision.hidden_size + 3 * vision.intermediate_size) * 4
    per_position = 10 * vision.hidden_size + 2 * vision.intermediate_size
    return positions * per_position * sizes.activation_bytes


def workspace_of(model: ModelConfig, config: EngineConfig, sizes: ElementSizes) -> Workspace:
    """All but weights, pictures and KV cache; `config` is resolved for the device."""
    decoder = model.decoder
    num_seqs, num_tokens = config.max_num_seqs, config.max_num_batched_tokens
    assert num_seqs is not None, "the config is resolved"
    assert num_tokens is not None, "the config is resolved"
    logit_rows = min(num_seqs, num_tokens)
    if sizes.is_gpu:
        logit_rows = head_rows(logit_rows)
    copies = 3 * min(logit_rows, SAMPLE_ROWS)  # adjusted, probabilities, and their running sum
    logits = (logit_rows + copies) * decoder.vocab_size * 4
    if not sizes.is_gpu:
        widest = 3 * decoder.intermediate_size + 4 * decoder.hidden_size
        return Workspace(num_tokens * widest * sizes.activation_bytes, logits)
    activations = num_tokens * _layer_elements(decoder) * sizes.activation_bytes
    margin = sizes.weight_bytes // _MARGIN_WEIGHT_SHARE + activations // _MARGIN_ACTIVATION_SHARE
    workspace = Workspace(
        activation_bytes=activations,
        sampler_bytes=max(0, logits - activations),
        library_bytes=_LIBRARY_BYTES,
        context_bytes=sizes.context_bytes,
        margin_bytes=_MARGIN_BYTES + margin,
    )
    return with_recorded(workspace, model, graph_sizes(num_seqs, num_tokens), sizes)


def with_recorded(
    workspace: Workspace, model: ModelConfig, steps: Sequence[GraphSize], sizes: ElementSizes
) -> Workspace:
    """The same where these steps are recorded, and the batches of tiles: all take turns in the
    activations of the largest."""
    count, pixel_bytes = len(steps), 0
    shared = max(size.num_seqs + size.num_tokens for size in steps)
    shared *= _layer_elements(model.decoder) * sizes.activation_bytes
    # What each step hands on, and the largest batch of tiles for all.
    rows = sum(size.num_seqs + size.num_chunks for size in steps)
    vision = model.vision
    if vision is not None:
        num_tiles = len(graph_tiles(tiles_per_batch(vision, sizes)))
        count += num_tiles
        shared = max(shared, num_tiles * tile_bytes(vision, sizes))
        rows += num_tiles * vision.tokens_per_tile
        pixel_bytes = num_tiles * 3 * vision.image_size**2
    row_bytes = model.decoder.hidden_size * sizes.activation_bytes
    graph_bytes = count * _GRAPH_BYTES + shared + rows * row_bytes + pixel_bytes
    return replace(workspace, num_graphs=count, graph_bytes=graph_bytes)


def _layer_elements(model: DecoderConfig) -> int:
    """Numbers that a block holds for a token at a time, were none of them freed before its end."""
    n, wide = model.hidden_size, model.intermediate_size
    q_size, kv_size = (h * model.head_dim for h in (model.num_heads, model.num_kv_heads))
    attention = (q_size + 2 * kv_size) + q_size + 2 * model.head_dim  # qkv, attended, the angles
    lora = 0 if model.lora is None else 2 * wide  # the rows of pictures, before and after
    return 5 * n + attention + 3 * wide + lora  # 5: x, residual, normed, the picture's, the last
