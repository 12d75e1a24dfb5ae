"""Runs steps on a device: it owns the model and the KV pages, and knows no request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from shuzhai.checkpoint import CheckpointConfig
from shuzhai.config import EngineConfig, ModelConfig
from shuzhai.engine.kv_cache import allocate_kv_cache
from shuzhai.engine.memory import ElementSizes, MemoryPlan, plan_memory
from shuzhai.kernels.cpu import CpuKernels
from shuzhai.models.decoder import Decoder
from shuzhai.models.internvl import InternVLEncoder
from shuzhai.models.weights import (
    Weights,
    load_weights,
    num_parameters,
    random_weights,
    read_model_config,
)
from shuzhai.models.xcomposer2 import XComposer2Encoder
from shuzhai.step import KVPages, StepInput

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


_SMALL_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Runner:
    """A model with its cache, ready to run steps. encoder: None for a model that reads text only"""

    model: ModelConfig
    decoder: Decoder
    encoder: InternVLEncoder | XComposer2Encoder | None
    kv: list[KVPages]
    plan: MemoryPlan
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(
        cls,
        checkpoint: CheckpointConfig,
        config: EngineConfig,
        folder: Path,
        progress: Callable[[float], None] | None = None,
    ) -> Runner:
        """Plan the memory, then load the weights of a checkpoint folder.

        progress is called with the share of the weights loaded, 0 to 1.
        """
        model = read_model_config(folder, checkpoint)

        def load(dtype: torch.dtype, device: torch.device) -> Weights:
            total = dtype.itemsize * num_parameters(model)
            report = None if progress is None else (lambda done: progress(done / total))
            return load_weights(folder, model, dtype, device, report)

        return cls._build(model, config, load)

    @classmethod
    def random(cls, model: ModelConfig, config: EngineConfig) -> Runner:
        """Random weights, to measure speed."""
        return cls._build(model, config, partial(random_weights, model))

    @classmethod
    def _build(
        cls,
        model: ModelConfig,
        config: EngineConfig,
        load: Callable[[torch.dtype, torch.device], Weights],
    ) -> Runner:
        device, dtype = torch.device("cpu"), choose_dtype(model, config)
        kernels = CpuKernels()
        plan = plan_memory(
            model,
            config,
            available_bytes=available_bytes(),
            sizes=element_sizes(model, config),
        )
        weights = load(dtype, device)
        decoder = Decoder(model.decoder, kernels, weights["decoder"])
        encoder: InternVLEncoder | XComposer2Encoder | None = None
        if model.vision is not None:
            family = InternVLEncoder if model.vision.family == "internvl" else XComposer2Encoder
            encoder = family(model.vision, kernels, weights["vision"])
        kv = allocate_kv_cache(model.decoder, plan.num_blocks, plan.block_size, dtype, device)
        return cls(model, decoder, encoder, kv, plan, device, dtype)

    def run(self, step: StepInput) -> Tensor:
        """Hidden states [R, n] of the step's logit rows."""
        return self.decoder(step, self.kv)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, n] -> [R, vocab] float32, a tensor of the caller's own."""
        return self.decoder.logits(hidden)

    def encode(self, pixels: np.ndarray) -> Tensor:
        """Tiles [N, size, size, 3] uint8, at most plan.tiles_per_batch -> rows of the decoder."""
        assert self.encoder is not None, "only models with a tower are given pictures"
        # A copy: the tiles are read-only, which a tensor cannot be.
        rows = self.encoder(torch.from_numpy(pixels.copy()).to(self.device))
        return rows.to(self.decoder.activation_dtype)


def available_bytes() -> int:
    """What the device has free now."""
    return psutil.virtual_memory().available


def element_sizes(model: ModelConfig, config: EngineConfig) -> ElementSizes:
    """Sizes as this runner would load the model."""
    dtype = choose_dtype(model, config)
    activation = CpuKernels().activation_dtype(dtype)
    return ElementSizes(dtype.itemsize * num_parameters(model), dtype.itemsize, activation.itemsize)


def choose_dtype(model: ModelConfig, config: EngineConfig) -> torch.dtype:
    """Of weights and cache. On a CPU, "auto" is float32 for small models, where its exactness costs
    little, and for those that were shipped in it; bfloat16 halves the memory of the others."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    small = 4 * num_parameters(model) <= _SMALL_BYTES
    return torch.float32 if small or model.decoder.dtype == "float32" else torch.bfloat16
