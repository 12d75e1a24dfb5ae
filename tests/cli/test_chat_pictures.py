"""Paths as people type and drop them, and files that are read before anything is asked."""

import pytest
from PIL import Image

from shuzhai.cli.chat_pictures import Picture, find_files, read_picture
from shuzhai.errors import InvalidRequestError

NAMES = ("cat.png", "my cat (1).png", "it's.png", "猫 和 狗.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in NAMES:
        Image.new("RGB", (3, 2)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("{}/cat.png", ["cat.png"]),
        ("~/cat.png", ["cat.png"]),
        ("{}/my cat (1).png", ["my cat (1).png"]),
        ("~/my cat (1).png", ["my cat (1).png"]),
        ("'{}/my cat (1).png'", ["my cat (1).png"]),
        ('"{}/my cat (1).png"', ["my cat (1).png"]),
        (r"{}/my\ cat\ \(1\).png", ["my cat (1).png"]),
        ("{}/it's.png", ["it's.png"]),
        (r"'{}/it'\''s.png'", ["it's.png"]),
        ("file://{}/my%20cat%20(1).png", ["my cat (1).png"]),
        ("'file://localhost{}/%E7%8C%AB%20%E5%92%8C%20%E7%8B%97.png'", ["猫 和 狗.png"]),
        ("{}/猫 和 狗.png", ["猫 和 狗.png"]),
        ("'{0}/cat.png' {0}/it\\'s.png", ["cat.png", "it's.png"]),
        ("{0}/cat.png {0}/none.png", []),
        ("{}/none.png", []),
        ("{}", []),
        ("'{}/cat.png", []),
        ("~nobody-of-that-name/cat.png", []),
        ("{}/cat.png\0", []),
        ("x" * 5000, []),
        ("https://example.org/cat.png", []),
    ],
)
def test_find_files(folder, typed, names):
    assert find_files(typed.replace("{0}", "{}").replace("{}", str(folder))) == [
        folder / name for name in names
    ]


def test_a_picture_is_kept_as_the_file_is(folder):
    path = folder / "my cat (1).png"
    picture = read_picture(path)
    assert picture == Picture("my cat (1).png", 3, 2, path.read_bytes())
    assert str(picture) == "my cat (1).png (3 × 2)"


def test_the_size_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    picture = read_picture(tmp_path / "turned.jpg")
    assert (picture.width, picture.height) == (20, 30)


def test_what_is_no_picture_is_said(tmp_path):
    (tmp_path / "page.png").write_text("<html>")
    (tmp_path / "folder").mkdir()
    for name in ("page.png", "none.png", "folder"):
        with pytest.raises(InvalidRequestError, match=f"^{name}: "):
            read_picture(tmp_path / name)
