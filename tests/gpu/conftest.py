"""Kernels run on a GPU, or, where TRITON_INTERPRET=1 is set, slowly on a CPU."""

from __future__ import annotations

import os

import pytest
import torch


def is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    pytest.importorskip("triton")
    if is_interpreted():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device("cuda")
