"""Bytes that must be read and operations that must be done, whoever does them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shuzhai.bench.machine import Limits
from shuzhai.config import ModelConfig
from shuzhai.engine.engine import Engine
from shuzhai.models.weights import model_shapes


@dataclass(frozen=True, slots=True)
class Work:
    """Of one model, as an engine stores it.

    weight_bytes    that a step of text reads; parameters   that each token is multiplied by
    kv_token_bytes  of one token in the KV cache
    """

    model: ModelConfig
    limits: Limits
    weight_bytes: int
    parameters: int
    kv_token_bytes: int

    @classmethod
    def of(cls, engine: Engine, limits: Limits) -> Work:
        model = engine.model_config
        shapes = model_shapes(model)["decoder"]
        # The embedding is looked up, not read through; a tied one is read as the head. A partial
        # LoRA works for pictures only.
        unread = set() if model.decoder.tie_word_embeddings else {"embedding"}
        parameters = sum(
            math.prod(shape)
            for name, shape in shapes.items()
            if name not in unread and "_lora_" not in name
        )
        plan = engine.plan
        return cls(
            model,
            limits,
            parameters * engine.dtype.itemsize,
            parameters,
            plan.block_bytes // plan.block_size,
        )

    def decode_seconds(self, num_seqs: int, context: float) -> float:
        """At least, for one token of each of these sequences of so many tokens."""
        read = self.weight_bytes + num_seqs * context * self.kv_token_bytes
        return max(
            read / self.limits.read_bytes_per_s,
            2 * self.parameters * num_seqs / self.limits.flops_per_s,
        )

    def prefill_seconds(self, num_tokens: int, num_image_tokens: int = 0) -> float:
        """At least, for one prompt alone."""
        flops = prefill_flops(self.model, num_tokens, num_image_tokens)
        return max(
            flops / self.limits.flops_per_s, self.weight_bytes / self.limits.read_bytes_per_s
        )

    def encode_seconds(self, num_tiles: int) -> float:
        """At least, for the tower and the projector."""
        return encode_flops(self.model, num_tiles) / self.limits.flops_per_s

    def serve_seconds(self, lengths: list[tuple[int, int]], max_num_seqs: int) -> float:
        """At least, for requests of (prompt, answer) tokens that all come at once."""
        answers = sum(answer for _, answer in lengths)
        steps = max(max(answer for _, answer in lengths), answers / max_num_seqs)
        context = sum(answer * (prompt + answer / 2) for prompt, answer in lengths)
        read = steps * self.weight_bytes + context * self.kv_token_bytes
        flops = sum(prefill_flops(self.model, prompt, 0) for prompt, _ in lengths)
        flops += 2 * self.parameters * answers
        return max(read / self.limits.read_bytes_per_s, flops / self.limits.flops_per_s)


def prefill_flops(model: ModelConfig, num_tokens: int, num_image_tokens: int) -> float:
    """Operations of the decoder; the head works for the last position only."""
    decoder = model.decoder
    width = decoder.num_heads * decoder.head_dim
    total = 2.0 * num_tokens**2 * width * decoder.num_layers  # causal attention
    for name, shape in model_shapes(model)["decoder"].items():
        if len(shape) == 2 and name != "embedding":
            rows = num_image_tokens if "_lora_" in name else num_tokens
            total += 2 * math.prod(shape) * (1 if name == "head" else rows)
    return total


def encode_flops(model: ModelConfig, num_tiles: int) -> float:
    """Operations of the tower and the projector."""
    vision = model.vision
    assert vision is not None, "only models with a tower are asked"
    patches = vision.patches_per_side**2
    total = 4.0 * (patches + 1) ** 2 * vision.hidden_size * vision.num_layers  # attention
    for name, shape in model_shapes(model)["vision"].items():
        if len(shape) == 2 and name != "positions":
            rows = {"layers": patches + 1, "patch": patches}.get(
                name.split(".")[0], vision.tokens_per_tile
            )
            total += 2 * math.prod(shape) * rows
    return num_tiles * total
