"""Runs steps on a device: it owns the model and the KV pages, and knows no request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from shuzhai.config import DecoderConfig, EngineConfig
from shuzhai.engine.kv_cache import allocate_kv_cache
from shuzhai.engine.memory import MemoryPlan, plan_memory
from shuzhai.kernels.cpu import CpuKernels
from shuzhai.models.decoder import Decoder, num_parameters
from shuzhai.models.weights import load_decoder, random_decoder
from shuzhai.step import KVPages, StepInput

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


_SMALL_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Runner:
    """A model with its cache, ready to run steps."""

    decoder: Decoder
    kv: list[KVPages]
    plan: MemoryPlan
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(
        cls,
        model: DecoderConfig,
        config: EngineConfig,
        folder: Path | None,
        progress: Callable[[float], None] | None = None,
    ) -> Runner:
        """Plan the memory, then load the weights; folder None: random weights, to measure speed.

        progress is called with the share of the weights loaded, 0 to 1.
        """
        device, dtype = torch.device("cpu"), choose_dtype(model, config)
        kernels = CpuKernels()
        weight_bytes = dtype.itemsize * num_parameters(model)
        plan = plan_memory(
            model,
            config,
            available_bytes=psutil.virtual_memory().available,
            weight_bytes=weight_bytes,
            kv_element_bytes=dtype.itemsize,
            activation_bytes=kernels.activation_dtype(dtype).itemsize,
        )
        if folder is None:
            weights = random_decoder(model, dtype, device)
        else:
            report = None if progress is None else (lambda done: progress(done / weight_bytes))
            weights = load_decoder(folder, model, dtype, device, report)
        kv = allocate_kv_cache(model, plan.num_blocks, plan.block_size, dtype, device)
        return cls(Decoder(model, kernels, weights), kv, plan, device, dtype)

    def run(self, step: StepInput) -> Tensor:
        """Hidden states [R, n] of the step's logit rows."""
        return self.decoder(step, self.kv)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, n] -> [R, vocab] float32, a tensor of the caller's own."""
        return self.decoder.logits(hidden)


def choose_dtype(model: DecoderConfig, config: EngineConfig) -> torch.dtype:
    """Of weights and cache. On a CPU, "auto" is float32 for small models, where its exactness costs
    little, and for those that were shipped in it; bfloat16 halves the memory of the others."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    small = 4 * num_parameters(model) <= _SMALL_BYTES
    return torch.float32 if small or model.dtype == "float32" else torch.bfloat16
