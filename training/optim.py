"""Muon for the matrices of blocks, AdamW for everything else.

Muon (Keller Jordan, 2024) turns the momentum of a matrix into the nearest orthogonal one. The
step's size follows Moonlight (arXiv:2502.16982): 0.2 sqrt(longer side), as large as AdamW's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon:
    """Matrices of one shape are stepped together: a few large products, not hundreds of small."""

    def __init__(self, parameters: Iterable[Tensor], weight_decay: float) -> None:
        shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            shapes[tuple(parameter.shape)].append(parameter)
        self._groups = list(shapes.values())
        self._momenta = [torch.zeros_like(torch.stack(group)) for group in self._groups]
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, rate: float, momentum: float = 0.95) -> None:
        for group, memory in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([p.grad for p in group])
            memory.lerp_(gradient, 1 - momentum)
            update = orthogonal(gradient.lerp(memory, momentum))
            update *= 0.2 * rate * max(update.shape[1:]) ** 0.5
            torch._foreach_mul_(group, 1 - rate * self._weight_decay)
            torch._foreach_sub_(group, list(update.unbind()))


def orthogonal(x: Tensor) -> Tensor:
    """[k, m, n] -> about U V^T of each x = U S V^T, by five Newton-Schulz steps."""
    is_tall = x.shape[1] > x.shape[2]
    y = x.mT if is_tall else x
    y = (y / (y.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        square = y @ y.mT
        y = _A * y + (_B * square + _C * square @ square) @ y
    return (y.mT if is_tall else y).to(x.dtype)


class Optimizer:
    """Both, under one learning rate."""

    def __init__(
        self,
        modules: Iterable[nn.Module],
        weight_decay: float = 0.1,
        without: Collection[int] = (),
    ) -> None:
        """without: the ids of parameters that somebody else steps"""
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for module in modules:
            for name, parameter in module.named_parameters():
                if id(parameter) in without:
                    continue
                in_block = ".layers." in name and parameter.ndim == 2
                (matrices if in_block else others).append(parameter)
        self._parameters = matrices + others
        self._muon = Muon(matrices, weight_decay)
        self._adam = torch.optim.AdamW(
            others, betas=(0.9, 0.98), weight_decay=weight_decay,
            fused=others[0].device.type == "cuda",
        )  # fmt: skip

    def step(self, rate: float) -> None:
        """Clip, step and clear the gradients."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._muon.step(rate)
        self._adam.step()
        for parameter in self._parameters:
            parameter.grad = None
