"""What several programs found of one sequence, added up by the last of them."""

from __future__ import annotations

import triton
import triton.language as tl

from shuzhai.kernels.decode_parts import MOST_PARTS


@triton.jit
def add_up(
    to: tl.tensor,
    partials: tl.tensor,
    weights: tl.tensor,
    used: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    FEW: tl.constexpr,
) -> None:
    """Write the mean of the parts' results [G, D], weighted by 2 ** weights [G], of which each is
    STRIDE parts behind the one before; FEW parts at a time. GP: G rounded up to a power of 2."""
    g, d = tl.arange(0, GP), tl.arange(0, D)
    top = tl.full([GP], float("-inf"), tl.float32)
    whole, acc = tl.zeros([GP], tl.float32), tl.zeros([GP, D], tl.float32)
    for first in tl.range(0, used, FEW, num_stages=1):
        parts = first + tl.arange(0, FEW)[:, None]
        at, has = parts * (STRIDE * G) + g[None, :], (parts < used) & (g < G)[None, :]
        # Past the first-level cache, which does not see what other processors write.
        share = tl.load(weights + at, mask=has, other=float("-inf"), cache_modifier=".cg")
        found = partials + at[:, :, None] * D + d[None, None, :]
        found = tl.load(found, mask=has[:, :, None], other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(share, 0))
        new_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        fade, share = tl.exp2(top - new_top), tl.exp2(share - new_top[None, :])
        whole = whole * fade + tl.sum(share, 0)
        acc = acc * fade[:, None] + tl.sum(found * share[:, :, None], 0)
        top = new_top
    whole = tl.where(whole == 0.0, 1.0, whole)
    to += g[:, None] * D + d[None, :]
    tl.store(to, (acc / whole[:, None]).to(to.dtype.element_ty), mask=(g < G)[:, None])


def num_added(head_dim: int, group: int, warps: int) -> int:
    """FEW of add_up: as many as the registers of so many warps hold. group: a power of 2"""
    return max(1, min(MOST_PARTS, 2048 * warps // (group * head_dim)))
