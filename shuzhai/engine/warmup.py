"""The first steps on a GPU: they compile kernels, and show what a step really takes of the memory.

The plan is made from shapes; libraries and the allocator have habits of their own. So the largest
step of each kind is run once, and the KV cache gets what the budget leaves beside the peak.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from shuzhai.engine.memory import MemoryPlan
from shuzhai.engine.transfer import step_to_device
from shuzhai.engine.workspace import LOGIT_ROWS, SAMPLE_ROWS
from shuzhai.kernels.base import Kernels
from shuzhai.kernels.head_rows import head_rows
from shuzhai.models.decoder import Decoder
from shuzhai.step import DrawInput, KVPages, StepInput

# Rows of one of each kind that products of few rows are made for.
_FEW = (40, 20, 2, 1)
_MORE_CONTEXT = 2**29
_TIMED_RUNS = 3
# What PyTorch's allocator keeps between tensors beyond what the largest steps show.
HOLES_BYTES = 96 * 2**20


def prefill_step(num_tokens: int, block_size: int) -> StepInput:
    """A prompt of so many tokens over the first pages, on the host."""
    num_pages = -(-num_tokens // block_size)
    return StepInput(
        token_ids=torch.zeros(num_tokens, dtype=torch.int64),
        positions=torch.arange(num_tokens),
        slots=torch.arange(num_tokens),
        cu_seqlens_q=torch.tensor([0, num_tokens], dtype=torch.int32),
        seq_lens=torch.tensor([num_tokens], dtype=torch.int32),
        block_tables=torch.arange(num_pages, dtype=torch.int32)[None],
        logit_rows=torch.tensor([num_tokens - 1]),
        num_decodes=int(num_tokens == 1),
        max_seqlen_q=num_tokens,
    )


def _prefill(
    decoder: Decoder, kv: list[KVPages], num_tokens: int, block_size: int, device: torch.device
) -> Tensor:
    """Launch a prompt of so many tokens one by one: hidden state [1, n] of its last."""
    step = decoder.prepared(prefill_step(num_tokens, block_size), kv[0])
    return decoder(step_to_device(step, device), kv)


def draw_input(num_rows: int, device: torch.device) -> DrawInput:
    """Of the kind that takes most work."""

    def rows(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((num_rows,), value, dtype=dtype, device=device)

    top_k = rows(40, torch.int32)
    return DrawInput(rows(0.8), top_k, rows(0.8), rows(0.01), rows(0.5, torch.float64), True)


def run_largest(
    decoder: Decoder, kernels: Kernels, kv: list[KVPages], plan: MemoryPlan, device: torch.device
) -> None:
    """A step's most tokens; logits of every number of rows; draws and log-probabilities of as many
    sequences as can run.

    The largest first: PyTorch keeps what was freed and gives parts of it to smaller steps, whereas
    steps that grow little by little would each take new memory.
    """
    num_tokens, page_size = _most_tokens(plan), plan.block_size
    # Sizes on both sides of where kernels change, so that none is compiled in a user's request.
    for count in sorted({*_FEW, 200, num_tokens}, reverse=True):
        if count <= num_tokens:
            hidden = _prefill(decoder, kv, count, page_size, device)
    most = min(plan.max_num_seqs, num_tokens)
    most_rows = max(most, min(LOGIT_ROWS, num_tokens))
    for count in sorted({head_rows(n) for n in range(1, most_rows + 1)}, reverse=True):
        decoder.logits(hidden.expand(count, -1).contiguous())
    for count in (most, *(n for n in _FEW if n < most)):
        logits = decoder.logits(hidden.expand(count, -1).contiguous())
        kernels.argmax(logits)
        some = min(count, SAMPLE_ROWS)
        rows = torch.arange(some, device=device)
        logprobs = logits[rows].log_softmax(-1)
        kernels.draw(logits[rows], draw_input(some, device))
        del logits, logprobs
    torch.cuda.synchronize(device)


def _most_tokens(plan: MemoryPlan) -> int:
    """Of a step."""
    return min(plan.max_num_batched_tokens, plan.num_tokens)


def measure_launch_tokens(
    decoder: Decoder, kv: list[KVPages], plan: MemoryPlan, device: torch.device
) -> int:
    """Tokens that the GPU computes while the host launches a step kernel by kernel, from the
    largest prompt of one step, over pages that hold nothing yet. Kernels have been compiled before.
    Takes the time of three such steps, and no more memory than run_largest."""
    num_tokens, found = _most_tokens(plan), []
    for _ in range(_TIMED_RUNS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        _prefill(decoder, kv, num_tokens, plan.block_size, device)
        launch_seconds = time.perf_counter() - start
        torch.cuda.synchronize(device)
        total_seconds = time.perf_counter() - start
        found.append(launch_tokens(num_tokens, launch_seconds, total_seconds))
    # The first takes new memory of the driver; a host that was held up once is not a slow one.
    return min(found[1:])


def launch_tokens(num_tokens: int, launch_seconds: float, total_seconds: float) -> int:
    """Tokens whose time on the GPU is that of launching, given a step of num_tokens that was done
    after total_seconds. No limit where the GPU waited for the host: its own time is not seen."""
    if 8 * launch_seconds >= 7 * total_seconds:
        return sys.maxsize
    return int(num_tokens * launch_seconds / total_seconds)


def allocated_bytes(device: torch.device) -> int:
    """What other engines of this process have: their tensors, and those of their recorded steps.
    What PyTorch keeps for later beside them is not theirs alone: the next engine takes of it, too.
    """
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    index = torch.cuda.current_device() if device.index is None else device.index
    recorded_bytes = sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment.get("device", index) == index and tuple(segment["segment_pool_id"]) != (0, 0)
    )
    return torch.cuda.memory_allocated(device) + recorded_bytes


def measure(run: Callable[[], None], device: torch.device, context_bytes: int) -> int:
    """What the process takes of the device at most while this runs, in bytes, other engines of it
    included.

    What is not PyTorch's is taken for this process's context, which grows as kernels are loaded, up
    to _MORE_CONTEXT above the estimate: the rest belongs to others.
    """
    torch.cuda.reset_peak_memory_stats(device)
    run()
    free, total = torch.cuda.mem_get_info(device)
    outside = total - free - torch.cuda.memory_reserved(device)
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.empty_cache()
    return peak + min(max(outside, context_bytes), context_bytes + _MORE_CONTEXT)
