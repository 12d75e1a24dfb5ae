"""How many rows of logits a GPU makes at a time. No torch.

For each new number of rows the library chooses a kernel, and loads it from its file: up to 20 ms in
the middle of everybody's answers. So there are few such numbers, and all are tried at the start.
"""

from __future__ import annotations

# Up to here a kernel of our own takes any number.
_FEW = 64
_STEP = 32


def head_rows(count: int) -> int:
    """What so many rows are filled up to."""
    return count if count <= _FEW else -(-count // _STEP) * _STEP
