"""Keys and values in 8 or 4 bits: each head of each token has a scale and a zero of its own.

x is about code * scale + zero, with code from 0 to 2^bits - 1. Two codes of 4 bits share a byte:
byte j of a head of size D holds element j below and element j + D/2 above.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Bytes of scale and zero, two float16.
SCALE_BYTES = 4
_LARGEST = torch.finfo(torch.float16).max


def head_bytes(bits: int, head_dim: int) -> int:
    """Bytes of one head of one token, scale and zero included. bits: 4 or 8; 16 or 32: as it is"""
    return head_dim * bits // 8 + (SCALE_BYTES if bits < 16 else 0)


def quantise(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """[..., D] -> (codes [..., D * bits / 8] uint8, [..., 2] float16 scale and zero).

    The error is at most half a scale, the 2^bits - 1st part of the head's range, and what float16
    loses of scale and zero.
    """
    x32 = x.float().clamp(-_LARGEST, _LARGEST)
    low, high = x32.amin(-1, keepdim=True), x32.amax(-1, keepdim=True)
    levels = 2**bits - 1
    params = torch.cat(((high - low) / levels, low), -1).clamp(max=_LARGEST).half()
    scale, zero = params.float().split(1, -1)
    # A scale of 0 is that of a head whose numbers are all alike, or nearly so.
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    codes = ((x32 - zero) * inverse).round().clamp(0, levels).to(torch.uint8)
    if bits == 4:
        below, above = codes.chunk(2, -1)
        codes = below | above << 4
    return codes, params


def dequantise(codes: Tensor, params: Tensor, bits: int) -> Tensor:
    """The inverse of quantise, in float32."""
    if bits == 4:
        codes = torch.cat((codes & 15, codes >> 4), -1)
    scale, zero = params.float().split(1, -1)
    return codes.float() * scale + zero
