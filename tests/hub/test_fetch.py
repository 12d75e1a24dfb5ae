import hashlib
import sys

import pytest

from shuzhai.errors import DownloadError
from shuzhai.hub.fetch import RemoteFile, fetch, new_client

DATA = bytes(range(256)) * 4096  # 1 MB


@pytest.fixture
def client():
    with new_client() as client:
        yield client


@pytest.fixture
def file(hub):
    hub.add("w.bin", DATA)
    return RemoteFile("w.bin", f"{hub.url}/files/w.bin", len(DATA), _sha256(DATA))


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


def _git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def test_whole_file(file, client, tmp_path, progress):
    fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert (tmp_path / "w.bin").read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["w.bin"]
    assert progress.done[-1] == len(DATA)


def test_a_file_that_is_there_is_not_fetched_again(hub, file, client, tmp_path, progress):
    (tmp_path / "w.bin").write_bytes(DATA)
    fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert hub.requests == []
    assert progress.done[-1] == len(DATA)


def test_goes_on_after_cut_connections(hub, file, client, tmp_path, progress):
    hub.cuts["w.bin"] = [300_000, 0, 0, 100_000]
    fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert (tmp_path / "w.bin").read_bytes() == DATA
    ranges = hub.fetched("w.bin")
    assert ranges[0] is None
    assert all(r is not None for r in ranges[2:])
    assert len(ranges) == 5
    assert progress.done[-1] == len(DATA)


def test_gives_up_in_the_end_and_a_later_run_goes_on(hub, file, client, tmp_path, progress):
    hub.cuts["w.bin"] = [262_144 * 2] + [0] * 6
    with pytest.raises(DownloadError, match=r"stopped at .* Run the same command again"):
        fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert not (tmp_path / "w.bin").exists()
    hub.requests.clear()
    fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert (tmp_path / "w.bin").read_bytes() == DATA
    [given] = hub.fetched("w.bin")
    assert int(given.removeprefix("bytes=").removesuffix("-")) >= 262_144


def test_a_server_without_ranges_begins_anew(hub, file, client, tmp_path, progress):
    hub.ranges = False
    hub.cuts["w.bin"] = [500_000]
    fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert (tmp_path / "w.bin").read_bytes() == DATA
    assert progress.done[-1] == len(DATA)


@pytest.mark.parametrize("digest", [_sha256, _git_sha1])
def test_a_tampered_file_is_refused(hub, file, client, tmp_path, progress, digest):
    file = RemoteFile(file.name, file.url, file.size, digest(DATA))
    hub.tampered.add("w.bin")
    with pytest.raises(DownloadError, match="checksum differs"):
        fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert list(tmp_path.iterdir()) == []
    hub.tampered.clear()
    fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert (tmp_path / "w.bin").read_bytes() == DATA


def test_a_tampered_file_on_disk_is_fetched_again(file, client, tmp_path, progress):
    (tmp_path / "w.bin").write_bytes(b"?" + DATA[1:])
    fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert (tmp_path / "w.bin").read_bytes() == DATA


def test_longer_than_announced_is_refused(file, client, tmp_path, progress):
    file = RemoteFile(file.name, file.url, len(DATA) - 1, file.digest)
    with pytest.raises(DownloadError, match="more"):
        fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert list(tmp_path.iterdir()) == []


def test_shorter_than_announced_is_refused(file, client, tmp_path, progress):
    file = RemoteFile(file.name, file.url, len(DATA) + 1, file.digest)
    with pytest.raises(DownloadError):
        fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert not (tmp_path / "w.bin").exists()


@pytest.mark.parametrize(
    ("status", "words"), [(401, "login"), (403, "refuses"), (404, "no such file"), (410, "410")]
)
def test_refusals_are_explained(hub, file, client, tmp_path, progress, status, words):
    hub.statuses["w.bin"] = status
    with pytest.raises(DownloadError, match=words):
        fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert len(hub.requests) == 1


def test_a_busy_server_is_asked_again(hub, file, client, tmp_path, progress):
    hub.statuses["w.bin"] = 503
    with pytest.raises(DownloadError, match="503"):
        fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert len(hub.requests) == 6


def test_an_empty_file(hub, client, tmp_path, progress):
    hub.add("empty.json", b"")
    file = RemoteFile("empty.json", f"{hub.url}/files/empty.json", 0, _git_sha1(b""))
    fetch(client, file, tmp_path / "empty.json", tmp_path, progress)
    assert (tmp_path / "empty.json").read_bytes() == b""


@pytest.mark.parametrize(
    "proxy", ["socks://user:secret@127.0.0.1:9", "http://127.0.0.1:port", "http://[::"]
)
def test_a_proxy_that_cannot_be_used(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(DownloadError, match="ALL_PROXY") as caught:
        new_client()
    assert "secret" not in str(caught.value)


def test_a_proxy_whose_library_is_missing(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(DownloadError, match="ALL_PROXY"):
        new_client()


def test_certificates_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(DownloadError, match="SSL_CERT_FILE"):
        new_client()


def test_messages_do_not_hold_passwords(client, tmp_path, progress):
    file = RemoteFile("w.bin", "http://user:secret@127.0.0.1:9/w.bin", 5, "0" * 64)
    with pytest.raises(DownloadError) as caught:
        fetch(client, file, tmp_path / "w.bin", tmp_path, progress)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)
