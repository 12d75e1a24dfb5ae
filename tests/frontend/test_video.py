"""Frames of videos that the tests encode themselves, and files that are none or lie."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shuzhai.errors import InvalidRequestError
from shuzhai.frontend import video
from shuzhai.frontend.video import frame_indices, sample_frames

av = pytest.importorskip("av")


def encode(
    container: str = "mp4", codec: str = "mpeg4", num_frames: int = 20,
    size: tuple[int, int] = (64, 48), rotation: int = 0, options: dict[str, str] | None = None,
) -> bytes:  # fmt: skip
    """Frame i is grey 10 * i, with a white stripe on the left."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(num_frames):
            pixels = np.full((size[1], size[0], 3), 10 * i % 256, np.uint8)
            pixels[:, : size[0] // 8] = 255
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


def grey(image: Image.Image) -> int:
    return image.getpixel((image.width // 2, image.height // 2))[0]


def refusal(source: bytes | Path, num_frames: int = 4) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        list(sample_frames(source, num_frames, "messages[0].content[1]"))
    assert caught.value.param == "messages"
    assert str(caught.value).startswith("messages[0].content[1]: ")
    assert " object at 0x" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("num_available", [1, 2, 3, 9, 100, 1001])
def test_indices_are_those_of_internvl(num_available: int, num_frames: int) -> None:
    last = num_available - 1
    part = float(last) / num_frames
    wanted = [int(part / 2 + np.round(part * i)) for i in range(num_frames)]
    chosen = frame_indices(num_available, num_frames)
    assert chosen == wanted == sorted(wanted)
    assert 0 <= chosen[0] <= chosen[-1] <= last


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4"), ("avi", "mjpeg"),
     ("mp4", "libx264"), ("webm", "libvpx"), ("webm", "libvpx-vp9")],
)  # fmt: skip
def test_frames_are_the_middles_of_equal_parts(container: str, codec: str, tmp_path: Path) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    data = encode(container, codec)
    (tmp_path / "video").write_bytes(data)
    for source in (data, tmp_path / "video"):
        frames = list(sample_frames(source, 4, "video"))
        assert [image.size for image in frames] == [(64, 48)] * 4
        assert [image.mode for image in frames] == ["RGB"] * 4
        assert np.allclose([grey(image) for image in frames], [20, 70, 120, 160], atol=5)


def test_more_frames_than_there_are_repeat() -> None:
    frames = [grey(image) for image in sample_frames(encode(num_frames=2), 4, "video")]
    assert np.allclose(frames, [0, 0, 0, 10], atol=5)
    assert len(list(sample_frames(encode(num_frames=1), 32, "video"))) == 32


def test_fragments_without_a_table_of_frames() -> None:
    data = encode(options={"movflags": "frag_keyframe+empty_moov"})
    frames = [grey(image) for image in sample_frames(data, 4, "video")]
    assert np.allclose(frames, [20, 70, 120, 160], atol=5)


def test_rotation() -> None:
    (image,) = sample_frames(encode(rotation=90), 1, "video")  # counter-clockwise
    assert image.size == (48, 64)
    assert np.asarray(image)[-4:].mean() > 200 > 150 > np.asarray(image)[:4].mean()


def test_only_one_frame_is_kept_at_a_time() -> None:
    frames = sample_frames(encode(), 4, "video")
    assert not isinstance(frames, (list, tuple))
    assert grey(next(frames)) < grey(next(frames))
    frames.close()


@pytest.mark.parametrize(
    "data",
    [b"", b"<html></html>", b"\x89PNG\r\n\x1a\n", b"#EXTM3U\nhttp://127.0.0.1/a.ts\n",
     b"ffconcat version 1.0\nfile /etc/passwd\n", b"<?xml version='1.0'?><MPD></MPD>",
     b"RIFF\0\0\0\0WAVEfmt ", b"OggS" + bytes(40), b"ID3" + bytes(40)],
)  # fmt: skip
def test_other_kinds_are_refused(data: bytes) -> None:
    assert "this is no video" in refusal(data)


@pytest.mark.parametrize(
    "data",
    [b"\0\0\0\x18ftypisom" + bytes(50), b"\x1a\x45\xdf\xa3" + bytes(50),
     b"RIFF\xff\xff\xff\xffAVI LIST" + bytes(50)],
)  # fmt: skip
def test_empty_containers(data: bytes) -> None:
    refusal(data)


@pytest.mark.parametrize("options", [{}, {"movflags": "frag_keyframe+empty_moov"}])
def test_truncated_files_end_in_frames_or_a_clear_error(options: dict[str, str]) -> None:
    for container in ("mp4", "matroska", "avi"):
        data = encode(container, options=options if container == "mp4" else None)
        for length in range(20, len(data), len(data) // 40):
            try:
                frames = list(sample_frames(data[:length], 4, "video"))
            except InvalidRequestError:
                continue
            assert len(frames) == 4


def test_a_plain_mp4_without_its_end_is_refused() -> None:
    data = encode()
    refusal(data[: len(data) // 2])


def test_sound_alone_is_no_video() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    assert "no video stream" in refusal(file.getvalue())


def test_rare_codecs_are_refused() -> None:
    assert "codec" in refusal(encode("avi", "ffv1"))


def test_frames_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 64 * 48 - 1)
    assert "64 x 48 pixels" in refusal(encode())


def test_frames_that_grow_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The container says 64 x 48, the frames themselves are larger."""
    small, large = encode("avi", "mjpeg", 3), encode("avi", "mjpeg", 3, (1024, 768))
    assert large.count(struct.pack("<II", 1024, 768)) >= 1
    lying = large.replace(struct.pack("<II", 1024, 768), struct.pack("<II", 64, 48))
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 64 * 48)
    list(sample_frames(small, 2, "video"))
    refusal(lying)


def test_claims_of_more_frames_than_there_are() -> None:
    data = bytearray(encode("avi", "mjpeg"))
    place = data.index(b"strh") + 8 + 32
    assert struct.unpack_from("<I", data, place) == (20,)
    struct.pack_into("<I", data, place, 1_000_000)
    assert "of the video's 1000000 frames 20 are there" in refusal(bytes(data))


def test_tables_of_millions_of_samples_are_never_built() -> None:
    data = bytearray(encode())
    place = data.index(b"stsz") + 8
    struct.pack_into(">II", data, place, 1, 80_000_000)
    assert "more samples than any such file has" in refusal(bytes(data))
    data = bytearray(encode(options={"movflags": "frag_keyframe+empty_moov"}))
    struct.pack_into(">I", data, data.index(b"trun") + 8, 80_000_000)
    assert "more samples than any such file has" in refusal(bytes(data))
    many = encode() + struct.pack(">I4sQ", 16, b"trun", 0) * 100_000
    assert "tables of samples" in refusal(many)
    packed = encode() + struct.pack(">I", 24) + b"cmov" + bytes(16)
    assert "more samples than any such file has" in refusal(packed)


def test_names_of_boxes_in_other_data_do_not_matter() -> None:
    noise = b"\xff\xff\xff\xffstsz" + b"\xff" * 40 + b"\xff\xff\xff\xfftrun" + b"\xff" * 40
    data = encode() + struct.pack(">I", len(noise) + 8) + b"free" + noise
    assert len(list(sample_frames(data, 4, "video"))) == 4


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode()
    with monkeypatch.context() as patch:
        patch.setattr(video, "MAX_VIDEO_FRAMES", 19)
        assert "more than 19 frames" in refusal(data)
    with monkeypatch.context() as patch:
        patch.setattr(video, "MAX_SECONDS", 0.0)
        assert "took more than 0 s" in refusal(data)
    with monkeypatch.context() as patch:
        patch.setattr(video, "MAX_VIDEO_BYTES", 2**20)
        assert "larger than 1 MiB" in refusal(data + bytes(2**20))


def test_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(num_frames=2)
    monkeypatch.setattr(video, "av", None)
    assert "pip install 'shuzhai[video]'" in refusal(data)
