"""The models that come with the package: found without a network, a store or a home."""

import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from shuzhai.errors import CheckpointError
from shuzhai.hub import shipped
from shuzhai.hub.catalog import CATALOG
from shuzhai.hub.pull import pull, resolve
from shuzhai.hub.store import Store

ROOT = Path(shipped.__file__).parents[2]
SHIPPED = [name for name, entry in CATALOG.items() if entry.shipped]
MOST_BYTES = 32_000_000  # all of them together, so that a clone stays light


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the shipped folders that a test may damage."""
    folder = tmp_path / "demo"
    shutil.copytree(shipped.folder_of(SHIPPED[0]), folder / SHIPPED[0])
    monkeypatch.setattr(shipped, "_FOLDER", folder)
    return folder / SHIPPED[0]


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_taken_from_the_package(name, environment, tmp_path, progress):
    home = tmp_path / "read-only"
    home.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    store = Store(home / "models")
    for model in (name, name.upper().replace("-", "_")):
        path = resolve(model, store, progress, environment=environment)
        assert path == shipped.folder_of(name)
    assert pull(name, store, progress, environment=environment) == path
    assert store.has(name)
    assert store.path_of(name) == path
    assert name in [model.name for model in store.installed()]
    assert list(home.iterdir()) == []
    assert [stage for stage, _ in progress.stages] == ["test"]


def test_a_folder_in_the_store_does_not_hide_it(store, environment, progress):
    (store.root / SHIPPED[0]).mkdir(parents=True)
    (store.root / SHIPPED[0] / "config.json").write_text("{}")
    path = resolve(SHIPPED[0], store, progress, environment=environment)
    assert path == shipped.folder_of(SHIPPED[0])


@pytest.mark.parametrize("file", ["config.json", "tokenizer.model", "model.safetensors"])
def test_a_missing_file_is_told(file, package, store, environment, progress):
    (package / file).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks {file}\. Install shuzhai again"):
        resolve(SHIPPED[0], store, progress, environment=environment)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.model", "model.safetensors"])
def test_a_file_that_cannot_be_read_is_told(
    file, package, store, environment, progress, monkeypatch
):
    opened = Path.open

    def refuse(path, *args, **options):
        if path.name == file:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    message = rf"{file}, which cannot be read \(Permission denied\)\. Install"
    with pytest.raises(CheckpointError, match=message):
        resolve(SHIPPED[0], store, progress, environment=environment)


def test_a_missing_folder_is_told(package, store, environment, progress):
    shutil.rmtree(package)
    assert not store.has(SHIPPED[0])
    with pytest.raises(CheckpointError, match=r"tiny-internvl2 is part of shuzhai, but .* lacks"):
        resolve(SHIPPED[0], store, progress, environment=environment)


def _header(value):
    text = json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\xff" * 64,
        b"version https://git-lfs.github.com/spec/v1\n",
        _header([]),
        _header({"a": 1}),
        _header({"a": {"data_offsets": [0]}}),
        _header({"a": {"data_offsets": [0, "8"]}}),
        _header({"a": {"data_offsets": [0, 8]}}),
    ],
)
def test_damaged_weights_are_told(content, package, store, environment, progress):
    weights = package / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] if content is None else content)
    with pytest.raises(CheckpointError, match=r"damaged model\.safetensors\. Install"):
        resolve(SHIPPED[0], store, progress, environment=environment)


def test_they_are_light_and_can_be_read_by_all():
    files = [file for name in SHIPPED for file in shipped.folder_of(name).iterdir()]
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
    if os.name != "nt":
        assert all(file.stat().st_mode & stat.S_IROTH for file in files)


def test_notice_goes_with_them():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert (shipped.folder_of(SHIPPED[0]).parent / "NOTICE").read_text(encoding="utf-8") == notice
    for name in ("Noto Emoji", "Twemoji", "EmojiOne", "Fluent Emoji", "FxEmojis", "CLDR"):
        assert name in notice
    for licence in ("licenses/by/4.0/", "LICENSE-2.0", "MIT License", "UNICODE LICENSE V3"):
        assert licence in notice


def test_the_wheel_holds_them(tmp_path):
    """What setuptools puts into a wheel, told by itself."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "shuzhai", source / "shuzhai", ignore=shutil.ignore_patterns("__pyc*"))
    built = subprocess.run(
        [sys.executable, "-c",
         "from setuptools import build_meta; print(build_meta.build_wheel('.'))"],
        cwd=source, capture_output=True, text=True,
    )  # fmt: skip
    if "No module named 'setuptools'" in built.stderr:
        pytest.skip("setuptools is not installed here")
    assert built.returncode == 0, built.stderr
    [wheel] = source.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in (ROOT / "shuzhai" / "demo").rglob("*"):
        assert file.is_dir() or file.relative_to(ROOT).as_posix() in names
