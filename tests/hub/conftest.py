import contextlib
import dataclasses
import importlib.util
import os

import pytest

from shuzhai.config import Environment
from shuzhai.hub import fetch
from shuzhai.hub.store import Store
from tests.hub.fake_hub import FakeHub


class Recorder:
    """A Progress that remembers: stages, and per stage what was announced and what was done."""

    def __init__(self):
        self.stages = []
        self.done = []

    def begin(self, stage, total_bytes):
        self.stages.append((stage, total_bytes))
        self.done.append(0)

    def advance(self, num_bytes):
        self.done[-1] += num_bytes

    def ended_by(self, end):
        return contextlib.nullcontext()


@pytest.fixture
def progress():
    recorder = Recorder()
    recorder.begin("test", None)
    return recorder


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", 0.001)


@pytest.fixture
def no_certificates(monkeypatch):
    """Hubs here speak plain HTTP: reading the real certificates for each client takes long."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def hub(no_certificates):
    with FakeHub() as fake:
        yield fake


@pytest.fixture
def second_hub():
    with FakeHub() as fake:
        yield fake


@pytest.fixture
def environment(tmp_path):
    """Nothing is set; nothing is reachable."""
    return dataclasses.replace(
        Environment.read({}),
        home=tmp_path / "home",
        hf_endpoint="http://127.0.0.1:9",
        modelscope_endpoint="http://127.0.0.1:9",
        index_url="http://127.0.0.1:9/simple",
    )


@pytest.fixture
def store(environment):
    return Store.at_home(environment)


@pytest.fixture
def pip_index(hub, monkeypatch, tmp_path):
    """pip is set up, as by a user, to use a mirror."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{hub.url}/simple")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip-cache"))
    monkeypatch.setenv("PIP_RETRIES", "0")
    return hub


@pytest.fixture
def without_pip(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name)
    )
