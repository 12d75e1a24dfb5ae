"""Which device there is, and the kernels for it."""

from __future__ import annotations

import importlib
import importlib.util
import logging

import torch

from shuzhai.errors import ConfigError
from shuzhai.kernels.base import Kernels
from shuzhai.kernels.cpu import CpuKernels

# Turing: what came before has no matrix units that Triton uses.
_LEAST_CAPABILITY = (7, 5)


def choose_device(name: str) -> torch.device:
    """ "auto" is a GPU that can be used, else the CPU; ConfigError if the one asked for is not
    there."""
    if name == "cpu":
        return torch.device("cpu")
    problem = _cuda_problem(name)
    if problem is None:
        return torch.device("cuda:0" if name in ("auto", "cuda") else name)
    if name == "auto":
        return torch.device("cpu")
    raise ConfigError(f"device {name} cannot be used: {problem}; use device cpu or auto")


def _cuda_problem(name: str) -> str | None:
    """Why a GPU cannot be used, or None."""
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        return (
            "the driver shows no NVIDIA GPU (try nvidia-smi)"
            if built
            else "this PyTorch was built for the CPU only"
        )
    index = int(name.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        return f"there are {torch.cuda.device_count()} GPUs, counted from 0"
    capability = torch.cuda.get_device_capability(index)
    if capability < _LEAST_CAPABILITY:
        return f"its compute capability is {capability[0]}.{capability[1]}, below 7.5"
    return None


def make_kernels(device: torch.device) -> Kernels:
    """Kernels of a device. A GPU without Triton runs the reference ones: rightly, and slowly."""
    if device.type == "cpu":
        return CpuKernels()
    if importlib.util.find_spec("triton") is None:
        logging.getLogger(__name__).warning(
            "Triton is not installed, so the GPU runs slowly; on Windows use WSL2, or "
            "pip install triton-windows"
        )
        return Kernels()
    return importlib.import_module("shuzhai.kernels.cuda").CudaKernels(device)
