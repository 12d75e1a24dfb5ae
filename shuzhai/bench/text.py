"""Benchmarks of text: one stream, one prompt, the serving workload, and how speed grows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from shuzhai.bench.driver import Driver, Run
from shuzhai.bench.report import Report, median, milliseconds, percentile
from shuzhai.bench.work import Work
from shuzhai.bench.workload import workload
from shuzhai.engine.memory import MemoryPlan
from shuzhai.errors import ShuzhaiError


def latency(driver: Driver, work: Work, num_prompt: int, num_output: int, repeats: int) -> Report:
    """One stream: the time to its first token, and between two tokens."""
    firsts, gaps = [], []
    for _ in range(repeats):
        run = driver.run(driver.random_requests(1, num_prompt, num_output))
        (times,) = run.token_times.values()
        firsts.append(times[0])
        gaps += [late - early for early, late in pairwise(times)]
    limit = work.decode_seconds(1, num_prompt + num_output / 2)
    first_limit = work.prefill_seconds(num_prompt)
    rows = []
    results = []
    for name, values, least in (
        ("first token", firsts, first_limit),
        ("each further token", gaps, limit),
    ):
        middle, worst = median(values), percentile(values, 0.99)
        rate = f"{1 / middle:,.1f}" if values is gaps else ""
        rows.append(
            (
                name, milliseconds(middle), milliseconds(worst), rate, milliseconds(least),
                f"{least / middle:.0%}",
            )
        )  # fmt: skip
        results.append(
            {
                "what": name, "median_s": middle, "p99_s": worst, "limit_s": least,
                "share": least / middle,
            }
        )  # fmt: skip
    results[1]["tokens_per_s"] = 1 / median(gaps)
    what = f"1 stream, {num_prompt} + {num_output} tokens"
    return Report((what, "median", "p99", "tokens/s", "limit", "share"), rows, results)


def prefill(driver: Driver, work: Work, lengths: Sequence[int], repeats: int) -> Report:
    """Prompts alone, whose answer is one token."""
    rows, results = [], []
    for length in lengths:
        seconds = median(
            [driver.run(driver.random_requests(1, length, 1)).first_token for _ in range(repeats)]
        )
        least = work.prefill_seconds(length)
        rows.append(
            (
                f"{length:,}", milliseconds(seconds), f"{length / seconds:,.0f}",
                f"{length / least:,.0f}", f"{least / seconds:.0%}",
            )
        )  # fmt: skip
        results.append(
            {
                "prompt_tokens": length, "median_s": seconds, "tokens_per_s": length / seconds,
                "limit_s": least, "share": least / seconds,
            }
        )  # fmt: skip
    return Report(("prompt tokens", "median", "tokens/s", "limit", "share"), rows, results)


def throughput(
    driver: Driver, work: Work, num_requests: int, max_tokens: int, repeats: int
) -> Report:
    """The serving workload, all at once, from the first submission to the last token; each time of
    other ids, of which the engine has no prefix."""
    runs = [_throughput(driver, work, num_requests, max_tokens, k) for k in range(repeats)]
    columns = (
        "requests", "prompt tokens", "output tokens", "time", "output tok/s", "limit", "share",
        "mean batch", "preempted",
    )  # fmt: skip
    return Report(columns, [row for row, _ in runs], [result for _, result in runs])


def _throughput(
    driver: Driver, work: Work, num_requests: int, max_tokens: int, which: int
) -> tuple[tuple[str, ...], dict[str, float]]:
    """The row and the figures of one run."""
    engine = driver.engine
    max_tokens = min(max_tokens, engine.max_model_len // 2)
    asked = workload(num_requests, max_tokens=max_tokens, vocab_size=driver.vocab_size, which=which)
    preempted = engine.stats().num_preemptions
    run = driver.run([driver.request(ids, answer) for ids, answer in asked])
    preempted = engine.stats().num_preemptions - preempted
    lengths = [(len(ids), answer) for ids, answer in asked]
    prompts, answers = sum(len(ids) for ids, _ in asked), run.num_tokens
    max_num_seqs = engine.plan.max_num_seqs
    least = work.serve_seconds(lengths, max_num_seqs)
    batch = answers / sum(step.num_tokens > 0 for step in run.steps)
    row = (
        f"{num_requests}", f"{prompts:,}", f"{answers:,}", f"{run.seconds:.2f} s",
        f"{answers / run.seconds:,.0f}", f"{answers / least:,.0f}", f"{least / run.seconds:.0%}",
        f"{batch:.0f}", f"{preempted}",
    )  # fmt: skip
    result = {
        "requests": num_requests, "prompt_tokens": prompts, "output_tokens": answers,
        "seconds": run.seconds, "output_tokens_per_s": answers / run.seconds, "limit_s": least,
        "share": least / run.seconds, "mean_batch": batch, "preemptions": preempted,
        "max_tokens": max_tokens,
    }  # fmt: skip
    return row, result


def sweep(
    driver: Driver,
    work: Work,
    batches: Sequence[int],
    contexts: Sequence[int],
    batch_context: int,
    num_steps: int,
) -> Report:
    """Decode speed against the batch at one context, and against the context of one stream.

    A point that cannot be measured has the reason in its row. ShuzhaiError if there is no other.
    """
    plan = driver.engine.plan
    points = [("batch", n, batch_context) for n in batches]
    points += [("context", 1, n) for n in contexts]
    rows, results = [], []
    for axis, num_seqs, context in points:
        if reason := _why_not(plan, num_seqs, context, num_steps):
            rows.append((axis, f"{num_seqs}", f"{context:,}", reason, "", "", ""))
            continue
        asked = driver.random_requests(num_seqs, context - num_steps, num_steps)
        step = steady_step(driver.run(asked), num_seqs)
        least = work.decode_seconds(num_seqs, context - num_steps / 2)
        rows.append(
            (
                axis, f"{num_seqs}", f"{context:,}", milliseconds(step), f"{num_seqs / step:,.1f}",
                f"{num_seqs / least:,.1f}", f"{least / step:.0%}",
            )
        )  # fmt: skip
        results.append(
            {
                "axis": axis, "batch": num_seqs, "context": context, "step_s": step,
                "tokens_per_s": num_seqs / step, "limit_tokens_per_s": num_seqs / least,
                "share": least / step,
            }
        )  # fmt: skip
    if not results:
        reasons = "; ".join(dict.fromkeys(row[3] for row in rows))
        raise ShuzhaiError(f"no point could be measured ({reasons}); give other points or limits")
    columns = ("axis", "batch", "context", "step", "tokens/s", "limit", "share")
    return Report(columns, rows, results)


def _why_not(plan: MemoryPlan, num_seqs: int, context: int, num_steps: int) -> str:
    """Why this point of a sweep cannot be measured; empty if it can."""
    if context <= num_steps:
        return f"context within --steps {num_steps}"
    if context > plan.max_model_len:
        return f"context over {plan.max_model_len:,}"
    if num_seqs > plan.max_num_seqs:
        return f"batch over --max-num-seqs {plan.max_num_seqs}"
    return "no room" if num_seqs > plan.num_chats(context) else ""


def steady_step(run: Run, num_seqs: int) -> float:
    """The median time of a step while every sequence gets its token; of all steps that bring any,
    where that was never so."""
    full = [step.at for step in run.steps if step.num_tokens == num_seqs]
    some = [step.at for step in run.steps if step.num_tokens]
    times = full if len(full) > 3 else [0.0, *some]
    gaps = [late - early for early, late in pairwise(times)]
    return median(gaps[len(gaps) // 4 :])
