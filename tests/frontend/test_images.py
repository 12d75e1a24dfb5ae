"""Pictures of every kind come out right, and hostile ones are refused before they do harm."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shuzhai.config import ImageSpec
from shuzhai.errors import InvalidRequestError
from shuzhai.frontend import images
from shuzhai.frontend.images import open_image, prepare_image, read_data_url

COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
SMOOTH = Image.fromarray(
    np.stack(np.meshgrid(np.arange(0, 240, 8), np.arange(0, 240, 12)), -1)[..., [0, 1, 0]].astype(
        np.uint8
    )
)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def same(image: Image.Image, wanted: Image.Image) -> bool:
    return image.mode == "RGB" and image.size == wanted.size and image.tobytes() == wanted.tobytes()


def refusal(source: object) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        open_image(source, "messages[0].content[1]")
    message = str(caught.value)
    assert caught.value.param == "messages"
    assert message.startswith("messages[0].content[1]: ")
    assert " object at 0x" not in message
    return message


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def with_chunk(png: bytes, *chunks: bytes) -> bytes:
    """Chunks right after the header."""
    return png[:33] + b"".join(chunks) + png[33:]


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    )


# Modes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_each_format(kind: str) -> None:
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = saved(COLOURS, kind, **options)
    assert same(open_image(data, "image"), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_of_png_are_as_pillow_converts(mode: str) -> None:
    image = COLOURS.convert(mode)
    assert same(open_image(saved(image, "PNG"), "image"), image.convert("RGB"))
    assert same(open_image(image, "image"), image.convert("RGB"))


def test_alpha_is_dropped_not_blended() -> None:
    image = COLOURS.copy()
    image.putalpha(Image.new("L", image.size, 0))
    assert same(open_image(saved(image, "PNG"), "image"), COLOURS)
    assert same(open_image(saved(image, "WEBP", lossless=True, exact=True), "image"), COLOURS)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_palettes_with_transparency(transparency: int | bytes) -> None:
    image = COLOURS.quantize(256)
    data = saved(image, "PNG", transparency=transparency)
    assert same(open_image(data, "image"), image.convert("RGB"))
    opened = Image.open(io.BytesIO(data))
    assert same(open_image(opened, "image"), image.convert("RGB"))
    assert opened.info["transparency"] == transparency


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpeg(adobe: bool) -> None:
    data = saved(SMOOTH.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    if not adobe:
        data = data.replace(b"Adobe", b"adobe")
    close = np.asarray(open_image(data, "image"), int) - np.asarray(SMOOTH, int)
    assert abs(close).mean() < 4


def test_sixteen_bits_are_scaled() -> None:
    deep = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    wanted = Image.fromarray((deep >> 8).astype(np.uint8)).convert("RGB")
    image = Image.fromarray(deep)
    assert image.mode == "I;16"
    assert same(open_image(saved(image, "PNG"), "image"), wanted)
    assert same(open_image(image, "image"), wanted)
    big = Image.frombytes("I;16B", (64, 64), deep.astype(">u2").tobytes())
    assert same(open_image(big, "image"), wanted)
    wide = open_image(Image.fromarray(deep.astype(np.int32)), "image")
    assert abs(np.asarray(wide, int) - np.asarray(wanted, int)).max() <= 1


@pytest.mark.parametrize("scale", [1 / 255, 1.0, 257.0, 1e30])
def test_floats_are_scaled(scale: float) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    floats = (grey * np.float64(scale)).astype(np.float32)
    wanted = Image.fromarray(grey).convert("RGB")
    assert same(open_image(Image.fromarray(floats), "image"), wanted)
    floats[0, 0] = np.nan
    assert same(open_image(Image.fromarray(floats), "image"), wanted)


def test_a_range_around_zero_is_not_clipped() -> None:
    values = np.linspace(-1, 1, 256, dtype=np.float32).reshape(16, 16)
    grey = np.asarray(open_image(Image.fromarray(values), "image"))[..., 0].ravel()
    assert (np.abs(grey - np.arange(256.0)) <= 1).all()
    whole = Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16))
    assert np.asarray(open_image(whole, "image"))[..., 0].ravel().tolist() == list(range(256))


# Orientation and animation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010F] = "camera"
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = saved(COLOURS, kind, exif=exif, **options)
    flat = np.asarray(Image.open(io.BytesIO(saved(COLOURS, kind, **options))).convert("RGB"))
    turned = {
        1: flat, 2: flat[:, ::-1], 3: flat[::-1, ::-1], 4: flat[::-1],
        5: flat.swapaxes(0, 1), 6: np.rot90(flat, -1),
        7: flat[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(flat),
    }  # fmt: skip
    assert np.array_equal(open_image(data, "image"), turned[orientation])
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(open_image(opened, "image"), turned[orientation])
    assert np.array_equal(opened.convert("RGB"), flat)


@pytest.mark.parametrize(
    "exif",
    [
        b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"garbage",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
        b"II*\0\x08\0\0\0\x02\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\x7f",
    ],
)  # fmt: skip
def test_broken_exif_does_not_matter(exif: bytes) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = saved(COLOURS, kind, exif=b"Exif\0\0" + exif)
        plain = Image.open(io.BytesIO(saved(COLOURS, kind)))
        assert same(open_image(data, "image"), plain.convert("RGB"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert same(open_image(data, "image"), frames[0])


# Hostile input


@pytest.mark.parametrize(
    "data",
    [
        b"", b"<!DOCTYPE html><html></html>", b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999999 9999999\n",
        b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =  8".ljust(2800),
        b"8BPS\0\x01" + bytes(60), b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
        b"II*\0\x08\0\0\0" + bytes(60), b"\0\0\x01\0\x01\0" + bytes(60),
        b"P6 9999999 9999999 255\n",
        b"\0\0\0\x1cftypavif" + bytes(60), b"RIFF\x24\0\0\0WAVEfmt " + bytes(60),
    ],
    ids=["empty", "html", "pdf", "svg", "eps", "fits", "psd", "jp2", "tiff", "ico", "ppm", "avif",
         "wav"],
)  # fmt: skip
def test_other_kinds_are_refused(data: bytes) -> None:
    assert "PNG, JPEG, WebP, GIF and BMP can be read" in refusal(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x89PNG\r\n\x1a\n<html></html>", id="html as png"),
        pytest.param(b"\xff\xd8\xff<html></html>", id="html as jpeg"),
        pytest.param(b"GIF89a<html></html>", id="html as gif"),
        pytest.param(b"BM<html></html>", id="html as bmp"),
        pytest.param(b"RIFF\xff\xff\xff\xffWEBPVP8X", id="short webp"),
        pytest.param(png_header(10, 10) + chunk(b"IEND"), id="no pixels"),
    ],
)
def test_bad_contents_are_refused(data: bytes) -> None:
    assert "cannot be decoded" in refusal(data)


def test_of_a_gif_the_first_frame_must_be_whole() -> None:
    data = saved(COLOURS, "GIF")
    for length in range(0, len(data) - 8, 7):
        refusal(data[:length])
    animated = saved(COLOURS, "GIF", save_all=True, append_images=[SMOOTH])
    for tail in (data[:-1], data + b"\n", data + b"more", animated[:-1], animated[: len(data) + 9]):
        assert same(open_image(tail, "image"), open_image(data, "image"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_anywhere(kind: str) -> None:
    frames = {"save_all": True, "append_images": [SMOOTH]} if kind == "PNG" else {}
    data = saved(COLOURS, kind, **frames)
    for length in range(0, len(data), 7):
        refusal(data[:length])
    refusal(data[:-1])


def test_truncated_bmp() -> None:
    refusal(saved(COLOURS, "BMP")[:-3])  # the last two bytes are padding


def test_a_png_with_any_wrong_byte_is_refused() -> None:
    data = saved(COLOURS, "PNG")
    for place in range(0, len(data), 5):
        refusal(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (2, 402), (2000, 8), (0, 5)])
def test_too_small_and_too_narrow(size: tuple[int, int]) -> None:
    message = refusal(Image.new("L", size))
    assert f"{size[0]} x {size[1]} pixels" in message
    if min(size) > 0:
        assert refusal(saved(Image.new("L", size), "PNG")) == message
    assert open_image(Image.new("L", (2, 400)), "image").size == (2, 400)


def test_headers_of_huge_pictures_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes for which Pillow would warn, too, and none is decoded."""

    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    bmp = saved(Image.new("L", (4, 4)), "BMP")
    monkeypatch.setattr(Image.core, "new", fail)
    monkeypatch.setattr(Image.core, "fill", fail)
    for side in (8001, 10_000, 60_000):
        wide = struct.pack("<H", side)
        canvas = (side - 1).to_bytes(3, "little") * 2
        files = [
            png_header(side, side) + chunk(b"IDAT") + chunk(b"IEND"),
            b"GIF89a" + wide * 2 + b"\0\0\0," + bytes(4) + wide * 2 + b"\0\x02\0;",
            b"GIF89a\x02\0\x02\0\0\0\0!\xf9\x04\x08\0\0\0\0," + wide * 4 + b"\0\x02\0;",
            bmp[:18] + struct.pack("<ii", side, side) + bmp[26:],
            b"\xff\xd8\xff\xc0\0\x0b\x08" + struct.pack(">HH", side, side) + b"\x01\x01\x11\0"
            b"\xff\xda\0\x08\x01\x01\0\0\x3f\0",
            b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas,
        ]  # fmt: skip
        for data in files:
            assert "at most 64 million" in refusal(data), data[:8]


def test_a_webp_canvas_that_lies() -> None:
    data = bytearray(saved(COLOURS.convert("RGBA"), "WEBP", exif=b"Exif\0\0II*\0"))
    assert data[12:16] == b"VP8X"
    data[24:27] = (99).to_bytes(3, "little")
    refusal(bytes(data))


def test_texts_and_profiles_of_a_png_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """So their size and their bombs do not matter."""
    bomb = zlib.compress(bytes(2**26))
    png = saved(COLOURS, "PNG")
    seen: list[bytes] = []
    noting = tuple(replace(f, plugin=_noting(f.plugin, seen)) for f in images._FORMATS)
    monkeypatch.setattr(images, "_FORMATS", noting)
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\x01\0\0\0"), (b"iCCP", b"a\0\0")):
        picture = open_image(with_chunk(png, chunk(kind, head + bomb)), "image")
        assert same(picture, COLOURS)
    assert all(len(data) <= len(png) for data in seen)


def _noting(plugin: Callable, seen: list[bytes]) -> Callable:
    def opened(stream: io.BytesIO) -> Image.Image:
        seen.append(stream.getvalue())
        return plugin(stream)

    return opened


def test_pixels_beyond_the_header_are_a_bomb_too() -> None:
    data = png_header(4, 4) + chunk(b"IDAT", zlib.compress(bytes(2**26))) + chunk(b"IEND")
    assert open_image(data, "image").size == (4, 4)


@pytest.mark.parametrize("animation", [(0, 0), (0x80000001, 0)])
def test_odd_animation_headers_do_not_warn(animation: tuple[int, int]) -> None:
    header = chunk(b"acTL", struct.pack(">II", *animation))
    good = chunk(b"acTL", struct.pack(">II", 1, 0))
    for chunks in ([header], [good, good]):
        assert same(open_image(with_chunk(saved(COLOURS, "PNG"), *chunks), "image"), COLOURS)


def test_files_of_very_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images._Stream, "reads_left", 1000)
    monkeypatch.setattr(images, "MAX_SCANNED_PIXELS", 600 * 5)
    monkeypatch.setattr(images, "MIN_JPEG_SCANS", 1)
    monkeypatch.setattr(images, "MAX_READS", 100)
    png, jpeg = saved(COLOURS, "PNG"), saved(COLOURS, "JPEG")
    open_image(with_chunk(png, *[chunk(b"teXt")] * 50), "image")
    refusal(with_chunk(png, *[chunk(b"teXt")] * 500))
    open_image(jpeg[:2] + b"\xff\xfe\0\2" * 50 + jpeg[2:], "image")
    refusal(jpeg[:2] + b"\xff\xfe\0\2" * 500 + jpeg[2:])
    refusal(jpeg[:2] + b"\xff" * 1500 + jpeg[2:])
    refusal(b"GIF89a\x0a\0\x0a\0\0\0\0!\xfe" + b"\1a" * 1000 + b"\0,;")
    open_image(saved(COLOURS.convert("L"), "JPEG"), "image")
    progressive = saved(COLOURS, "JPEG", progressive=True)
    assert progressive.count(b"\xff\xda") > 5
    refusal(progressive)


def test_a_large_file_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 2**20)
    assert "larger than 1 MiB" in refusal(saved(COLOURS, "PNG") + bytes(2**20))
    (tmp_path / "large.png").write_bytes(bytes(2**20 + 1))
    assert "larger than 1 MiB" in refusal(tmp_path / "large.png")


def test_pillows_global_limits_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("PNG", "JPEG", "GIF", "BMP"):
        open_image(saved(COLOURS, kind), "image")
    with ThreadPoolExecutor(4) as pool:
        data = saved(COLOURS, "PNG")
        opened = list(pool.map(lambda _: open_image(data, "image"), range(50)))
    assert all(same(image, COLOURS) for image in opened)


# Sources


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "图.png"
    COLOURS.save(path)
    assert same(open_image(path, "image"), COLOURS)
    assert "is not a file" in refusal(tmp_path)
    assert "is not a file" in refusal(tmp_path / "none.png")
    refusal(Path("a\0b"))
    assert "not str" in refusal(str(path))
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")
        assert "is not a file" in refusal(tmp_path / "pipe")


def test_pil_images_are_not_changed(tmp_path: Path) -> None:
    assert open_image(COLOURS, "image") is COLOURS

    class Growing(Image.Image):
        """Its size is another after loading, as of some vector formats."""

        size = property(lambda self: (4, 4) if self.unloaded else (1, 1))
        unloaded = True

        def load(self) -> None:
            self.unloaded = False

    assert "1 x 1 pixels" in refusal(Growing())
    image = COLOURS.convert("YCbCr")
    before = image.tobytes()
    assert same(open_image(image, "image"), image.convert("RGB"))
    assert (image.tobytes(), image.mode) == (before, "YCbCr")
    COLOURS.save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-300])
    with Image.open(tmp_path / "a.png") as lazy:
        refusal(lazy)
    refusal(lazy)


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,", "DATA:;BASE64,", "data:image/png;name=a;base64,",
        " data:image/png; base64 ,", "data:base64,", f"data:image/png;name={'x' * 300};base64,",
    ],
)  # fmt: skip
def test_data_urls(head: str) -> None:
    assert read_data_url(head + "aGVsbG8=", "image") == b"hello"


@pytest.mark.parametrize(
    "text",
    [
        "+/+/aGVsbG8=", "-_-_aGVsbG8=", "+/+/aGVsbG8", "+/+/\r\naGVs\nbG8=\n",
        "%2B%2F-_aGVsbG8%3D",
    ],
)  # fmt: skip
def test_base64_as_clients_write_it(text: str) -> None:
    assert read_data_url("data:image/png;base64," + text, "image") == b"\xfb\xff\xbfhello"


@pytest.mark.parametrize(
    "url",
    [
        "", "data:", "data:image/png,abcd", "data:image/png;base64", "http://example.com/a.png",
        "file:///etc/passwd", "data:image/png;base64,aGVsb", "data:image/png;base64,aGV*bG8=",
        "data:image/png;base64,aGVsbG8=aGVsbG8=", "data:image/png;base64,%zz",
        "data:image/png;base64,你好", "data:" + "x" * 1100 + ";base64,aGVsbG8=",
    ],
)  # fmt: skip
def test_bad_data_urls(url: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^image: ") as caught:
        read_data_url(url, "image")
    assert len(str(caught.value)) < 200


def test_large_data_urls_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = "data:;base64," + base64.b64encode(bytes(1000)).decode()
    assert len(read_data_url(exact, "image", 1000)) == 1000
    monkeypatch.setattr(images.binascii, "a2b_base64", None)
    with pytest.raises(InvalidRequestError, match="larger than"):
        read_data_url(exact + "AAAA", "image", 1000)


# Tiles


def test_tiles_of_a_model_that_does_not_tile() -> None:
    spec = ImageSpec(490, 1225, 1)
    for asked in (None, 1, 12):
        encoded = prepare_image(COLOURS, spec, asked)
        assert encoded.pixels.shape == (1, 490, 490, 3)
        assert encoded.num_tokens == 1225


def test_the_digest_covers_shape_and_pixels() -> None:
    spec = ImageSpec(8, 4, 6, use_thumbnail=True)
    encoded = prepare_image(COLOURS, spec, None)
    shape = struct.pack("<4q", *encoded.pixels.shape)
    content = shape + encoded.pixels.tobytes()
    expected = hashlib.sha256(content).digest() + hashlib.blake2b(content).digest()
    assert encoded.digest == expected
    with pytest.raises(ValueError, match="digest"):
        replace(encoded, digest=b"another")
    assert prepare_image(COLOURS, spec, 1).digest != encoded.digest
    with pytest.raises(ValueError, match="read-only"):
        encoded.pixels[0] = 0


@pytest.mark.parametrize("max_tiles", [0, -1, 65, 1.0, True, "6"])
def test_bad_limits(max_tiles: object) -> None:
    for spec in (ImageSpec(448, 256, 12), ImageSpec(490, 1225, 1)):
        with pytest.raises(InvalidRequestError, match="from 1 to 64") as caught:
            prepare_image(COLOURS, spec, max_tiles)
        assert caught.value.param == "max_tiles"
