"""The tensors behind the block numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from shuzhai.config import DecoderConfig
from shuzhai.step import KVPages


def allocate_kv_cache(
    config: DecoderConfig,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    bits: int | None = None,
) -> list[KVPages]:
    """Pages for every layer, not cleared: a CPU takes memory only as it is first written.

    bits  8 or 4 for codes; None for numbers of `dtype` as they are
    """
    places = (num_blocks, block_size, config.num_kv_heads)

    def empty(width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty((*places, width), dtype=dtype, device=device)

    def layer() -> KVPages:
        if bits is None:
            keys, values = (empty(config.head_dim, dtype) for _ in range(2))
            return KVPages(keys, values, bits=8 * dtype.itemsize)
        keys, values = (empty(config.head_dim * bits // 8, torch.uint8) for _ in range(2))
        return KVPages(keys, values, empty(2, torch.float16), empty(2, torch.float16), bits)

    return [layer() for _ in range(config.num_layers)]
