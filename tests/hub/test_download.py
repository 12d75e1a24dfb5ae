import dataclasses
import hashlib
import json
import os

import pytest
from huggingface_hub import close_session

from shuzhai.errors import ConfigError, DownloadError
from shuzhai.hub import download as download_module
from shuzhai.hub.catalog import CATALOG
from shuzhai.hub.download import download
from tests.hub.socks import socks_proxy

ENTRY = CATALOG["internlm2-chat-1.8b"]
SHARDS = {
    "model-00001-of-00002.safetensors": os.urandom(700_000),
    "model-00002-of-00002.safetensors": os.urandom(300_000),
}
SMALL = {
    "config.json": json.dumps({"architectures": ["InternLM2ForCausalLM"]}).encode(),
    "generation_config.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {}}',
}
CODE = {"modeling_internlm2.py": b"import os", "tokenization_internlm2.py": b"import os"}
OTHER = {
    "README.md": b"# hello",
    ".gitattributes": b"",
    "pytorch_model.bin": b"pickle",
    "pytorch_model.bin.index.json": b"{}",
    "training_args.bin": b"pickle",
    "figures/a.json": b"{}",
    "../../evil.json": b"{}",
}


def fill(hub, *, pickled=False):
    for name, data in (SMALL | CODE | OTHER).items():
        hub.add(name, data, lfs=name.endswith(".bin"))
    hub.add("tokenizer.model", os.urandom(50_000), lfs=True)
    if not pickled:
        for name, data in SHARDS.items():
            hub.add(name, data, lfs=True)
    return hub


def names_of(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


WANTED = sorted([*SMALL, *SHARDS, "tokenizer.model"])


@pytest.fixture
def env_hf(environment, hub):
    fill(hub)
    return dataclasses.replace(environment, hf_endpoint=hub.url + "/")


@pytest.fixture
def env_ms(environment, second_hub):
    fill(second_hub)
    return dataclasses.replace(environment, hf_endpoint=None, modelscope_endpoint=second_hub.url)


def check(folder, hub):
    assert names_of(folder) == WANTED
    for name in WANTED:
        assert (folder / name).read_bytes() == hub.files[name]


def test_from_hugging_face(hub, env_hf, tmp_path, progress):
    folder = download(ENTRY, tmp_path, "huggingface", env_hf, progress)
    check(folder, hub)
    [(stage, total)] = progress.stages[1:]
    assert stage == "Downloading internlm2-chat-1.8b from Hugging Face"
    assert progress.done[-1] == total == sum(len(hub.files[name]) for name in WANTED)
    assert [path for _, path, _ in hub.requests if ".py" in path or ".bin" in path] == []


def test_from_modelscope(second_hub, env_ms, tmp_path, progress, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "elsewhere"))
    folder = download(ENTRY, tmp_path / "s", "modelscope", env_ms, progress)
    check(folder, second_hub)
    assert progress.stages[-1][0] == "Downloading internlm2-chat-1.8b from ModelScope"
    assert [path for _, path, _ in second_hub.requests if ".py" in path or ".bin" in path] == []
    assert not (tmp_path / "elsewhere").exists()  # no id of this installation is kept


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_goes_on_after_a_cut_and_after_a_dead_run(
    hub, env_hf, environment, tmp_path, progress, source
):
    env = dataclasses.replace(env_hf, modelscope_endpoint=hub.url)
    big = "model-00001-of-00002.safetensors"
    hub.cuts[big] = [300_000] + [0] * 6
    with pytest.raises(DownloadError, match="goes on from there"):
        download(ENTRY, tmp_path, source, env, progress)
    assert big not in names_of(tmp_path / "files")
    hub.requests.clear()
    hub.cuts[big] = [100_000]
    check(download(ENTRY, tmp_path, source, env, progress), hub)
    ranges = hub.fetched(big)
    assert len(ranges) == 2
    assert all(r is not None for r in ranges)
    assert hub.fetched("tokenizer.model") == []


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "config.json"])
def test_a_tampered_file_is_refused(hub, env_hf, tmp_path, progress, source, name):
    env = dataclasses.replace(env_hf, modelscope_endpoint=hub.url)
    hub.tampered.add(name)
    with pytest.raises(DownloadError, match=f"{name} .*checksum"):
        download(ENTRY, tmp_path, source, env, progress)
    assert name not in names_of(tmp_path)


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_truncated_file_is_refused(hub, env_hf, tmp_path, progress, source):
    env = dataclasses.replace(env_hf, modelscope_endpoint=hub.url)
    name = "model-00001-of-00002.safetensors"
    hub.listed_sizes[name] = len(SHARDS[name]) + 5
    with pytest.raises(DownloadError, match="model-00001"):
        download(ENTRY, tmp_path, source, env, progress)
    assert name not in names_of(tmp_path / "files")


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_pickled_weights_only_where_there_are_no_others(
    hub, environment, tmp_path, progress, source
):
    fill(hub, pickled=True)
    env = dataclasses.replace(environment, hf_endpoint=hub.url, modelscope_endpoint=hub.url)
    folder = download(ENTRY, tmp_path, source, env, progress)
    found = names_of(folder)
    assert "pytorch_model.bin" in found
    assert "pytorch_model.bin.index.json" in found
    assert "training_args.bin" not in found
    assert not any(name.endswith(".py") for name in found)


def test_the_reachable_one_is_chosen(second_hub, env_ms, tmp_path, progress, monkeypatch):
    # No HF_ENDPOINT: huggingface.co itself, which is made to be out of reach.
    real = download_module._endpoint
    monkeypatch.setattr(
        download_module,
        "_endpoint",
        lambda given, default: real(given, default).replace(
            "https://hugging", "http://127.0.0.1:9/"
        ),
    )
    check(download(ENTRY, tmp_path, "auto", env_ms, progress), second_hub)


def test_the_other_one_helps_out(hub, second_hub, env_hf, env_ms, tmp_path, progress):
    """HF_ENDPOINT names a mirror, which is asked first, and fails in the middle."""
    env = dataclasses.replace(env_hf, modelscope_endpoint=second_hub.url)
    second_hub.files = dict(hub.files)
    hub.statuses["model-00002-of-00002.safetensors"] = 403
    check(download(ENTRY, tmp_path, "auto", env, progress), hub)
    assert hub.fetched("model-00002") == [None]
    assert second_hub.fetched("model-00002") == [None]
    assert [stage.rsplit("from ")[-1] for stage, _ in progress.stages[1:]] == [
        "Hugging Face",
        "ModelScope",
    ]


def test_a_dead_mirror_is_passed_over(second_hub, env_ms, tmp_path, progress):
    env = dataclasses.replace(env_ms, hf_endpoint="http://127.0.0.1:9")
    check(download(ENTRY, tmp_path, "auto", env, progress), second_hub)


@pytest.fixture
def new_session():
    """huggingface_hub keeps one client, with the proxies of the time when it was made."""
    close_session()
    yield
    close_session()


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_through_a_socks_proxy(
    hub, environment, tmp_path, progress, source, monkeypatch, new_session
):
    """Of all three libraries that ask: httpx, and those of the two hubs' packages."""
    fill(hub)
    there = "http://hub.invalid"
    env = dataclasses.replace(environment, hf_endpoint=there, modelscope_endpoint=there)
    with socks_proxy(hub.port) as (address, hosts):
        monkeypatch.setenv("ALL_PROXY", f"socks5h://{address}")
        check(download(ENTRY, tmp_path, source, env, progress), hub)
        assert len(hosts) >= 3
        assert set(hosts) == {"hub.invalid"}


@pytest.mark.parametrize("source", ["auto", "huggingface", "modelscope"])
def test_a_proxy_that_cannot_be_used_is_named(environment, tmp_path, progress, source, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    env = dataclasses.replace(environment, hf_endpoint=None)
    with pytest.raises(DownloadError, match="ALL_PROXY"):
        download(ENTRY, tmp_path, source, env, progress)


def test_nothing_can_be_reached(environment, tmp_path, progress):
    with pytest.raises(DownloadError) as caught:
        download(ENTRY, tmp_path, "auto", environment, progress)
    for words in ("Hugging Face", "ModelScope", "HF_ENDPOINT", "folder"):
        assert words in str(caught.value)


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "not public"), (403, "not public"), (404, "not public"), (500, "500|no list")],
)
def test_refusals_are_explained(
    hub, env_hf, tmp_path, progress, source, status, words, monkeypatch
):
    env = dataclasses.replace(env_hf, modelscope_endpoint=hub.url)
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    hub.statuses["list"] = status
    with pytest.raises(DownloadError, match=words) as caught:
        download(ENTRY, tmp_path, source, env, progress)
    assert "HF_ENDPOINT" in str(caught.value)


def test_a_gated_file_is_explained(hub, env_hf, tmp_path, progress):
    hub.statuses["model-00001-of-00002.safetensors"] = 401
    with pytest.raises(DownloadError, match="licence must be accepted"):
        download(ENTRY, tmp_path, "huggingface", env_hf, progress)


def test_a_repository_without_a_checkpoint(hub, env_hf, tmp_path, progress):
    hub.files = {"config.json": b"{}", "README.md": b""}
    with pytest.raises(DownloadError, match="no checkpoint"):
        download(ENTRY, tmp_path, "huggingface", env_hf, progress)


def test_weights_without_a_sha256_are_refused(hub, env_hf, tmp_path, progress):
    hub.lfs.clear()
    with pytest.raises(DownloadError, match="sha256"):
        download(ENTRY, tmp_path, "huggingface", env_hf, progress)


def test_files_of_an_older_state_are_removed(hub, env_hf, tmp_path, progress):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(b"old")
    (tmp_path / "files" / "config.json").write_bytes(b"old")
    check(download(ENTRY, tmp_path, "huggingface", env_hf, progress), hub)


def test_a_full_disk_is_said_before_the_download(hub, env_hf, tmp_path, progress):
    hub.listed_sizes["model-00001-of-00002.safetensors"] = 10**18
    with pytest.raises(DownloadError, match="free"):
        download(ENTRY, tmp_path, "huggingface", env_hf, progress)
    assert hub.fetched("model-00001") == []


def test_the_source_must_have_the_model(environment, tmp_path, progress):
    entry = dataclasses.replace(ENTRY, modelscope=None)
    with pytest.raises(ConfigError, match="not on modelscope"):
        download(entry, tmp_path, "modelscope", environment, progress)


def test_the_checksums_of_the_fake_are_the_real_ones():
    """git hash-object of "hello", so that the fake and fetch do not share a mistake."""
    digest = hashlib.sha1(b"blob 5\0hello").hexdigest()
    assert digest == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
