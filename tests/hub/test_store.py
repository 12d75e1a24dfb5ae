import os
import threading

import pytest

from shuzhai.errors import ModelNotFoundError
from shuzhai.hub.catalog import CATALOG
from shuzhai.hub.pull import pull, resolve
from shuzhai.hub.store import InstalledModel, Store

HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "../..",
    "../../etc/passwd",
    "smollm2-135m/../../x",
    "/etc/passwd",
    "C:\\",
    "..\\..\\x",
    "\\\\host\\share",
    "//host/share",
    "https://example.com/model",
    "file:///etc",
    "smollm2-135m\0",
    "a\0b",
    "smollm2-135m\n",
    ".partial",
    ".locks/smollm2-135m",
    "x" * 100_000,
]


@pytest.mark.parametrize("name", [n for n in HOSTILE_NAMES if n.strip() != "smollm2-135m"])
def test_only_catalog_names_become_paths(name, store, progress, environment):
    for call in (
        store.path_of,
        store.has,
        store.staging_of,
        lambda n: pull(n, store, progress, environment=environment),
    ):
        with pytest.raises(ModelNotFoundError):
            call(name)
    assert not store.root.exists()


@pytest.mark.parametrize("name", [n for n in HOSTILE_NAMES if n.strip() != "smollm2-135m"])
def test_resolve_refuses_them_too(name, store, progress, environment):
    with pytest.raises(ModelNotFoundError):
        resolve(name, store, progress, environment=environment)
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["//host/share", "\\\\host\\share", "http://h/x", "a\0b"])
def test_resolve_does_not_even_look_at_shares_and_addresses(
    name, store, progress, environment, monkeypatch
):
    monkeypatch.setattr(os.path, "isfile", lambda path: pytest.fail(f"looked at {path!r}"))
    monkeypatch.setattr(os.path, "isdir", lambda path: pytest.fail(f"looked at {path!r}"))
    with pytest.raises(ModelNotFoundError):
        resolve(name, store, progress, environment=environment)


def test_a_local_folder_is_taken_as_it_is(tmp_path, store, progress, environment, monkeypatch):
    folder = tmp_path / "my model"
    folder.mkdir()
    with pytest.raises(ModelNotFoundError, match="no config"):
        resolve(folder, store, progress, environment=environment)
    (folder / "config.json").write_text("{}")
    assert resolve(folder, store, progress, environment=environment) == folder
    assert resolve(str(folder), store, progress, environment=environment) == folder
    monkeypatch.chdir(tmp_path)
    found = resolve("./my model", store, progress, environment=environment)
    assert str(found) == "my model"


def _pulled(store):
    return [model for model in store.installed() if not CATALOG[model.name].shipped]


def _complete(folder, size=10):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * size)
    return folder


def test_publish_is_one_step_and_leaves_nothing_behind(store, environment):
    assert _pulled(store) == []
    folder = _complete(store.staging_of("smollm2-135m") / "files")
    assert not store.has("smollm2-135m")
    assert _pulled(store) == []
    path = store.publish(folder, "smollm2-135m")
    assert _pulled(store) == [InstalledModel("smollm2-135m", path, 12)]
    assert not store.staging_of("smollm2-135m").exists()
    assert resolve("SmolLM2-135M", store, None, environment=environment) == path


def test_a_model_that_is_here_needs_no_store_that_can_be_written(store, environment):
    path = _complete(store.path_of("smollm2-135m"))
    (store.root / ".locks").write_text("no folder")
    assert pull("smollm2-135m", store, None, environment=environment) == path
    assert resolve("smollm2-135m", store, None, environment=environment) == path
    assert sorted(p.name for p in store.root.iterdir()) == [".locks", "smollm2-135m"]


def test_publish_replaces_a_damaged_model(store):
    store.path_of("internvl2-2b").mkdir(parents=True)
    (store.path_of("internvl2-2b") / "rubbish").write_text("")
    assert not store.has("internvl2-2b")
    folder = _complete(store.staging_of("internvl2-2b") / "files")
    store.publish(folder, "internvl2-2b")
    assert sorted(p.name for p in store.path_of("internvl2-2b").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_the_lock_lets_one_in_at_a_time(tmp_path):
    store = Store(tmp_path)
    entered, waited, order = threading.Event(), threading.Event(), []

    def second():
        entered.wait(5)
        with store.lock("smollm2-135m", waited.set):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with store.lock("smollm2-135m", lambda: None):
        entered.set()
        assert waited.wait(5)
        with store.lock("internvl2-2b", lambda: pytest.fail("another model is free")):
            order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
