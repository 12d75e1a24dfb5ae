"""What one step of decode attention is launched with: tiles, and parts of the past."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from shuzhai.kernels.decode_parts import choose_parts, cut
from shuzhai.kernels.triton.attention import Tile, capability

# Counters of arrivals: one for each sequence and kv head of a step.
_NUM_COUNTERS = 2**18
# So many multiprocessors a pair leave one pair's latency as all that counts.
_IDLE = 4
# Warps that find room on a multiprocessor, by the registers of their programs, by bits; and before
# tensor cores were used.
_RESIDENT_WARPS = {4: 12, 8: 8, 16: 12, 32: 8}
_RESIDENT_WARPS_BEFORE = 8
# Shared memory of a program beside its tiles: the queries, what the hardware takes.
_MORE_SHARED_BYTES = 3 * 2**10


class DecodeWorkspace:
    """What decode_attend keeps between calls on one device and one stream: zeroed counters."""

    def __init__(self, device: torch.device) -> None:
        self.counters = torch.zeros(_NUM_COUNTERS, dtype=torch.int32, device=device)
        self.capability = capability(device)
        self.num_processors, self.shared_bytes = 4, 2**16
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self.num_processors = properties.multi_processor_count
            self.shared_bytes = properties.shared_memory_per_multiprocessor


def choose_tile(
    head_dim: int, dtype: torch.dtype, bits: int, group: int, device_cc: int, is_idle: bool
) -> Tile:
    """bits: of the pages; group: query heads a kv head; device_cc: capability, 90 for 9.0;
    is_idle: there are far fewer programs than could run.

    Small programs of few warps, which rarely wait for each other, are fastest for codes; of 16 bits
    where nothing else counts but when the last one is ready."""
    rows = triton.next_power_of_2(group)
    if dtype == torch.float32 or device_cc < 80:
        # Without tensor cores: the compiler has none for float32 as such, nor before 8.0.
        is_small = head_dim <= 128 and rows <= 4
        return Tile(rows, 32 if is_small else 16, 4 if head_dim <= 128 else 8, 1)
    is_small = rows <= 16 and head_dim <= 128
    if bits >= 16:
        if is_small and is_idle:
            return Tile(16, 32, 2, 2)
        return Tile(max(16, rows), 64 if head_dim <= 128 else 32, 4, 3)
    if not is_small:
        return Tile(max(8, rows), 32, 4, 2)
    return Tile(max(8, rows), 32, 1, 2)


def choose(
    batch: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    bits: int,
    workspace: DecodeWorkspace,
) -> tuple[Tile, int]:
    """The tile, and how many programs run side by side."""
    is_idle = batch * num_kv_heads * _IDLE <= workspace.num_processors
    group = num_heads // num_kv_heads
    tile = choose_tile(head_dim, dtype, bits, group, workspace.capability, is_idle)
    warps = _RESIDENT_WARPS[bits] if workspace.capability >= 80 else _RESIDENT_WARPS_BEFORE
    # A tile of keys and one of values in each stage but the last, which is in registers.
    held = max(1, tile.stages - 1) * 2 * tile.keys * head_dim * bits // 8
    resident = min(warps // tile.warps, workspace.shared_bytes // (held + _MORE_SHARED_BYTES))
    return tile, max(1, resident) * workspace.num_processors


def decode_parts(
    seq_lens: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    bits: int,
    workspace: DecodeWorkspace,
) -> Tensor:
    """What decode_attend is told of sequences of these lengths [B] int32, new token included, on
    the host: [places, PART] int32, as many places for the same B. dtype: of the queries"""
    sizes = (len(seq_lens), num_heads, num_kv_heads, head_dim, dtype, bits, workspace)
    tile, num_resident = choose(*sizes)
    aim, places = choose_parts(len(seq_lens), num_kv_heads, num_resident)
    return torch.from_numpy(cut(seq_lens.numpy(), aim, places, max(32, tile.keys)))
