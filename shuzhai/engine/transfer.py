"""Small tensors to the device and back, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from shuzhai.step import StepInput

# Where a tensor may begin within a shared buffer.
_ALIGNMENT = 16


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; the CPU shares the array's memory."""
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Packing:
    """Tensors of these shapes and types side by side in one buffer, so that one copy moves all."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._like = [(t.shape, t.dtype) for t in like]
        sizes = [-(-t.nbytes // _ALIGNMENT) * _ALIGNMENT for t in like]
        self._starts = [0, *accumulate(sizes)]

    @property
    def num_bytes(self) -> int:
        return self._starts[-1]

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors within a buffer [num_bytes] uint8."""
        return [
            buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for start, (shape, dtype) in zip(self._starts, self._like, strict=False)
        ]

    def fill(self, buffer: Tensor, tensors: Sequence[Tensor]) -> None:
        """Copy tensors on the host into a buffer there."""
        # In numpy, which takes a fifth of the time of views and copies of PyTorch's.
        flat = buffer.numpy()
        for start, tensor in zip(self._starts, tensors, strict=False):
            flat[start : start + tensor.nbytes] = tensor.numpy().reshape(-1).view(np.uint8)


def pack_to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of host tensors on the device, by one transfer."""
    packing = Packing(tensors)
    host = torch.empty(packing.num_bytes, dtype=torch.uint8, pin_memory=True)
    packing.fill(host, tensors)
    return packing.views(host.to(device, non_blocking=True))


def step_to_device(step: StepInput, device: torch.device) -> StepInput:
    """The step on the device; what is on the host of it goes there by one transfer."""
    if device.type == "cpu":
        return step
    on_host = {
        name: tensor for name, tensor in step.tensors().items() if tensor.device.type == "cpu"
    }
    moved = pack_to_device(list(on_host.values()), device)
    return replace(step, **dict(zip(on_host, moved, strict=True)))


class Fetch:
    """Tensors on their way to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = [t.to("cpu", non_blocking=True) for t in tensors]
        self._event: torch.cuda.Event | None = None
        if any(t.is_cuda for t in tensors):
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[Tensor]:
        """The tensors on the host; waits for the work that makes them, and for none after it."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensors
