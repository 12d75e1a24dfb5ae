"""The tensors behind the block numbers."""

from __future__ import annotations

import torch

from shuzhai.config import DecoderConfig
from shuzhai.step import KVPages


def allocate_kv_cache(
    config: DecoderConfig,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[KVPages]:
    """Pages for every layer, not cleared: a CPU takes memory only as it is first written."""
    shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
    return [
        KVPages(
            torch.empty(shape, dtype=dtype, device=device),
            torch.empty(shape, dtype=dtype, device=device),
        )
        for _ in range(config.num_layers)
    ]
