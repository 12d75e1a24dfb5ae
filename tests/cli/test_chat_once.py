"""`shuzhai chat` as a command: one question, a pipe, a real terminal."""

import io
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from shuzhai.cli import chat
from shuzhai.cli.options import Parser
from shuzhai.config import ImageSpec
from shuzhai.errors import ConfigError, InvalidRequestError, ModelNotFoundError
from shuzhai.frontend.async_engine import AsyncEngine
from tests.support.tiny import TinyShape, write_checkpoint
from tests.support.tiny_vision import write_internvl2

ROOT = Path(__file__).parents[2]
ANSWER = ("--temperature", "0", "--max-tokens", "8")


@pytest.fixture
def run(tiny_folder, tmp_path, monkeypatch):
    """Run a command line with something on standard input; TINY is the tiny checkpoint."""
    monkeypatch.setenv("SHUZHAI_HOME", str(tmp_path / "home"))

    def run(*words, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(stdin))))
        parser = Parser()
        chat.add_parser(parser.add_subparsers())
        args = parser.parse_args(
            ["chat", *(str(tiny_folder) if word == "TINY" else word for word in words)]
        )
        return args.run(args)

    return run


def test_a_question_prints_the_answer_alone(run, capsys):
    assert run("TINY", "Hello! 你好", *ANSWER) == 0
    said, told = capsys.readouterr()
    assert said.strip()
    assert said.endswith("\n")
    assert "\x1b" not in said + told
    assert "Cut at 8 tokens" in told
    assert run("TINY", "--prompt", "Hello! 你好", *ANSWER) == 0
    assert capsys.readouterr().out == said
    assert run("TINY", *ANSWER, stdin="Hello! 你好\n") == 0
    assert capsys.readouterr().out == said
    assert run("TINY", "Hello! 你好", "--system", "Hi.", *ANSWER) == 0
    assert capsys.readouterr().out != said


def test_same_seed_same_answer(run, capsys):
    def say(seed):
        sampling = ("--temperature", "1.5", "--top-p", "0.9", "--max-tokens", "20")
        assert run("TINY", "Hello!", *sampling, "--seed", str(seed)) == 0
        return capsys.readouterr().out

    assert say(7) == say(7) != say(8)


def test_a_pipe_of_bytes_that_are_no_text(run, capsys):
    assert run("TINY", *ANSWER, stdin="\udcff\udcfe hello") == 0
    assert capsys.readouterr().out.strip()


def test_a_locale_that_cannot_hold_the_answer(run, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run("TINY", "Hello! 你好", "--temperature", "0", "--max-tokens", "40") == 0
    assert b"?" in written.getvalue()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("TINY", "a", "--prompt", "b"), ConfigError, "given twice"),
        (("TINY", ""), InvalidRequestError, "question is empty"),
        (("TINY",), InvalidRequestError, "question is empty"),
        (("TINY", "a", "--temperature", "nan"), InvalidRequestError, "temperature"),
        (("TINY", "a", "--top-p", "0"), InvalidRequestError, "top_p"),
        (("TINY", "a", "--max-tokens", "0"), InvalidRequestError, "max_tokens"),
        (("TINY", "a", "--chat-template", "none"), ConfigError, "none"),
        (("who-are-you", "a"), ModelNotFoundError, "--prompt TEXT"),
        (("TINY", "a " * 3000), InvalidRequestError, "context"),
    ],
)
def test_what_cannot_be_done_is_said(run, words, error, message):
    with pytest.raises(error, match=message):
        run(*words)


def test_options_may_stand_before_the_question(run, capsys):
    assert run("TINY", *ANSWER, "Hello! 你好") == 0
    said = capsys.readouterr().out
    assert run("TINY", "Hello! 你好", *ANSWER) == 0
    assert capsys.readouterr().out == said
    with pytest.raises(SystemExit):
        run("TINY", *ANSWER, "Hello!", "--seed", "1", "stray")


def test_pictures_for_one_question(run, tmp_path, monkeypatch):
    Image.new("RGB", (3, 2)).save(tmp_path / "a b.png")
    Image.new("RGB", (2, 3)).save(tmp_path / "c.jpg")
    images = ("--image", str(tmp_path / "a b.png"), "--image", str(tmp_path / "c.jpg"))
    with pytest.raises(InvalidRequestError, match="cannot see"):
        run("TINY", *images, "Which?", *ANSWER)
    load, asked = AsyncEngine.load, []

    def load_seeing(*args, **options):
        engine = load(*args, **options)
        encode = engine.encode_chat

        async def encode_texts(messages):
            asked.extend(messages)
            return await encode([{"role": "user", "content": messages[0]["content"][-1]["text"]}])

        engine.processor.image_spec = ImageSpec(28, 4, max_tiles=12)
        engine.encode_chat = encode_texts
        return engine

    monkeypatch.setattr(AsyncEngine, "load", load_seeing)
    assert run("TINY", *images, "Which?", *ANSWER) == 0
    assert asked[0]["content"] == [
        {"type": "image", "image": (tmp_path / "a b.png").read_bytes()},
        {"type": "image", "image": (tmp_path / "c.jpg").read_bytes()},
        {"type": "text", "text": "Which?"},
    ]


def test_a_vision_model_reads_the_picture(run, tmp_path, capsys):
    model = str(write_internvl2(tmp_path / "model"))
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    assert run(model, "--image", str(tmp_path / "red.png"), "Which colour?", *ANSWER) == 0
    assert capsys.readouterr().out.strip()


def test_a_bad_picture_is_told_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(AsyncEngine, "load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "page.png").write_text("<html>")
    for name in ("page.png", "none.png"):
        with pytest.raises(InvalidRequestError, match=name):
            run("TINY", "--image", str(tmp_path / name), "Hello!")


def test_a_bad_option_is_told_before_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr(AsyncEngine, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InvalidRequestError):
        run("TINY", "Hello!", "--temperature", "-1")


def test_a_model_without_a_template_cannot_chat(run, monkeypatch):
    load = AsyncEngine.load

    def load_without(*args, **options):
        engine = load(*args, **options)
        engine.processor.template = None
        return engine

    monkeypatch.setattr(AsyncEngine, "load", load_without)
    with pytest.raises(ConfigError, match="not trained to chat"):
        run("TINY", "Hello!")


def test_ctrl_c_ends_the_command(run, capsys, monkeypatch):
    class Out(io.StringIO):
        def write(self, text):
            if self.tell() == 0:
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    out = Out()
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(KeyboardInterrupt):
        run("TINY", "Hello!", "--temperature", "0")
    assert out.getvalue().endswith("\n")
    assert len(out.getvalue()) < 100


def test_a_reader_that_goes_away_is_no_error_message(run, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run("TINY", "Hello!", *ANSWER) == 1


# The terminal becomes the controlling one of the new session: Ctrl+C is for that alone.
_COMMAND = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from shuzhai.cli.main import main
sys.exit(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
def test_in_a_terminal(tmp_path):
    """The whole command in a terminal, in Chinese: answers, Ctrl+C at work and at rest, leaving.

    What the model says to "Hello!" goes round in circles: it would fill the whole long context.
    """
    model = write_checkpoint(tmp_path / "model", TinyShape(max_position_embeddings=32768))
    master, slave = os.openpty()
    environment = os.environ | {
        "SHUZHAI_HOME": str(tmp_path),
        "LC_ALL": "zh_CN.UTF-8",
        "PYTHONUTF8": "1",
        "TERM": "xterm",
        "OMP_NUM_THREADS": "1",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, "chat", str(model), "--temperature", "0"],
        stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    terminal = _Terminal(master)
    try:
        terminal.wait_for("model", " · 上下文 32,768 个词元", "Ctrl+D 退出", "\x1b[?2004h")
        terminal.type("Hello!\r")
        terminal.wait_for("正在阅读", "\x1b[2K")
        terminal.type("\x03")
        terminal.wait_for("已停止 · ", "/ 32,768", "\x1b[?2004h")
        terminal.type("\x03")
        terminal.wait_for("输入 /exit 退出")
        terminal.type("/system\r")
        terminal.wait_for("系统提示词：You are an AI assistant", "\x1b[?2004h")
        terminal.type("\x04")
        terminal.wait_for("再见。")
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


class _Terminal:
    """The person's side of a pty."""

    def __init__(self, fd):
        self._fd = fd
        self._unread = b""

    def type(self, text):
        os.write(self._fd, text.encode())

    def wait_for(self, *texts, seconds=30):
        """Read on until these have come, in this order; they count as read then."""
        deadline = time.monotonic() + seconds
        for text in map(str.encode, texts):
            while text not in self._unread:
                ready, _, _ = select.select([self._fd], [], [], deadline - time.monotonic())
                assert ready, f"{text.decode()!r} has not come: {self._unread.decode()!r}"
                self._unread += os.read(self._fd, 65536)
            self._unread = self._unread.split(text, 1)[1]
