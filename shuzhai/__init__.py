"""Shuzhai (书斋): run the Shusheng / InternLM models in 8 GB, or on a CPU."""

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
