"""What an engine takes beside weights, pictures and KV cache, from the shapes of a model. Pure; no
torch."""

from __future__ import annotations

from dataclasses import dataclass

from shuzhai.config import DecoderConfig, EngineConfig

# What a CUDA context takes with the kernels of a library or two, where it was not measured: on
# data-centre cards, and on others.
CONTEXT_BYTES = 500 * 2**20
SMALL_CONTEXT_BYTES = 300 * 2**20
_SMALL_CARD_BYTES = 26 * 2**30
# cuBLAS takes 32 MiB for each of two streams, that of the graphs and the plain one; attention that
# is split over a sequence as much for its parts.
_LIBRARY_BYTES = 96 * 2**20
# A recorded decode step: some 200 launches with their parameters, rounded up by the driver.
_GRAPH_BYTES = 5 * 2**20
_MOST_GRAPH_SEQS = 512
# Recorded steps with chunks of prompts: sequences of one token, chunks, and tokens of chunks.
_MIXED_SEQS = (1, 16, 64)
_MIXED_CHUNKS = 32
_MIXED_TOKENS = (64, 256, 512, 1024)
# Those that are as full as a step may be, which many prompts at once bring.
_FULL_SEQS = (16, 64, 256)
_FULL_CHUNKS = 64
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
    graph_bytes       of num_graphs recorded steps, with the memory that they share
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
    same, and few sizes: what is left empty costs less there than launches do."""
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, _MOST_GRAPH_SEQS + 1, 32)]
    most = min(max_num_seqs, _MOST_GRAPH_SEQS)
    sizes = [GraphSize(n) for n in (*(n for n in steps if n < most), most)]
    mixed = [n for n in _MIXED_SEQS if n < most] + [most]
    for num_tokens in _MIXED_TOKENS:
        if num_tokens <= max_num_batched_tokens:
            sizes += [GraphSize(n, min(_MIXED_CHUNKS, most), num_tokens) for n in mixed]
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


def is_worth_its_places(size: GraphSize, num_tokens: int) -> bool:
    """A recorded step is faster than launches one by one for so many tokens of chunks: not where an
    eighth of a large one would stay empty."""
    return size.num_tokens <= _MIXED_TOKENS[-1] or 8 * num_tokens >= 7 * size.num_tokens


def workspace_of(model: DecoderConfig, config: EngineConfig, sizes: ElementSizes) -> Workspace:
    """All but weights, pictures and KV cache; `config` is resolved for the device."""
    num_seqs, num_tokens = config.max_num_seqs, config.max_num_batched_tokens
    assert num_seqs is not None, "the config is resolved"
    assert num_tokens is not None, "the config is resolved"
    logit_rows = min(num_seqs, num_tokens)
    copies = 3 * min(logit_rows, SAMPLE_ROWS)  # adjusted, probabilities, and their running sum
    logits = (logit_rows + copies) * model.vocab_size * 4
    if not sizes.is_gpu:
        widest = 3 * model.intermediate_size + 4 * model.hidden_size
        return Workspace(num_tokens * widest * sizes.activation_bytes, logits)
    graphs = graph_sizes(num_seqs, num_tokens)
    token_bytes = _layer_elements(model) * sizes.activation_bytes
    activations = num_tokens * token_bytes
    recorded = max(size.num_seqs + size.num_tokens for size in graphs) * token_bytes
    # What each hands on.
    rows = sum(size.num_seqs + size.num_chunks for size in graphs)
    recorded += rows * model.hidden_size * sizes.activation_bytes
    margin = sizes.weight_bytes // _MARGIN_WEIGHT_SHARE + activations // _MARGIN_ACTIVATION_SHARE
    return Workspace(
        activation_bytes=activations,
        sampler_bytes=max(0, logits - activations),
        library_bytes=_LIBRARY_BYTES,
        num_graphs=len(graphs),
        graph_bytes=len(graphs) * _GRAPH_BYTES + recorded,
        context_bytes=sizes.context_bytes,
        margin_bytes=_MARGIN_BYTES + margin,
    )


def _layer_elements(model: DecoderConfig) -> int:
    """Numbers that a block holds for a token at a time, were none of them freed before its end."""
    n, wide = model.hidden_size, model.intermediate_size
    q_size, kv_size = (h * model.head_dim for h in (model.num_heads, model.num_kv_heads))
    attention = (q_size + 2 * kv_size) + q_size + 2 * model.head_dim  # qkv, attended, the angles
    lora = 0 if model.lora is None else 2 * wide  # the rows of pictures, before and after
    return 5 * n + attention + 3 * wide + lora  # 5: x, residual, normed, the picture's, the last
