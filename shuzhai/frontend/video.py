"""Videos: a few frames of a file, as pictures.

PyAV is the optional extra `video`. FFmpeg behind it reads hundreds of formats; here a file is one
of three containers, told from its first bytes, with one of the codecs in common use. It is read
from memory only, so that it cannot name other files or addresses.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from shuzhai.frontend.effort import Effort
from shuzhai.frontend.images import check_size, read_file, refuse

try:
    import av
except ImportError:
    av = None

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

MAX_FRAMES = 32  # pictures of one video
MAX_VIDEO_BYTES = 64 * 2**20
# A codec may keep 16 frames to refer to, of 3 bytes a pixel: 0.8 GB.
MAX_FRAME_PIXELS = 4096 * 4096
MAX_VIDEO_FRAMES = 20_000
MAX_SECONDS = 30.0  # of reading and decoding
MAX_MP4_SAMPLES = 5_000_000  # of all streams: plain sound has one for each instant
MAX_MP4_TABLES = 100_000  # a fragment has one for each stream

_CONTAINERS = (
    (re.compile(rb"....(ftyp|moov|mdat|wide|free|skip)", re.DOTALL), "mov"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "matroska"),
    (re.compile(rb"RIFF....AVI ", re.DOTALL), "avi"),
)
_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mjpeg", "mpeg2video")
_DECODING_ERRORS = (
    ValueError, OSError, LookupError, ArithmeticError, RuntimeError, MemoryError, EOFError,
    *(() if av is None else (av.error.FFmpegError,)),
)  # fmt: skip


def frame_indices(num_available: int, num_frames: int) -> list[int]:
    """The middles of num_frames equal parts, with repeats where fewer are available.

    As InternVL's get_index: rounding is to even, and the last part ends at the last frame.
    """
    part = (num_available - 1) / num_frames
    return [int(part / 2 + round(part * i)) for i in range(num_frames)]


def sample_frames(
    source: bytes | Path, num_frames: int, where: str, effort: Effort | None = None
) -> Iterator[Image.Image]:
    """The chosen frames one after the other, upright and RGB; no more than one is kept.

    Frames are counted, not timed: of a variable rate, too. InvalidRequestError names `where` the
    video stood, what is wrong and the limit.
    """
    if av is None:
        raise refuse(where, "videos need PyAV: pip install 'shuzhai[video]'")
    data = read_file(source, MAX_VIDEO_BYTES, where)
    kind = next((name for prefix, name in _CONTAINERS if prefix.match(data)), None)
    if kind is None:
        raise refuse(where, "this is no video; MP4, MOV, WebM, MKV and AVI can be read")
    if kind == "mov":
        _check_tables(data, where)
    efforts = [Effort(MAX_SECONDS), *([effort] if effort else [])]
    try:
        with _open(data, kind) as container:
            num_available = _count(_stream(container, where), where, efforts)
        with _open(data, kind) as container:
            wanted = frame_indices(num_available, num_frames)
            yield from _decode(_stream(container, where), wanted, where, efforts)
    except _DECODING_ERRORS as exc:
        raise refuse(where, "the video cannot be decoded: it is truncated or broken") from exc


def _check_tables(data: bytes, where: str) -> None:
    """Refuse an MP4 of few bytes that claims millions of samples: FFmpeg lists them all on opening.

    Such a claim may stand anywhere in the nested boxes, so the names are looked for, not walked to;
    one by chance, in the middle of other data, is told by the length before it. A compressed header
    (cmov) could hide anything; nobody writes them any more.
    """
    num_samples = 0
    for index, match in enumerate(re.finditer(rb"stsz|trun|cmov", data)):
        if index == MAX_MP4_TABLES:
            raise refuse(where, f"the video has more than {MAX_MP4_TABLES} tables of samples")
        place = match.end()
        (length,) = struct.unpack_from(">I", data, place - 8)
        if length != 1 and not 8 <= length <= len(data) - place + 8:
            continue
        fields = struct.unpack_from(">IIIII", data[place : place + 20].ljust(20, b"\0"))
        wide = 2 if length == 1 else 0  # a length of 64 bits comes first
        if match[0] == b"stsz" and fields[wide + 1] > 0:
            num_samples += fields[wide + 2]
        elif match[0] == b"trun":
            num_samples += fields[wide + 1]
        if match[0] == b"cmov" or num_samples > MAX_MP4_SAMPLES:
            raise refuse(where, "the video's tables claim more samples than any such file has")


def _open(data: bytes, kind: str) -> InputContainer:
    only = {"format_whitelist": kind, "protocol_whitelist": "none"}
    if kind == "mov":
        only["advanced_editlist"] = "0"  # each of its entries could list all samples once more
    return av.open(io.BytesIO(data), format=kind, container_options=only)


def _stream(container: InputContainer, where: str) -> VideoStream:
    """The video stream, with its codec and the size in its header checked."""
    stream = container.streams.best("video")
    if stream is None:
        raise refuse(where, "the file holds no video stream")
    codec = stream.codec_context
    if codec is None or codec.name not in _CODECS:
        raise refuse(where, "the video's codec is unknown; use H.264, H.265, VP8, VP9 or AV1")
    check_size(codec.width, codec.height, where, MAX_FRAME_PIXELS)
    codec.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # where the size changes on the way
    return stream


def _count(stream: VideoStream, where: str, efforts: Sequence[Effort]) -> int:
    """How many frames there are: packets, without decoding, for headers may lie."""
    num_packets = 0
    for packet in stream.container.demux(stream):
        num_packets += packet.size > 0
        if num_packets > MAX_VIDEO_FRAMES:
            raise refuse(where, f"the video has more than {MAX_VIDEO_FRAMES} frames; cut it")
        for effort in efforts:
            effort.check(where)
    if num_packets == 0:
        raise refuse(where, "the video holds no frames")
    if num_packets < stream.frames:
        raise refuse(where, f"of the video's {stream.frames} frames {num_packets} are there")
    return num_packets


def _decode(
    stream: VideoStream, wanted: list[int], where: str, efforts: Sequence[Effort]
) -> Iterator[Image.Image]:
    """The frames of the wanted indices, which ascend, with repeats."""
    image, num_given = None, 0
    for index, frame in enumerate(stream.container.decode(stream)):
        for effort in efforts:
            effort.check(where)
        if num_given == len(wanted):
            return
        if index == wanted[num_given]:
            check_size(frame.width, frame.height, where, MAX_FRAME_PIXELS)
            image = frame.to_image()
            if frame.rotation in (-180, -90, 90, 180):
                image = image.rotate(frame.rotation, expand=True)
        while num_given < len(wanted) and index == wanted[num_given]:
            assert image is not None
            yield image
            num_given += 1
    if image is None:
        raise refuse(where, "no frame of the video can be decoded")
    # Some packets hold no frame of their own (the hidden ones of VP8): the last one stands in.
    yield from [image] * (len(wanted) - num_given)
