"""Where prompts of token ids are read: few at once, many where they hold nobody up."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from shuzhai.frontend.outputs import EncodedPrompt
from shuzhai.server.app import _encode_all


@pytest.mark.parametrize(
    ("prompts", "at_once"), [([[1] * 8] * 4, True), ([[1] * 2000], False), ([[1] * 900] * 3, False)]
)
def test_many_ids_are_read_in_a_thread(prompts: list[list[int]], at_once: bool) -> None:
    threads = set()

    def encode_ids(ids: list[int]) -> EncodedPrompt:
        threads.add(threading.current_thread())
        return EncodedPrompt("", ids)

    engine = SimpleNamespace(processor=SimpleNamespace(encode_ids=encode_ids))
    encoded = asyncio.run(_encode_all(engine, prompts))  # type: ignore[arg-type]
    assert [each.token_ids for each in encoded] == prompts
    assert (threading.main_thread() in threads) is at_once
