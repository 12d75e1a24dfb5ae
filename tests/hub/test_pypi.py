import contextlib
import dataclasses
import hashlib
import os
import socket
import threading
import time

import psutil
import pytest

from shuzhai.errors import DownloadError
from shuzhai.hub import pypi
from shuzhai.hub.catalog import WheelSource
from shuzhai.hub.fetch import RemoteFile, fetch, new_client
from shuzhai.hub.progress import SilentProgress
from tests.hub.fake_hub import make_wheel

NAME = "demo_model-0.1.2-py3-none-any.whl"
DATA = make_wheel({"demo/model.gguf": os.urandom(600_000)})
WHEEL = WheelSource(
    "demo-model", "0.1.2", hashlib.sha256(DATA).hexdigest(), len(DATA), "demo/model.gguf"
)


@pytest.fixture
def index(pip_index):
    pip_index.add("demo_model-0.1.1-py3-none-any.whl", b"old")
    pip_index.add(NAME, DATA)
    return pip_index


def _fetch(index, tmp_path, progress, wheel=WHEEL):
    return pypi.fetch_wheel(wheel, tmp_path / "wheel", f"{index.url}/simple", progress)


def test_with_pip(index, tmp_path, progress):
    path = _fetch(index, tmp_path, progress)
    assert path == tmp_path / "wheel" / NAME
    assert path.read_bytes() == DATA
    # A pip before 24.1 cannot tell how far it is.
    told = len(DATA) if pypi._pip_tells_progress() else None
    assert (progress.stages[-1][1], progress.done[-1]) == (told, told or 0)
    assert not any("nothing-at-all" in path for _, path, _ in index.requests)


def test_an_old_pip_tells_no_progress(index, tmp_path, progress, monkeypatch):
    monkeypatch.setattr(pypi, "_pip_tells_progress", lambda: False)
    assert _fetch(index, tmp_path, progress).read_bytes() == DATA
    assert (progress.stages[-1][1], progress.done[-1]) == (None, 0)


@pytest.mark.parametrize("html", [False, True])
def test_without_pip(index, tmp_path, progress, without_pip, html):
    index.html_index = html
    index.cuts[NAME] = [300_000]
    path = _fetch(index, tmp_path, progress)
    assert path.read_bytes() == DATA
    assert progress.done[-1] == len(DATA)
    assert len(index.fetched(NAME)) == 2


def test_without_pip_a_later_run_goes_on(index, tmp_path, progress, without_pip):
    index.cuts[NAME] = [300_000] + [0] * 6
    with pytest.raises(DownloadError, match="Run the same command again"):
        _fetch(index, tmp_path, progress)
    index.requests.clear()
    assert _fetch(index, tmp_path, progress).read_bytes() == DATA
    assert index.fetched(NAME)[0].startswith("bytes=")


def test_uvs_named_index(index, tmp_path, progress, without_pip):
    url = f"mirror={index.url}/simple"
    assert pypi.fetch_wheel(WHEEL, tmp_path / "w", url, progress).read_bytes() == DATA


def test_a_wheel_that_is_there_is_not_fetched_again(index, tmp_path, progress):
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / NAME).write_bytes(DATA)
    (tmp_path / "wheel" / "other.whl").write_bytes(b"left by a dead run")
    assert _fetch(index, tmp_path, progress).name == NAME
    assert index.requests == []


def test_another_file_is_refused(index, tmp_path, progress, without_pip):
    index.add(NAME, make_wheel({"demo/model.gguf": os.urandom(600_000)}))
    with pytest.raises(DownloadError, match="thrown away"):
        _fetch(index, tmp_path, progress)
    assert list((tmp_path / "wheel").iterdir()) == []


@pytest.mark.parametrize("has_pip", [True, False])
def test_no_such_wheel(index, tmp_path, progress, has_pip, request):
    if not has_pip:
        request.getfixturevalue("without_pip")
    wheel = dataclasses.replace(WHEEL, version="9.9")
    with pytest.raises(DownloadError, match=r"demo-model 9\.9.*PIP_INDEX_URL") as caught:
        _fetch(index, tmp_path, progress, wheel)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("has_pip", [True, False])
def test_index_out_of_reach(index, tmp_path, progress, has_pip, request, monkeypatch):
    if not has_pip:
        request.getfixturevalue("without_pip")
    address = "http://user:secret@127.0.0.1:9/simple"
    monkeypatch.setenv("PIP_INDEX_URL", address)
    with pytest.raises(DownloadError, match="PIP_INDEX_URL") as caught:
        pypi.fetch_wheel(WHEEL, tmp_path / "wheel", address, progress)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_page_that_is_no_index(index, tmp_path, progress, without_pip, monkeypatch):
    with pytest.raises(DownloadError, match="404"):
        pypi.fetch_wheel(WHEEL, tmp_path / "wheel", f"{index.url}/nothing", progress)


def test_a_file_name_from_the_index_is_a_plain_one(index, tmp_path, progress, without_pip):
    index.files = {"demo_model-0.1.2-../../../evil.whl": DATA}
    with pytest.raises(DownloadError, match="no wheel"):
        _fetch(index, tmp_path, progress)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["wheel"]


class Unwanted(SilentProgress):
    """Whoever wanted it leaves as soon as it can be ended."""

    def __init__(self, when_ready=lambda: None):
        self.is_ended = False
        self._when_ready = when_ready

    def advance(self, num_bytes):
        if self.is_ended:
            raise InterruptedError

    @contextlib.contextmanager
    def ended_by(self, end):
        def leave():
            self._when_ready()
            self.is_ended = True
            end()

        thread = threading.Thread(target=leave)
        thread.start()
        yield
        thread.join()


# An old pip ends by itself when it is told to show its progress.
@pytest.mark.parametrize("is_measured", sorted({False, pypi._pip_tells_progress()}))
def test_pip_is_ended_at_once(tmp_path, pip_index, monkeypatch, is_measured):
    monkeypatch.setattr(pypi, "_pip_tells_progress", lambda: is_measured)
    monkeypatch.setenv("PIP_TIMEOUT", "99")
    pips, others = [], set(psutil.Process().children())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")

        def when_ready():
            with silent.accept()[0]:
                pips.extend(set(psutil.Process().children()) - others)
                began.append(time.monotonic())

        began = []
        with pytest.raises(DownloadError, match="pip could not fetch"):
            pypi.fetch_wheel(WHEEL, tmp_path, None, Unwanted(when_ready))
        assert time.monotonic() - began[0] < 3
    assert pips
    assert psutil.wait_procs(pips, timeout=1)[1] == []


def test_a_transfer_that_stalls_is_ended_at_once(tmp_path, no_certificates):
    """The server has sent its head and a little, and says no more."""
    with socket.create_server(("127.0.0.1", 0)) as server, new_client() as client:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        over = threading.Event()

        def serve():
            with server.accept()[0] as sock:
                sock.recv(4096)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc")
                over.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        progress = Unwanted(lambda: time.sleep(0.3))  # until it reads
        with pytest.raises(InterruptedError):
            fetch(client, RemoteFile("x", url, 99, None), tmp_path / "x", tmp_path, progress)
        assert time.monotonic() - began < 3
        over.set()
        thread.join()
