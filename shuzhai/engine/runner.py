"""Runs steps on a device: it owns the model and the KV pages, and knows no request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from shuzhai.checkpoint import CheckpointConfig
from shuzhai.config import EngineConfig, ModelConfig
from shuzhai.engine.graphs import StepGraphs
from shuzhai.engine.kv_cache import allocate_kv_cache
from shuzhai.engine.memory import MemoryPlan, fit_plan, plan_memory
from shuzhai.engine.tower_graphs import TowerGraphs
from shuzhai.engine.transfer import step_to_device
from shuzhai.engine.warmup import (
    HOLES_BYTES,
    allocated_bytes,
    measure,
    measure_launch_tokens,
    run_largest,
)
from shuzhai.engine.workspace import (
    ElementSizes,
    GraphSize,
    context_estimate,
    full_step_seqs,
    graph_sizes,
    graph_tiles,
    with_recorded,
    worth_recording,
)
from shuzhai.formats.kv import head_bytes
from shuzhai.kernels.base import Kernels
from shuzhai.kernels.choose import choose_device, make_kernels
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
# Of the time to load; the rest warms a GPU up.
_WEIGHTS_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Runner:
    """A model with its cache, ready to run steps. encoder: None for a model that reads text only.

    last_ids  [max_num_seqs] int64 on the device: the engine writes what a step sampled
    graphs    of steps, on a GPU
    tower     of batches of tiles, on a GPU
    """

    model: ModelConfig
    decoder: Decoder
    encoder: InternVLEncoder | XComposer2Encoder | None
    kernels: Kernels
    kv: list[KVPages]
    plan: MemoryPlan
    device: torch.device
    dtype: torch.dtype
    last_ids: Tensor
    graphs: StepGraphs | None = None
    tower: TowerGraphs | None = None

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

        def load(
            dtype: torch.dtype, device: torch.device, report: Callable[[float], None]
        ) -> Weights:
            total = dtype.itemsize * num_parameters(model)
            return load_weights(folder, model, dtype, device, lambda done: report(done / total))

        return cls._build(model, config, load, progress)

    @classmethod
    def random(cls, model: ModelConfig, config: EngineConfig) -> Runner:
        """Random weights, to measure speed."""

        def load(dtype: torch.dtype, device: torch.device, _: Callable[[float], None]) -> Weights:
            return random_weights(model, dtype, device)

        return cls._build(model, config, load, None)

    @classmethod
    @torch.inference_mode()
    def _build(
        cls,
        model: ModelConfig,
        config: EngineConfig,
        load: Callable[[torch.dtype, torch.device, Callable[[float], None]], Weights],
        progress: Callable[[float], None] | None,
    ) -> Runner:
        report = progress or (lambda _: None)
        device = choose_device(config.device)
        dtype = choose_dtype(model, config, device)
        kernels = make_kernels(device)
        sizes = sizes_here(model, config)
        # The CUDA context, which a plan counts in, has been taken already.
        available = available_bytes(device) + sizes.context_bytes
        plan = plan_memory(model, config, available_bytes=available, sizes=sizes)
        share = 1.0 if device.type == "cpu" else _WEIGHTS_SHARE
        others_bytes = allocated_bytes(device)
        weights = load(dtype, device, lambda done: report(done * share))
        decoder = Decoder(model.decoder, kernels, weights["decoder"])
        encoder: InternVLEncoder | XComposer2Encoder | None = None
        if model.vision is not None:
            family = InternVLEncoder if model.vision.family == "internvl" else XComposer2Encoder
            encoder = family(model.vision, kernels, weights["vision"])
        last_ids = torch.zeros(plan.max_num_seqs, dtype=torch.int64, device=device)

        def allocate(num_blocks: int) -> list[KVPages]:
            return allocate_kv_cache(
                model.decoder, num_blocks, plan.block_size, dtype, device, config.kv_bits
            )

        runner = cls(model, decoder, encoder, kernels, [], plan, device, dtype, last_ids)
        if device.type == "cpu":
            return replace(runner, kv=allocate(plan.num_blocks))
        with runner.current():
            measured, launch_tokens = runner._measure(allocate, sizes.context_bytes)
            steps = worth_recording(
                graph_sizes(plan.max_num_seqs, plan.max_num_batched_tokens), launch_tokens
            )
            workspace = with_recorded(plan.workspace, model, steps, sizes)
            plan = replace(plan, workspace=workspace)
            plan = fit_plan(plan, model, config, measured - others_bytes)
            runner = replace(runner, plan=plan, kv=allocate(plan.num_blocks))
            runner = runner._with_graphs(
                steps, launch_tokens, lambda done: report(share + done * (1 - share))
            )
            runner._run_largest(runner.kv)  # takes hold of the memory that was measured
            return runner

    def _measure(
        self, allocate: Callable[[int], list[KVPages]], context_bytes: int
    ) -> tuple[int, int]:
        """What the largest steps take beside the KV cache, in bytes, weights included; and
        measure_launch_tokens."""
        plan, kv = self.plan, list[KVPages]()
        tokens = min(plan.max_num_batched_tokens, plan.num_tokens)
        num_blocks = -(-tokens // plan.block_size)

        def run() -> None:
            kv.extend(allocate(num_blocks))
            self._run_largest(kv)

        peak = measure(run, self.device, context_bytes)
        launch_tokens = measure_launch_tokens(self.decoder, kv, plan, self.device)
        kv.clear()  # else its memory would be kept, too
        torch.cuda.empty_cache()
        # Rows of pictures are taken as they come, and steps of many sizes leave holes.
        later = plan.picture_rows * self.model.decoder.hidden_size * self.dtype.itemsize
        return peak - num_blocks * plan.block_bytes + later + HOLES_BYTES, launch_tokens

    def _run_largest(self, kv: list[KVPages]) -> None:
        """The largest step of each kind, over pages that hold nothing yet, and batch of tiles: all
        launched one by one, whether they are recorded or not."""
        run_largest(self.decoder, self.kernels, kv, self.plan, self.device)
        if self.encoder is not None:
            self._encode_plainly(self._empty_tiles(self.plan.tiles_per_batch))
            torch.cuda.synchronize(self.device)

    def _with_graphs(
        self, sizes: list[GraphSize], launch_tokens: int, progress: Callable[[float], None]
    ) -> Runner:
        if not self.kernels.can_record(self.model.decoder, self.kv[0], self.dtype):
            return self
        num_pages = -(-self.plan.max_model_len // self.plan.block_size)
        tiles, pool = graph_tiles(self.plan.tiles_per_batch), torch.cuda.graph_pool_handle()
        share = len(sizes) / (len(sizes) + len(tiles))
        # Steps first: their tensors are the largest, as a rule, and the memory of those is cut up
        # for smaller ones, but never joined for larger ones.
        graphs = StepGraphs(
            self.decoder, self.kv, sizes, num_pages, self.last_ids, pool, launch_tokens,
            lambda done: progress(share * done),
        )  # fmt: skip
        tower: TowerGraphs | None = None
        if self.model.vision is not None:
            num_rows = len(tiles) * self.model.vision.tokens_per_tile
            rows = torch.empty(
                (num_rows, self.model.decoder.hidden_size),
                dtype=self.decoder.activation_dtype,
                device=self.device,
            )
            tower = TowerGraphs(
                self._encode_plainly, self._empty_tiles(len(tiles)), rows, pool,
                lambda done: progress(share + (1 - share) * done),
            )  # fmt: skip
            tower.rehearse()
        graphs.rehearse()
        return replace(self, graphs=graphs, tower=tower)

    def current(self) -> AbstractContextManager[object]:
        """Within it the runner's GPU is the one that kernels are launched on."""
        return nullcontext() if self.device.type == "cpu" else torch.cuda.device(self.device)

    @property
    def full_step_seqs(self) -> list[int]:
        """Places for sequences of one token in the recorded steps that are full."""
        if self.graphs is None:
            return []
        full = self.plan.max_num_batched_tokens
        recorded = {s.num_seqs for s in self.graphs.sizes if s.num_seqs + s.num_tokens == full}
        return [n for n in full_step_seqs(self.plan.max_num_seqs, full) if n in recorded]

    @property
    def works_ahead(self) -> bool:
        """A step can be started before the one before it has ended."""
        return self.device.type != "cpu"

    def run(self, step: StepInput) -> Tensor:
        """Hidden states [R, n] of the logit rows of a step on the host. What a graph makes is
        overwritten by the next step."""
        if self.graphs is not None and (hidden := self.graphs.run(step)) is not None:
            return hidden
        prepared = self.decoder.prepared(step, self.kv[0])
        return self.decoder(step_to_device(prepared, self.device), self.kv)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, n] -> [R, vocab] float32, a tensor of the caller's own."""
        return self.decoder.logits(hidden)

    def encode(self, parts: Sequence[np.ndarray]) -> Tensor:
        """Tiles [N, size, size, 3] uint8, at most plan.tiles_per_batch in all -> rows of the
        decoder [N * tokens_per_tile, n], to be copied before the next call: what a graph makes is
        overwritten by it."""
        count, on_cpu = sum(map(len, parts)), self.device.type == "cpu"
        host = torch.empty((count, *parts[0].shape[1:]), dtype=torch.uint8, pin_memory=not on_cpu)
        np.concatenate(parts, out=host.numpy())
        if self.tower is not None and (rows := self.tower.run(host)) is not None:
            return rows
        return self._encode_plainly(host if on_cpu else host.to(self.device, non_blocking=True))

    def _encode_plainly(self, tiles: Tensor) -> Tensor:
        """The same of tiles on the device, launched one by one."""
        assert self.encoder is not None, "only models with a tower are given pictures"
        return self.encoder(tiles).to(self.decoder.activation_dtype)

    def _empty_tiles(self, count: int) -> Tensor:
        """[count, size, size, 3] uint8 on the device"""
        assert self.model.vision is not None, "the model has a tower"
        side = self.model.vision.image_size
        return torch.zeros((count, side, side, 3), dtype=torch.uint8, device=self.device)


def available_bytes(device: torch.device) -> int:
    """What the device has free now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def element_sizes(
    model: ModelConfig, config: EngineConfig, dtype: torch.dtype, device_bytes: int | None
) -> ElementSizes:
    """Sizes as this runner would load the model. device_bytes: of the GPU; None: on a CPU."""
    is_gpu, head_dim = device_bytes is not None, model.decoder.head_dim
    activation = dtype if is_gpu else CpuKernels().activation_dtype(dtype)
    bits = config.kv_bits or 8 * dtype.itemsize
    return ElementSizes(
        weight_bytes=dtype.itemsize * num_parameters(model),
        kv_head_bytes=head_bytes(bits, head_dim),
        activation_bytes=activation.itemsize,
        is_gpu=is_gpu,
        context_bytes=context_estimate(device_bytes) if is_gpu else 0,
        smaller_kv=tuple((f"int{b}", head_bytes(b, head_dim)) for b in (8, 4) if b < bits),
    )


def sizes_here(model: ModelConfig, config: EngineConfig) -> ElementSizes:
    """The same for the device that the config names."""
    device = choose_device(config.device)
    device_bytes = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
    return element_sizes(model, config, choose_dtype(model, config, device), device_bytes)


def choose_dtype(model: ModelConfig, config: EngineConfig, device: torch.device) -> torch.dtype:
    """Of weights and cache. On a CPU, "auto" is float32 for small models, where its exactness costs
    little, and for those that were shipped in it; bfloat16 halves the memory of the others. A GPU
    that has no bfloat16 gets float16."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    if device.type == "cuda":
        return (
            torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        )
    small = 4 * num_parameters(model) <= _SMALL_BYTES
    return torch.float32 if small or model.decoder.dtype == "float32" else torch.bfloat16
