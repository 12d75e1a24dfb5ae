"""Pictures: from a file's bytes to the tiles that a model sees.

A picture from outside is an attack until it is decoded. Its kind is told from its first bytes, its
size is read from its header before anything is decoded, and what Pillow raises on broken data
becomes one error. Pillow's plugins are used directly: `Image.open` warns of large pictures through
the warnings of the whole process, and so would Pillow's reading of EXIF; nothing here warns.
This file opens files and bytes only; it knows no URL but `data:`.
"""

from __future__ import annotations

import binascii
import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from shuzhai.config import MAX_TILES, ImageSpec
from shuzhai.errors import InvalidRequestError
from shuzhai.frontend.outputs import EncodedImage
from shuzhai.frontend.tiling import choose_grid

ImageSource = bytes | Path | Image.Image

MAX_FILE_BYTES = 32 * 2**20
MAX_PIXELS = 64_000_000
MIN_SIDE = 2
MAX_ASPECT = 200  # of the longer side to the shorter
# Both bound work that a file of few bytes can ask for: chunks and markers are walked in Python,
# and each scan of a progressive JPEG visits every pixel. Cameras and editors stay far below: their
# progressive JPEGs have 10 or 11 scans.
MAX_READS = 500_000
MAX_SCANNED_PIXELS = 1_000_000_000
MIN_JPEG_SCANS = 16  # that are always read

# What Pillow and its plugins raise on broken or hostile data.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
    EOFError, AssertionError, RuntimeError, MemoryError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip

_FROM_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: ImageSource, where: str) -> Image.Image:
    """The picture, checked, upright and RGB; transparency is dropped, as the models' code does.

    A PIL image is checked in the same way and never changed; it is returned itself if nothing is
    to be done. Of an animation the first frame. InvalidRequestError names `where` it stood, what
    is wrong and the limit.
    """
    if isinstance(source, Image.Image):
        check_size(*source.size, where)
        image = source
    else:
        image = _open_bytes(read_file(source, MAX_FILE_BYTES, where), where)
    try:
        image.load()
        check_size(*image.size, where)  # what came out, too
        exif = image.info.get("exif")
        image = _to_rgb(image)
        method = _UPRIGHT.get(_orientation(exif)) if isinstance(exif, bytes) else None
        return image if method is None else image.transpose(method)
    except _DECODING_ERRORS as exc:
        raise _broken(where) from exc


def media_type_of(data: bytes, where: str) -> str:
    """What kind of picture it is, told by its first bytes; its size and structure are checked as
    open_image does, its pixels are not decoded. InvalidRequestError."""
    _open_bytes(data, where)
    return _format_of(data, where).media_type


def prepare_image(image: Image.Image, spec: ImageSpec, max_tiles: int | None) -> EncodedImage:
    """The tiles of a picture that open_image returned, with their digest and count of tokens.

    max_tiles, 1..64, takes the place of the model's own limit; a model that does not tile gets one
    square whatever is asked. The pixels are read-only.
    """
    check_max_tiles(max_tiles)
    limit = 1 if spec.max_tiles == 1 else max_tiles or spec.max_tiles
    columns, rows = choose_grid(
        *image.size, tile_size=spec.tile_size,
        min_tiles=min(spec.min_tiles, limit), max_tiles=limit,
    )  # fmt: skip
    num_tiles = columns * rows
    has_thumbnail = spec.use_thumbnail and num_tiles > 1
    size = spec.tile_size
    pixels = np.empty((num_tiles + has_thumbnail, size, size, 3), np.uint8)
    # [rows * size, columns * size, 3] -> [rows, columns, size, size, 3]
    grid = np.asarray(image.resize((columns * size, rows * size), Image.Resampling.BICUBIC))
    grid = grid.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    pixels[:num_tiles].reshape(rows, columns, size, size, 3)[:] = grid
    if has_thumbnail:
        pixels[-1] = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    pixels.setflags(write=False)
    return EncodedImage(pixels, len(pixels) * spec.tokens_per_tile)


def check_max_tiles(max_tiles: int | None) -> None:
    """InvalidRequestError for what is no number of tiles."""
    if max_tiles is not None and not (type(max_tiles) is int and 1 <= max_tiles <= MAX_TILES):
        raise InvalidRequestError(
            f"max_tiles must be a whole number from 1 to {MAX_TILES}, not {max_tiles!r}",
            "max_tiles",
        )


def read_file(source: bytes | Path, max_bytes: int, where: str) -> bytes:
    """The bytes themselves, or those of a file; InvalidRequestError if there are too many."""
    data = source
    if isinstance(source, Path):
        try:
            if not source.is_file():  # a pipe or a device may never end
                raise refuse(where, f"{source} is not a file")
            with source.open("rb") as file:
                data = file.read(max_bytes + 1)
        except (OSError, ValueError) as exc:
            raise refuse(where, f"{source} cannot be read; check its name and rights") from exc
    if not isinstance(data, bytes):
        raise refuse(where, f"bytes, a path or a PIL image is needed, not {type(data).__name__}")
    if len(data) > max_bytes:
        raise refuse(where, f"the file is larger than {max_bytes >> 20} MiB; send a smaller one")
    return data


def read_data_url(url: str, where: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a `data:` URL in base64; what they are is not looked at, nor what it says.

    Lines, missing padding, the alphabet of URLs and percent signs are understood: clients write all
    of them. Nothing is decoded if it would be more than max_bytes.
    """
    head, comma, _ = url[:1024].partition(",")
    if not comma or not re.fullmatch(r"\s*data:([^,]*;)?\s*base64\s*", head, re.IGNORECASE):
        raise refuse(where, "the URL must be of the form data:image/png;base64,...")
    try:
        text = url[len(head) + 1 :].encode("ascii")
        text = unquote_to_bytes(text) if b"%" in text else text
        text = text.translate(_FROM_URL_ALPHABET, b" \t\r\n").rstrip(b"=")
        if len(text) > (max_bytes + 2) // 3 * 4:
            raise refuse(where, f"the data is larger than {max_bytes >> 20} MiB; send less")
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError as exc:
        raise refuse(where, "the data is not valid base64") from exc


def check_size(width: int, height: int, where: str, max_pixels: int = MAX_PIXELS) -> None:
    """InvalidRequestError for a picture that is too large, too small or too narrow."""
    said = f"the picture is {width} x {height} pixels"
    if min(width, height) < MIN_SIDE:
        raise refuse(where, f"{said}; each side must have at least {MIN_SIDE}")
    if width * height > max_pixels:
        raise refuse(where, f"{said}; at most {max_pixels // 10**6} million are read; scale it")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise refuse(where, f"{said}; one side may be at most {MAX_ASPECT} times the other")


def _broken(where: str) -> InvalidRequestError:
    return refuse(
        where,
        "the picture cannot be decoded: it is truncated, broken or of a rare kind; "
        "send it whole, as a plain PNG or JPEG",
    )


def refuse(where: str, message: str) -> InvalidRequestError:
    """The error for what a client sent, to be raised."""
    return InvalidRequestError(f"{where}: {message}", "messages")


# Telling and reading the formats


class _Stream(io.BytesIO):
    """Bytes that can be read so many times: a file made of millions of parts ends in an error."""

    reads_left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise OSError("too many parts")
        return super().read(size)


class _Jpeg(JpegImageFile):
    def getexif(self) -> Image.Exif:
        """Nothing: Pillow would look for the resolution, and warn where the EXIF is broken."""
        return Image.Exif()


@dataclass(frozen=True, slots=True)
class _Format:
    """What a format is called, how it begins, what checks its structure and reads its size, what
    leaves out the parts that are not for its pixels, and what decodes it."""

    media_type: str
    prefix: re.Pattern[bytes]
    size: Callable[[bytes], tuple[int, int]] | None
    clean: Callable[[bytes], bytes] | None
    plugin: Callable[[Any], ImageFile]


def _format_of(data: bytes, where: str) -> _Format:
    found = next((f for f in _FORMATS if f.prefix.match(data)), None)
    if found is None:
        raise refuse(where, "this is no picture; PNG, JPEG, WebP, GIF and BMP can be read")
    return found


def _open_bytes(data: bytes, where: str) -> Image.Image:
    """The picture with its size checked, its pixels not decoded yet."""
    found = _format_of(data, where)
    try:
        if found.size is not None:
            check_size(*found.size(data), where)
        image = found.plugin(_Stream(data if found.clean is None else found.clean(data)))
    except _DECODING_ERRORS as exc:
        raise _broken(where) from exc
    check_size(*image.size, where)
    return image


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _png_pixels(data: bytes) -> bytes:
    """The chunks that make the picture. Others (texts, profiles, frames) may be anything.

    Pillow checks no checksum of pixels, nor whether the file has an end; this does.
    """
    view, kind, place, parts = memoryview(data), b"", 8, [memoryview(data)[:8]]
    for _ in range(MAX_READS):
        if kind == b"IEND":
            return b"".join(parts)
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind in _PNG_CHUNKS:
            if zlib.crc32(view[place + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
                raise ValueError("checksum")
            parts.append(view[place:end])
        place = end
    raise ValueError("too many chunks")


def _gif_size(data: bytes) -> tuple[int, int]:
    """The size of the screen, grown to hold the first frame as Pillow does."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    stream = _Stream(data)
    stream.seek(13 + (3 << (flags & 7) + 1 if flags & 128 else 0))
    while (mark := stream.read(1)) != b",":
        if mark != b"!":
            raise ValueError("no frame")
        stream.read(1)
        while length := stream.read(1)[0]:
            stream.seek(length, io.SEEK_CUR)
    left, top, columns, rows = struct.unpack("<HHHH", stream.read(8))
    return max(width, left + columns), max(height, top + rows)


def _webp_size(data: bytes) -> tuple[int, int]:
    """The size of the canvas, which the decoder allocates as soon as it is made."""
    if data[12:16] == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, 24)
        return low_width + (high_width << 16) + 1, low_height + (high_height << 16) + 1
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg(stream: _Stream) -> ImageFile:
    image = _Jpeg(stream)
    # From the first scan on: a thumbnail in the EXIF has scans of its own.
    num_scans = stream.getvalue().count(b"\xff\xda", stream.tell())
    most = max(MIN_JPEG_SCANS, MAX_SCANNED_PIXELS // (image.width * image.height))
    if "progressive" in image.info and num_scans > most:
        raise ValueError("too many scans")
    return image


_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
_WEBP = re.compile(rb"RIFF....WEBPVP8[ LX]", re.DOTALL)
_FORMATS = (
    _Format("image/png", re.compile(rb"\x89PNG\r\n\x1a\n"), _png_size, _png_pixels, PngImageFile),
    _Format("image/jpeg", re.compile(rb"\xff\xd8\xff"), None, None, _jpeg),
    _Format("image/webp", _WEBP, _webp_size, None, WebPImageFile),
    _Format("image/gif", re.compile(rb"GIF8[79]a"), _gif_size, None, GifImageFile),
    _Format("image/bmp", re.compile(rb"BM"), None, None, BmpImageFile),
)


def _orientation(exif: bytes) -> int:
    """How the camera was held, 1 to 8; 1 where the EXIF does not say or is broken."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        if order is not None:
            (start,) = struct.unpack_from(order + "I", tiff, 4)
            (count,) = struct.unpack_from(order + "H", tiff, start)
            for place in range(start + 2, start + 2 + 12 * count, 12):
                tag, kind = struct.unpack_from(order + "HH", tiff, place)
                if tag == 0x0112 and kind in (3, 4):  # SHORT, or LONG
                    size = "H" if kind == 3 else "I"
                    return struct.unpack_from(order + size, tiff, place + 8)[0]
    except struct.error:
        pass
    return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """As Pillow converts, but deep grey is scaled to 8 bits where Pillow clips or wraps."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if "transparency" in image.info:  # Pillow would carry it over, and warn where it cannot
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey of an unknown range: white is 1 (floats), 255 or 65535, the first that holds all.

    Beyond those, and below zero, the range is that of the values themselves.
    """
    wide = np.nan_to_num(values.astype(np.float64), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = min(0.0, wide.min()), wide.max()
    whites = (255.0, 65535.0) if values.dtype.kind == "i" else (1.0, 255.0, 65535.0)
    white = next((w for w in whites if high <= w), high)
    wide -= low
    wide *= 255 / (white - low)
    return np.rint(wide).astype(np.uint8)
