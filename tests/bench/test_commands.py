"""`shuzhai bench` on a tiny model of random weights: what it prints, not how fast it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from shuzhai.bench.machine import Limits
from shuzhai.bench.workload import workload
from shuzhai.cli.main import main
from shuzhai.server.settings import ServerConfig
from tests.server.fakes import FakeEngine
from tests.server.live import live_server
from tests.support.tiny_vision import write_internvl2


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Measuring them takes seconds."""
    given = Limits(1e10, 1e11)
    monkeypatch.setattr("shuzhai.cli.bench.measure_limits", lambda device, dtype: given)
    return given


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_internvl2(tmp_path_factory.mktemp("tiny"))


def bench(
    capsys: pytest.CaptureFixture[str], kind: str, folder: Path, *words: str
) -> tuple[str, dict[str, Any]]:
    """What was printed, and the last line of it."""
    options = ["--device", "cpu", "--memory", "256MiB", "--random-weights", str(folder)]
    assert main(["bench", kind, *options, *words]) == 0
    said = capsys.readouterr().out
    return said, json.loads(said.splitlines()[-1])


def test_latency(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    said, record = bench(
        capsys, "latency", folder, "--prompt", "8", "--output", "6", "--json", str(file)
    )
    for word in ("model ", "device ", "memory ", "limits ", "start ", "peak ", "bytes a token"):
        assert word in said
    assert json.loads(file.read_text()) == record
    assert record["bench"] == "latency"
    assert record["kv_dtype"] == "float32"
    assert record["kv_token_bytes"] == 2 * 2 * 2 * 8 * 4  # keys, values; layers; heads; their size
    assert record["limits"] == {"read_bytes_per_s": 1e10, "flops_per_s": 1e11}
    assert record["peak_memory_bytes"] > 0
    first, further = record["results"]
    assert 0 < first["median_s"] <= first["p99_s"]
    assert further["tokens_per_s"] == pytest.approx(1 / further["median_s"])
    assert 0 < further["share"] < 1


@pytest.mark.parametrize("kv_dtype", ["int8", "int4"])
def test_a_quantised_cache(kv_dtype: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    _, record = bench(capsys, "latency", folder, "--output", "4", "--kv-dtype", kv_dtype)
    assert record["kv_dtype"] == kv_dtype
    assert record["kv_token_bytes"] == 2 * 2 * 2 * (8 * int(kv_dtype[3:]) // 8 + 4)


def test_latency_of_a_picture(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    said, record = bench(capsys, "latency", folder, "--picture", "60x30", "--repeats", "2")
    assert "60x30, 3 tiles" in said
    *_, new = record["results"]
    assert new["what"] == "first token of a new picture"
    assert new["tiles"] == 3
    assert [r["what"] for r in record["results"]][:2] == ["prepare (host)", "encode"]


def test_prefill(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    _, record = bench(capsys, "prefill", folder, "--prompt", "5", "300", "--repeats", "1")
    assert [r["prompt_tokens"] for r in record["results"]] == [5, 300]


def test_throughput(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    options = ("--requests", "5", "--max-tokens", "12")
    _, record = bench(capsys, "throughput", folder, *options, "--repeats", "2")
    result, again = record["results"]
    assert result["requests"] == again["requests"] == 5
    assert result["output_tokens"] == again["output_tokens"]
    assert result["prompt_tokens"] <= 60
    assert 5 <= result["output_tokens"] <= 60
    assert result["output_tokens_per_s"] == result["output_tokens"] / result["seconds"]
    assert 1 <= result["mean_batch"] <= 5


def test_sweep(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    svg = tmp_path / "plot.svg"
    said, record = bench(
        capsys, "sweep", folder, "--batches", "1", "3", "200", "--batch-context", "20",
        "--contexts", "16", "64", "--steps", "8", "--svg", str(svg),
    )  # fmt: skip
    assert [(r["axis"], r["batch"], r["context"]) for r in record["results"]] == [
        ("batch", 1, 20), ("batch", 3, 20), ("context", 1, 16), ("context", 1, 64),
    ]  # fmt: skip
    assert "batch over --max-num-seqs 64" in said
    assert len(ElementTree.fromstring(svg.read_text()).findall(".//{*}polyline")) == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
def test_what_was_measured_is_shown_before_a_file_is_written(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path
) -> None:
    tiny = ["--random-weights", str(tiny_folder), "--device", "cpu", "--memory", "256MiB"]
    points = ["--batches", "1", "--contexts", "8", "--batch-context", "8", "--steps", "4"]
    for option in ("--json", "--svg"):
        assert main(["bench", "sweep", *tiny, *points, option, "/dev/full"]) == 1
        said = capsys.readouterr()
        assert len(json.loads(said.out.splitlines()[-1])["results"]) == 2
        assert said.err.startswith("error: /dev/full cannot be written: No space left")
        assert len(said.err.splitlines()) == 1


def test_what_nobody_gave_fits_a_small_context(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    said, _ = bench(capsys, "latency", folder, "--max-model-len", "8")
    assert "4 + 4 tokens" in said
    said, _ = bench(capsys, "latency", folder, "--max-model-len", "8", "--output", "2")
    assert "4 + 2 tokens" in said
    _, record = bench(capsys, "prefill", folder, "--max-model-len", "8")
    assert [r["prompt_tokens"] for r in record["results"]] == [7]


def test_serve(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """By a server in a process of its own."""
    said, record = bench(capsys, "serve", folder, "--requests", "3", "--max-tokens", "6")
    (result,) = record["results"]
    assert result["requests"] == 3
    assert 3 <= result["output_tokens"] <= 18
    assert 0 < result["ttft_p50_s"] <= result["ttft_p99_s"] <= result["seconds"]
    assert record["model"] == f"random {folder.name}"
    assert record["peak_memory_bytes"] > 0
    assert "of the limit" in said
    assert "KV cache in float32" in said


def test_serve_by_a_running_server(capsys: pytest.CaptureFixture[str]) -> None:
    with live_server([FakeEngine()], ServerConfig(api_keys=("key",))) as live:
        words = ["bench", "serve", "--url", live.url, "--requests", "4", "--max-tokens", "8"]
        assert main([*words, "--rate", "50", "--api-key", "key", "--concurrency", "2"]) == 0
        said = capsys.readouterr().out
        assert "4 requests, 50 a second" in said
        assert "of the limit" not in said
        record = json.loads(said.splitlines()[-1])
        assert record["model"] == "tiny"
        assert "model    tiny" in said
        (result,) = record["results"]
        assert result["output_tokens"] == sum(n for _, n in workload(4, max_tokens=8))
        assert result["itl_p50_s"] >= 0
        assert main([*words, "other", "--api-key", "key"]) == 1
        assert "no model 'other'; give one of: tiny" in capsys.readouterr().err
        assert main(words) == 1
        assert "answered 401" in capsys.readouterr().err


def test_what_is_refused(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    tiny = ["--random-weights", str(tiny_folder), "--device", "cpu", "--memory", "256MiB"]
    for words, what in (
        (["latency"], "say what to measure"),
        (["latency", "x", "--random-weights", "y"], "not both"),
        (["latency", *tiny, "--picture"], "reads text only"),
        (["serve"], "say what to measure"),
        (["serve", "x"], "needs --url"),
        (["serve", "--url", "http://127.0.0.1:9"], "does not answer"),
        (["serve", "--url", "http://127.0.0.1:9", *tiny], "leave --random-weights out"),
        (
            ["sweep", *tiny, "--batches", "999", "--contexts", "9", "--steps", "9"],
            "no point could be measured (batch over --max-num-seqs 64; context within --steps 9)",
        ),
        (["prefill", *tiny, "--prompt", "9999"], "more than the context"),
    ):
        assert main(["bench", *words]) == 1
        assert what in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["serve", "--url", "http://127.0.0.1:9", "--rate", "-3"], "0 or more"),
        (["serve", "--url", "http://127.0.0.1:9", "--rate", "nan"], "0 or more"),
        (["latency", "--picture", "0x10"], "from 1 to"),
        (["latency", "--picture", "99999x9"], "from 1 to"),
        (["latency", "x", "--json", "/no/such/folder/x.json"], "in a folder"),
        (["latency", "x", "--json", f"/{'x' * 300}/x.json"], "in a folder"),
        (["throughput", "x", "--requests", "1000001"], "from 1 to 1,000,000"),
        (["serve", "--requests", "9" * 5000], "from 1 to 1,000,000"),
        (["latency", "x", "--output", "1"], "from 2 to"),
        (["sweep", "x", "--batches"], "at least one"),
    ],
)
def test_nonsense_is_refused_at_once(
    words: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", *words])
    assert what in capsys.readouterr().err
