"""Benchmark over HTTP: requests that arrive at random at a rate, and what each client sees."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import h11
import httpx
import numpy as np

from shuzhai.bench.client import Recording, Site
from shuzhai.bench.report import Report, median, milliseconds, percentile
from shuzhai.errors import ShuzhaiError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Answer:
    """Times in seconds of one clock: when it was asked, and when its pieces came."""

    asked: float
    pieces: list[float]
    num_tokens: int


def served_model(url: str, key: str | None, name: str | None) -> str:
    """The model of this name, or the first one; ShuzhaiError if the server does not name it."""
    with _plain_errors(url):
        names = Site(_root(url), key).models()
        first = names[0]
    if name not in (None, *names):
        raise ShuzhaiError(f"{url} has no model {name!r}; give one of: {', '.join(names)}")
    return name or first


def serve(
    url: str,
    key: str | None,
    model: str,
    asked: Sequence[tuple[Sequence[int], int]],
    rate: float,
    concurrency: int,
    least_seconds: float | None = None,
) -> Report:
    """Send these (prompt, tokens of the answer) to a server, `rate` a second on average, at Poisson
    times; 0: all at once. At most so many are open at a time. ShuzhaiError if one is refused, or
    its answer is not whole.

    least_seconds  that they take if all come at once

    A piece is an event that has text. A server that is late may put several tokens into one: ITL is
    the time between events, TPOT counts tokens, as if the first piece were one (so it is too short
    where that has several), of answers of two pieces and more.
    """
    with _plain_errors(url):
        answers, seconds = asyncio.run(_ask_all(url, key, model, asked, rate, concurrency))
    firsts = [answer.pieces[0] - answer.asked for answer in answers]
    gaps = [late - early for answer in answers for early, late in pairwise(answer.pieces)]
    rests = [
        (answer.pieces[-1] - answer.pieces[0]) / (answer.num_tokens - 1)
        for answer in answers
        if min(len(answer.pieces), answer.num_tokens) > 1
    ]
    num_tokens = sum(answer.num_tokens for answer in answers)
    rows: list[tuple[str, ...]] = []
    result: dict[str, float | str] = {
        "url": url, "requests": len(asked), "rate_asked": rate, "seconds": seconds,
        "prompt_tokens": sum(len(ids) for ids, _ in asked), "output_tokens": num_tokens,
        "requests_per_s": len(asked) / seconds, "output_tokens_per_s": num_tokens / seconds,
    }  # fmt: skip
    for name, key_name, values in (
        ("TTFT, to the first token", "ttft", firsts),
        ("TPOT, mean of an answer's further ones", "tpot", rests or [0.0]),
        ("ITL, between two pieces", "itl", gaps or [0.0]),
    ):
        middle, worst = median(values), percentile(values, 0.99)
        rows.append((name, milliseconds(middle), milliseconds(worst)))
        result |= {f"{key_name}_p50_s": middle, f"{key_name}_p99_s": worst}
    rows.append(("requests/s", f"{len(asked) / seconds:,.2f}", ""))
    rows.append(("output tokens/s", f"{num_tokens / seconds:,.0f}", ""))
    if least_seconds is not None and not rate:
        rows.append(("of the limit", f"{least_seconds / seconds:.0%}", ""))
        result |= {"limit_s": least_seconds, "share": least_seconds / seconds}
    what = f"{len(asked)} requests, " + (f"{rate:g} a second" if rate else "all at once")
    return Report((what, "p50", "p99"), rows, [result])


async def _ask_all(
    url: str,
    key: str | None,
    model: str,
    asked: Sequence[tuple[Sequence[int], int]],
    rate: float,
    concurrency: int,
) -> tuple[list[_Answer], float]:
    """The answers, and the seconds from the first request to the last token."""
    gate = asyncio.Semaphore(concurrency)
    rng = np.random.default_rng(0)
    waits = rng.exponential(1 / rate, len(asked)) if rate else np.zeros(len(asked))
    site = Site(_root(url), key)
    start = time.perf_counter()

    async def ask(at: float, ids: Sequence[int], count: int) -> tuple[float, Recording]:
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        now = time.perf_counter()  # waiting for the gate is waiting, too
        async with gate:
            return now, await site.post("/v1/completions", _body(model, ids, count))

    arrivals = np.cumsum(waits).tolist()
    calls = [ask(at, *each) for at, each in zip(arrivals, asked, strict=True)]
    recordings = await _all_or_none(calls)
    answers = [_read(recording, at) for at, recording in recordings]
    return answers, max(answer.pieces[-1] for answer in answers) - start


def _root(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


@contextmanager
def _plain_errors(url: str) -> Iterator[None]:
    """All that may go wrong with a server, as a ShuzhaiError."""
    try:
        yield
    except (httpx.HTTPError, OSError) as error:
        raise ShuzhaiError(f"the server at {url} does not answer: {error!r}") from None
    # What HTTP cannot say, and what is no answer of such a server: JSON of any other shape.
    except (
        httpx.InvalidURL, h11.LocalProtocolError, ValueError, LookupError, TypeError, AttributeError
    ) as error:  # fmt: skip
        raise ShuzhaiError(f"{url} is not to be talked to as OpenAI's: {error!r}") from None


async def _all_or_none(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first error ends the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _body(model: str, ids: Sequence[int], count: int) -> dict[str, Any]:
    return {
        "model": model, "prompt": list(ids), "max_tokens": count, "temperature": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def _read(recording: Recording, asked: float) -> _Answer:
    pieces, num_tokens = [], 0
    for at, event in recording.events():
        if event.get("usage"):
            num_tokens = event["usage"].get("completion_tokens")
        if any(choice["text"] for choice in event["choices"]):
            pieces.append(at)
    if not pieces:
        raise ShuzhaiError("the server gave an answer without a word")
    if not isinstance(num_tokens, int) or num_tokens < 1:
        raise ShuzhaiError(
            "the server does not say how many tokens an answer has (usage, completion_tokens): it "
            "must honour stream_options.include_usage"
        )
    return _Answer(asked, pieces, num_tokens)
