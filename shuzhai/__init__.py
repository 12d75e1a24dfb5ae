"""Shuzhai (书斋): run the Shusheng / InternLM models in 8 GB, or on a CPU."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shuzhai.config import EngineConfig
from shuzhai.engine.request import SamplingParams
from shuzhai.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    DownloadError,
    EngineDeadError,
    InvalidRequestError,
    MemoryBudgetError,
    ModelNotFoundError,
    OverloadedError,
    ShuzhaiError,
)
from shuzhai.frontend.outputs import Completion, EncodedPrompt, GenerationOutput, Logprob, Usage

if TYPE_CHECKING:
    from shuzhai.llm import LLM

__all__ = [
    "LLM",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "ContextLengthError",
    "DownloadError",
    "EncodedPrompt",
    "EngineConfig",
    "EngineDeadError",
    "GenerationOutput",
    "InvalidRequestError",
    "Logprob",
    "MemoryBudgetError",
    "ModelNotFoundError",
    "OverloadedError",
    "SamplingParams",
    "ShuzhaiError",
    "Usage",
]


def __getattr__(name: str) -> Any:
    """LLM brings PyTorch, which takes seconds and which not every use of the package needs."""
    if name != "LLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("shuzhai.llm").LLM
