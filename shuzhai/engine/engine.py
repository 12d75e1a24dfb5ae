"""The engine: requests in, tokens out, one step at a time.

It knows token ids and tiles of pixels only: no text, no template, no stop string, no socket. It is
not thread-safe: one thread owns it. Two engines may live in one process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shuzhai.checkpoint import CheckpointConfig
from shuzhai.config import EngineConfig, ModelConfig
from shuzhai.engine.batch import Batch, BatchBuilder, PromptRows
from shuzhai.engine.block_pool import BlockPool
from shuzhai.engine.check import check_request
from shuzhai.engine.memory import (
    MemoryNeed,
    MemoryPlan,
    allowed_length,
    memory_budget,
    memory_need,
)
from shuzhai.engine.picture_pool import Picture, PicturePool
from shuzhai.engine.request import FinishReason, Request, StepOutput, TokenLogprob
from shuzhai.engine.runner import Runner, available_bytes, sizes_here
from shuzhai.engine.sampler import LogprobReport, Sampled, sample
from shuzhai.engine.scheduler import Scheduled, Scheduler
from shuzhai.engine.sequence import Sequence, Status
from shuzhai.engine.transfer import to_device
from shuzhai.engine.workspace import LOGIT_ROWS, context_estimate
from shuzhai.errors import (
    OverloadedError,
    ShuzhaiError,
)
from shuzhai.kernels.choose import choose_device
from shuzhai.models.weights import read_model_config


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start, and what is in use now."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    num_cached_prompt_tokens: int
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class EngineForecast:
    """What is known of an engine before it is loaded; max_model_len if memory does not limit it."""

    max_model_len: int
    need: MemoryNeed


def forecast(checkpoint: CheckpointConfig, config: EngineConfig, folder: Path) -> EngineForecast:
    """For a checkpoint folder; of its weights, the shapes are read at most."""
    model, config = read_model_config(folder, checkpoint), resolve(config)
    need = memory_need(model, config, sizes_here(model, config))
    return EngineForecast(allowed_length(model.decoder, config), need)


def resolve(config: EngineConfig) -> EngineConfig:
    """With what is left to the device filled in."""
    return config.resolved(choose_device(config.device).type)


def budget_bytes(config: EngineConfig) -> int:
    """What the engines of this process may take together, as the device is now."""
    device = choose_device(config.device)
    if device.type == "cpu":
        return memory_budget(config, available_bytes(device))
    # The CUDA context has been taken already, and plans count it in.
    available = available_bytes(device) + context_estimate(torch.cuda.mem_get_info(device)[1])
    return memory_budget(config, available, is_gpu=True)


@dataclass(frozen=True, slots=True, eq=False)
class _StartedStep:
    """A step whose tokens have not been read.

    entries  of `scheduled` that sample, in the order of `sampled`
    prompts  log-probabilities and logits of prompt positions, by entry
    """

    scheduled: list[Scheduled]
    entries: list[int]
    sampled: Sampled | None
    prompts: dict[int, tuple[tuple[TokenLogprob, ...], Tensor | None]]


class Engine:
    """Continuous batching over one model."""

    def __init__(self, runner: Runner, config: EngineConfig) -> None:
        """config: resolved"""
        model = runner.model.decoder
        self.model_config = runner.model
        self.config = config
        self._runner = runner
        self._scheduler = Scheduler(
            BlockPool(runner.plan.num_blocks, runner.plan.block_size),
            PicturePool(runner.plan.picture_rows),
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
            decode_places=runner.full_step_seqs,
        )
        dynamic = model.rope_scaling is not None and model.rope_scaling.kind == "dynamic"
        self._rope_limit = model.max_position_embeddings if dynamic else None
        self._batches = BatchBuilder(runner.plan.block_size, self._rope_limit)
        self._sequences: dict[str, Sequence] = {}
        self._num_cached_tokens = 0
        self._started: _StartedStep | None = None

    @classmethod
    def load(
        cls,
        checkpoint: CheckpointConfig,
        config: EngineConfig,
        folder: Path,
        progress: Callable[[float], None] | None = None,
    ) -> Engine:
        """Load a checkpoint folder; progress is called with the share that is loaded, 0 to 1."""
        config = resolve(config)
        return cls(Runner.load(checkpoint, config, folder, progress), config)

    @classmethod
    def random(cls, model: ModelConfig, config: EngineConfig) -> Engine:
        """Random weights, to measure speed."""
        config = resolve(config)
        return cls(Runner.random(model, config), config)

    @property
    def plan(self) -> MemoryPlan:
        return self._runner.plan

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the KV cache."""
        return self._runner.dtype

    @property
    def max_model_len(self) -> int:
        return self._runner.plan.max_model_len

    @property
    def has_work(self) -> bool:
        return bool(self._sequences) or self._started is not None

    def check(self, request: Request) -> None:
        """Raise InvalidRequestError if the request can never run. Any thread may ask."""
        check_request(request, self.model_config, self.plan)

    def add(self, request: Request) -> None:
        """Queue a request that `check` has passed."""
        assert request.id not in self._sequences, "request ids are unique"
        length = len(request.token_ids)
        stretched = self._rope_limit is not None and length > self._rope_limit
        sequence = Sequence(
            request, max_model_len=self.max_model_len, rope_salt=length if stretched else 0
        )
        self._sequences[request.id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """End a request at any stage and free its blocks; unknown and finished ids are no error."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.abort(sequence)

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Start one step and read one: the same on a CPU; else the one before, so that the device
        works while the host does. What each request got from the step that was read."""
        with self._runner.current():
            return self._step()

    def _step(self) -> list[StepOutput]:
        outputs: list[StepOutput] = []
        scheduled = self._scheduler.schedule()
        if scheduled is None:
            outputs += self._read()
            scheduled = self._scheduler.schedule()
            assert scheduled is not None, "all steps have been read"
        failed = self._encode_pictures()
        outputs += [_failure(sequence, error) for sequence, error in failed.items()]
        if failed:
            scheduled = [e for e in scheduled if e[0] not in failed]
        started = self._start(scheduled)
        if self._started is not None:
            outputs += self._read()
        self._started = started
        if started is not None and not self._runner.works_ahead:
            outputs += self._read()
        return outputs

    def _start(self, scheduled: list[Scheduled]) -> _StartedStep | None:
        """Everything up to the sampled tokens, without waiting for the device."""
        if not scheduled:
            return None
        batch = self._batches.build(scheduled, self._runner.last_ids)
        hidden = self._runner.run(batch.step)
        prompts = {
            rows.entry: self._prompt_output(scheduled[rows.entry][0], rows, hidden)
            for rows in batch.prompt_rows
        }
        sampled = self._sample(batch, [scheduled[i][0] for i in batch.entries], hidden)
        self._scheduler.begin(scheduled)
        return _StartedStep(scheduled, batch.entries, sampled, prompts)

    def _read(self) -> list[StepOutput]:
        """Wait for the step that was started, and take in its tokens."""
        started, self._started = self._started, None
        assert started is not None, "there is one"
        scheduled = started.scheduled
        tokens: list[int | None] = [None] * len(scheduled)
        reports: dict[int, TokenLogprob] = {}
        if started.sampled is not None:
            ids, given = started.sampled.read()
            for i, token in zip(started.entries, ids, strict=True):
                tokens[i] = token
            reports = {started.entries[i]: report for i, report in given.items()}
        reasons = self._scheduler.update(scheduled, tokens)
        outputs: list[StepOutput] = []
        running = Status.RUNNING
        for i, (entry, token, reason) in enumerate(zip(scheduled, tokens, reasons, strict=True)):
            # The others were aborted, or finished by the step before.
            if reason is not None or entry[0].status is running:
                report, prompt = reports.get(i), started.prompts.get(i)
                outputs.append(self._output(entry, token, report, reason, prompt))
        return outputs

    def _encode_pictures(self) -> dict[Sequence, ShuzhaiError]:
        """Encode one batch of the tiles that are waited for; the sequences that failed by it."""
        tiles = self._scheduler.pictures.next_tiles(self._runner.plan.tiles_per_batch)
        return self._encode(tiles) if tiles else {}

    def _encode(self, tiles: list[tuple[Picture, int, int]]) -> dict[Sequence, ShuzhaiError]:
        try:
            parts = [p.pixels[first:end] for p, first, end in tiles if p.pixels is not None]
            rows = self._runner.encode(parts)
            for picture, _, _ in tiles:
                if picture.rows is None:
                    picture.rows = rows.new_empty(picture.num_rows, rows.shape[1])
        # What PyTorch raises, for want of memory above all: nobody else's request is to suffer.
        except (MemoryError, RuntimeError) as error:
            if len(tiles) > 1:  # one by one: only those that really do not fit shall fail
                return {s: e for each in tiles for s, e in self._encode([each]).items()}
            logging.getLogger(__name__).exception("a picture could not be encoded")
            return dict.fromkeys(self._fail_holders(tiles[0][0]), _encoding_error(error))
        done = 0
        for picture, _, end in tiles:
            assert picture.rows is not None, "made above"
            at = picture.num_ready_rows
            picture.advance(end)
            count = picture.num_ready_rows - at
            picture.rows[at : at + count] = rows[done : done + count]
            done += count
        return {}

    def _fail_holders(self, picture: Picture) -> list[Sequence]:
        holders = [s for s in self._scheduler.running if picture in s.pictures.values()]
        for sequence in holders:
            self.abort(sequence.request.id)
        return holders

    def vision_features(self, pixels: np.ndarray) -> Tensor:
        """Tiles [N, size, size, 3] uint8 -> the decoder's rows [N * tokens_per_tile, n] float32."""
        count = self._runner.plan.tiles_per_batch
        with torch.inference_mode(), self._runner.current():
            parts = [
                self._runner.encode([pixels[at : at + count]]).float().cpu()
                for at in range(0, len(pixels), count)
            ]
        return torch.cat(parts).clone()

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_blocks=self._scheduler.pool.num_blocks,
            num_free_blocks=self._scheduler.pool.num_free,
            num_cached_prompt_tokens=self._num_cached_tokens,
            num_preemptions=self._scheduler.num_preemptions,
        )

    def _sample(self, batch: Batch, sequences: list[Sequence], hidden: Tensor) -> Sampled | None:
        if not sequences:
            return None
        if len(sequences) < len(hidden):
            hidden = hidden[to_device(batch.sample_rows, hidden.device)]
        sampled = sample(self._runner.kernels, self._runner.logits(hidden), sequences)
        self._runner.last_ids[: len(sequences)] = sampled.ids
        return sampled

    def _prompt_output(
        self, sequence: Sequence, rows: PromptRows, hidden: Tensor
    ) -> tuple[tuple[TokenLogprob, ...], Tensor | None]:
        """Log-probabilities of the tokens after these prompt positions, and the logits there."""
        count = sequence.request.params.prompt_logprobs
        reports: list[TokenLogprob] = []
        parts: list[Tensor] = []
        for low in range(rows.start, rows.end, LOGIT_ROWS):
            logits = self._runner.logits(hidden[low : min(low + LOGIT_ROWS, rows.end)])
            if sequence.request.want_prompt_logits:
                parts.append(logits.cpu())
            first = rows.position + low - rows.start + 1
            following = sequence.request.token_ids[first : first + logits.shape[0]]
            if count is not None and following:
                logprobs = logits[: len(following)].log_softmax(-1)
                ids = to_device(np.array(following), logits.device)
                reports += LogprobReport(logprobs, ids, [count] * len(following)).read()
        sequence.num_reported_tokens = rows.position + rows.end - rows.start
        return tuple(reports), torch.cat(parts) if parts else None

    def _output(
        self,
        entry: Scheduled,
        token: int | None,
        report: TokenLogprob | None,
        reason: FinishReason | None,
        prompt: tuple[tuple[TokenLogprob, ...], Tensor | None] | None,
    ) -> StepOutput:
        sequence, _, end = entry
        request_id = sequence.request.id
        prompt_logprobs, prompt_logits = prompt or ((), None)
        cached = sequence.num_cached_tokens or 0
        if token is not None and end == sequence.num_prompt_tokens:
            self._num_cached_tokens += cached
        stop_id = None
        if reason is not None:
            del self._sequences[request_id]
            stop_id = token if reason is FinishReason.STOP else None
        # By place: of hundreds of sequences, names cost a tenth of a step's time on the host.
        return StepOutput(
            request_id,
            () if token is None else (token,),
            () if report is None else (report,),
            prompt_logprobs,
            prompt_logits,
            reason,
            stop_id,
            cached,
        )


def _failure(sequence: Sequence, error: ShuzhaiError) -> StepOutput:
    return StepOutput(sequence.request.id, finish_reason=FinishReason.ERROR, error=error)


def _encoding_error(error: MemoryError | RuntimeError) -> ShuzhaiError:
    is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if is_memory or "DefaultCPUAllocator" in str(error):
        return OverloadedError(
            "there was not enough memory to encode a picture; try again, or with fewer tiles"
        )
    return ShuzhaiError("a picture could not be encoded: an internal error, which is in the log")
