"""The one serving workload on which engines are compared: lengths like those of real chats.

512 requests, 104,897 tokens of prompts and 94,429 of answers, all submitted at once, greedy, the
end-of-text ids ignored.
"""

from __future__ import annotations

import numpy as np

NUM_REQUESTS = 512
MAX_TOKENS = 1024
# Of the InternLM2 family; prompts keep clear of its special tokens.
_VOCAB = 92544
_FIRST_ID, _LAST_IDS = 10, 600


def workload(
    num_requests: int = NUM_REQUESTS,
    *,
    seed: int = 0,
    max_tokens: int = MAX_TOKENS,
    vocab_size: int = _VOCAB,
    which: int = 0,
) -> list[tuple[list[int], int]]:
    """(prompt ids, tokens of the answer) of each request. max_tokens: of a prompt, and of an answer

    A smaller vocabulary, or another `which`, changes the ids alone, and not the lengths.
    """
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(4.9, 1.0, num_requests), 4, max_tokens).astype(int)
    answers = np.clip(rng.lognormal(5.0, 0.8, num_requests), 4, max_tokens).astype(int)
    if which:
        rng = np.random.default_rng([seed, which])
    end = max(_FIRST_ID + 1, min(_VOCAB, vocab_size) - _LAST_IDS)
    ids = [rng.integers(_FIRST_ID, end, count).tolist() for count in prompts]
    return list(zip(ids, answers.tolist(), strict=True))
