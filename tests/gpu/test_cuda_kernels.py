"""CudaKernels as the engine's: whole steps against the reference kernels, whatever the model."""

from __future__ import annotations

import importlib

import pytest
import torch

from shuzhai.engine import runner
from shuzhai.engine.request import Request, SamplingParams
from shuzhai.hub.shipped import folder_of
from shuzhai.kernels.base import Kernels
from tests.gpu.conftest import is_interpreted
from tests.parity.test_internlm2 import OWN_REFERENCE, load, run

PROMPTS = (range(3, 24), range(40, 77), range(3, 30))


@pytest.mark.parametrize(
    ("folder", "kv_dtype"),
    [(OWN_REFERENCE.folder, "auto"), (OWN_REFERENCE.folder, "int4"),
     (folder_of("tiny-internvl2"), "auto"), (folder_of("tiny-xcomposer2"), "int8")],
    ids=["internlm2", "internlm2-int4", "heads-of-48", "heads-of-48-int8"],
)  # fmt: skip
def test_an_engine(folder, kv_dtype, device, monkeypatch) -> None:
    """Chunks, mixed steps and single ones. Heads of 48 have no attention kernel."""
    module = importlib.import_module("shuzhai.kernels.cuda")
    told = []
    for kernels in (module.CudaKernels(device), Kernels()):
        with monkeypatch.context() as patch:
            if is_interpreted():
                patch.setattr(runner, "make_kernels", lambda _, kernels=kernels: kernels)
            elif type(kernels) is Kernels:
                patch.setattr(runner, "choose_device", lambda name: torch.device("cpu"))
            engine = load(
                folder, device="cpu" if is_interpreted() else "auto", kv_dtype=kv_dtype,
                max_num_batched_tokens=40, memory="2GiB",
            )  # fmt: skip
            params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
            asked = [
                Request(str(i), tuple(ids), params, want_prompt_logits=True)
                for i, ids in enumerate(PROMPTS)
            ]
            told.append(run(engine, asked))
    for name, (tokens, logits) in told[0].items():
        # Codes of 4 bits turn what rounding moved over a border into a whole step.
        tolerance = 0.5 if kv_dtype == "int4" else 0.02 if kv_dtype == "int8" else 2e-3
        difference = (torch.cat(logits) - torch.cat(told[1][name][1])).abs()
        assert difference.max() < tolerance
        assert kv_dtype == "int4" or tokens == told[1][name][0]
