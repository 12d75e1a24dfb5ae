"""Memory of a GPU that each step uses anew: its activations, recorded or not, logits and samples.

A recorded step writes to the addresses that it was captured with, whoever has them now. So nothing
that is taken of the scratch memory is looked at once the next step is launched.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class Scratch:
    """A pool of PyTorch's allocator that graphs and plain work on one stream share; on a CPU it
    does nothing.

    pool  must be the last thing that a holder of a graph lets go: PyTorch ends the process when a
          pool goes before a graph that was captured with it
    """

    def __init__(self, device: torch.device) -> None:
        self.pool: torch.cuda.MemPool | None = None
        if device.type == "cuda":
            with torch.cuda.device(device):
                self.pool = torch.cuda.MemPool()

    def use(self) -> AbstractContextManager[None]:
        """Tensors that this thread makes within it, on the current device, are scratch."""
        return nullcontext() if self.pool is None else torch.cuda.use_mem_pool(self.pool)
