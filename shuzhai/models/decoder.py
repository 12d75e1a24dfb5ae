"""The one text decoder: InternLM2 and Llama differ by numbers and by the names of their tensors.

It knows nothing of checkpoints (`models/weights.py`) nor of requests: tokens in, hidden rows out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from shuzhai.config import DecoderConfig
from shuzhai.kernels.base import Kernels
from shuzhai.layers import GatedFeedForward, Linear, PagedAttention, PartialLora, RMSNorm, Rotary
from shuzhai.step import KVPages, StepInput


def decoder_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a decoder by its own name here, with its shape.

    qkv holds the rows of all query heads, then of all keys, then of all values; gate_up those of
    the gate, then of up. A partial LoRA's tensors are those of each linear layer of the original.
    """
    n, wide, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    q_size, kv_size = (h * config.head_dim for h in (config.num_heads, config.num_kv_heads))
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocab, n), "norm": (n,)}
    if not config.tie_word_embeddings:
        shapes["head"] = (vocab, n)
    for i in range(config.num_layers):
        layer = {
            "attention_norm": (n,),
            "qkv": (q_size + 2 * kv_size, n),
            "out": (n, q_size),
            "ffn_norm": (n,),
            "gate_up": (2 * wide, n),
            "down": (n, wide),
        }
        if config.attention_bias:
            layer |= {"qkv_bias": (q_size + 2 * kv_size,), "out_bias": (n,)}
        for name, out, width, rank in _lora_parts(config):
            layer |= {f"{name}_lora_down": (rank, width), f"{name}_lora_up": (out, rank)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def _lora_parts(config: DecoderConfig) -> list[tuple[str, int, int, int]]:
    """(name, outputs, inputs, rank) of each partial LoRA of a block."""
    if config.lora is None:
        return []
    n, wide, ranks = config.hidden_size, config.intermediate_size, config.lora
    q_size, kv_size = (h * config.head_dim for h in (config.num_heads, config.num_kv_heads))
    return [
        ("qkv", q_size + 2 * kv_size, n, ranks.qkv),
        ("out", n, q_size, ranks.out),
        ("gate", wide, n, ranks.gate),
        ("up", wide, n, ranks.up),
        ("down", n, wide, ranks.down),
    ]


class _Layer:
    """One block: attention and a gated feed-forward, each behind its norm."""

    def __init__(
        self, config: DecoderConfig, kernels: Kernels, weights: Mapping[str, Tensor], prefix: str
    ) -> None:
        def linear(name: str, lora: Mapping[str, int] | None = None) -> Linear:
            """lora: names of its partial LoRAs, with the place of each among the outputs."""
            adapter = None
            if config.lora is not None:
                parts = (lora or {name: 0}).items()
                adapter = PartialLora(
                    kernels,
                    [
                        (
                            weights[f"{prefix}{part}_lora_down"],
                            weights[f"{prefix}{part}_lora_up"],
                            at,
                        )
                        for part, at in parts
                    ],
                )
            bias = weights.get(f"{prefix}{name}_bias")
            return Linear(kernels, weights[prefix + name], bias, adapter)

        def norm(name: str) -> RMSNorm:
            return RMSNorm(kernels, weights[prefix + name], config.rms_norm_eps)

        self._attention = PagedAttention(
            kernels, config, norm("attention_norm"), linear("qkv"), linear("out")
        )
        gate_up = linear("gate_up", {"gate": 0, "up": config.intermediate_size})
        self._feed_forward = GatedFeedForward(kernels, norm("ffn_norm"), gate_up, linear("down"))

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        pages: KVPages,
        step: StepInput,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(x, residual) [T, n] -> the same pair one block later, of these rows (None: of all);
        their sum is the hidden state."""
        x, residual = self._attention(x, residual, cos, sin, pages, step, rows)
        return self._feed_forward(x, residual, step.image_rows if rows is None else None)


class Decoder:
    """Embedding, blocks, final norm, head; `weights` as decoder_shapes names and shapes them."""

    def __init__(
        self, config: DecoderConfig, kernels: Kernels, weights: Mapping[str, Tensor]
    ) -> None:
        self.config = config
        self._embedding = weights["embedding"]
        self.activation_dtype = kernels.activation_dtype(self._embedding.dtype)
        self._rotary = Rotary(config, kernels, self._embedding.device)
        self._layers = [
            _Layer(config, kernels, weights, f"layers.{i}.") for i in range(config.num_layers)
        ]
        self._norm = RMSNorm(kernels, weights["norm"], config.rms_norm_eps)
        self._kernels = kernels
        self._head = weights.get("head", self._embedding)

    def prepared(self, step: StepInput, pages: KVPages) -> StepInput:
        """A step on the host, with what kernels work out on the host, once for all layers; pages:
        of any layer."""
        lengths = step.seq_lens[: step.num_decodes]
        parts = self._kernels.decode_parts(lengths, self.config, pages, self.activation_dtype)
        return replace(step, parts=parts)

    def __call__(self, step: StepInput, kv: Sequence[KVPages]) -> Tensor:
        """Run one step, which was prepared: hidden states [R, n] of the step's logit rows. Fills
        the pages of kv."""
        x = self._kernels.embed(step.token_ids, self._embedding, step.last_ids, step.sources)
        x = x.to(self.activation_dtype)
        if step.image_rows is not None and step.image_states is not None:
            x[step.image_rows] = step.image_states.to(x.dtype)
        cos, sin = self._rotary(step)
        residual: Tensor | None = None
        # What the last block makes of other rows than these, nobody reads.
        is_whole = len(step.logit_rows) == len(x)
        wanted = None if is_whole or step.image_rows is not None else step.logit_rows
        for layer, pages in zip(self._layers, kv, strict=True):
            rows = wanted if layer is self._layers[-1] else None
            x, residual = layer(x, residual, cos, sin, pages, step, rows)
        assert residual is not None, "a decoder has at least one layer"
        if wanted is None and not is_whole:
            x, residual = x[step.logit_rows], residual[step.logit_rows]
        return self._norm(x, residual)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, n] -> [R, vocab] float32."""
        return self._kernels.head(hidden, self._head)
