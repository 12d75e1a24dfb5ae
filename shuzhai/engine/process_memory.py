"""How the process gives memory back to the system.

What is said of the host's is true of glibc alone: other C libraries decide for themselves what they
keep.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress

import torch

_M_ARENA_MAX = -8  # of malloc.h


def share_one_arena() -> None:
    """Let all threads take memory from one place; to be called before there are many.

    glibc gives threads places of their own, and malloc_trim leaves the end of each but the first as
    it is, up to 64 MiB: where models are loaded now by this thread and now by that, ever more of
    the memory of those that were unloaded would be kept.
    """
    _call_glibc("mallopt", _M_ARENA_MAX, 1)


def release_memory(*, collect: bool) -> None:
    """Give the memory of engines that nobody refers to any more back to the system.

    collect  also of those that are part of a cycle, which stops all of Python for 0.1 s
    """
    if collect:
        gc.unfreeze()
        gc.collect()
        gc.freeze()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    _call_glibc("malloc_trim", 0)


def _call_glibc(function: str, *numbers: int) -> None:
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            getattr(ctypes.CDLL(None), function)(*numbers)
