"""Benchmark over HTTP: requests that arrive at random at a rate, and what each client sees."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import numpy as np

from shuzhai.bench.report import Report, median, milliseconds, percentile
from shuzhai.errors import ShuzhaiError

# A prompt may wait for all that came before it.
_TIMEOUT = httpx.Timeout(600.0, connect=30.0)


@dataclass(slots=True)
class _Answer:
    """Times in seconds of one clock."""

    asked: float
    pieces: list[float] = field(default_factory=list)
    num_tokens: int = 0


def serve(
    url: str,
    key: str | None,
    asked: Sequence[tuple[Sequence[int], int]],
    rate: float,
    concurrency: int,
    least_seconds: float | None = None,
) -> Report:
    """Send these (prompt, tokens of the answer) to a server, `rate` a second on average, at Poisson
    times; 0: all at once. At most so many are open at a time. ShuzhaiError if one is refused.

    least_seconds  that they take if all come at once
    """
    answers, seconds = asyncio.run(_ask_all(url, key, asked, rate, concurrency))
    firsts = [answer.pieces[0] - answer.asked for answer in answers]
    gaps = [late - early for answer in answers for early, late in pairwise(answer.pieces)]
    rests = [
        (answer.pieces[-1] - answer.pieces[0]) / (answer.num_tokens - 1)
        for answer in answers
        if answer.num_tokens > 1
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
    asked: Sequence[tuple[Sequence[int], int]],
    rate: float,
    concurrency: int,
) -> tuple[list[_Answer], float]:
    """The answers, and the seconds from the first request to the last token."""
    base = url.rstrip("/").removesuffix("/v1")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    gate = asyncio.Semaphore(concurrency)
    rng = np.random.default_rng(0)
    waits = rng.exponential(1 / rate, len(asked)) if rate else np.zeros(len(asked))
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    try:
        # A proxy of the environment would be asked for this machine's own server.
        async with httpx.AsyncClient(
            base_url=base, headers=headers, timeout=_TIMEOUT, limits=limits, trust_env=False
        ) as client:
            model = await _first_model(client)
            start = time.perf_counter()

            async def ask(at: float, ids: Sequence[int], count: int) -> _Answer:
                await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
                answer = _Answer(time.perf_counter())  # waiting for the gate is waiting, too
                async with gate:
                    await _ask(client, model, ids, count, answer)
                return answer

            arrivals = np.cumsum(waits).tolist()
            calls = [ask(at, *each) for at, each in zip(arrivals, asked, strict=True)]
            answers = await _all_or_none(calls)
    except httpx.HTTPError as error:
        raise ShuzhaiError(f"the server at {url} does not answer: {error!r}") from None
    return answers, max(answer.pieces[-1] for answer in answers) - start


async def _all_or_none(calls: Iterable[Coroutine[Any, Any, _Answer]]) -> list[_Answer]:
    """All results; the first error ends the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first_model(client: httpx.AsyncClient) -> str:
    """The model that the server names first."""
    reply = await client.get("/v1/models")
    if reply.status_code != 200:
        raise ShuzhaiError(f"{client.base_url} answered {reply.status_code}: {reply.text[:200]}")
    return str(reply.json()["data"][0]["id"])


async def _ask(
    client: httpx.AsyncClient, model: str, ids: Sequence[int], count: int, answer: _Answer
) -> None:
    body = {
        "model": model, "prompt": list(ids), "max_tokens": count, "temperature": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        if reply.status_code != 200:
            text = (await reply.aread()).decode("utf-8", "replace")
            raise ShuzhaiError(f"{client.base_url} answered {reply.status_code}: {text[:300]}")
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now, event = time.perf_counter(), json.loads(line[6:])
            if "error" in event:
                raise ShuzhaiError(f"{client.base_url}: {event['error']}")
            if event.get("usage"):
                answer.num_tokens = event["usage"]["completion_tokens"]
            if any(choice["text"] for choice in event["choices"]):
                answer.pieces.append(now)
    if not answer.pieces:
        raise ShuzhaiError(f"{client.base_url} gave an answer without a word")
