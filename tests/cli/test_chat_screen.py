import asyncio
import io
import re
import signal
import stat
import sys
import threading
import time

import pytest
from PIL import Image
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from shuzhai.cli.chat_answer import answer, for_terminal
from shuzhai.cli.chat_commands import Conversation
from shuzhai.cli.chat_input import open_history
from shuzhai.cli.chat_screen import ChatScreen
from shuzhai.cli.chat_words import CHINESE, ENGLISH
from shuzhai.config import ImageSpec
from shuzhai.engine.request import SamplingParams
from shuzhai.errors import ContextLengthError, InvalidRequestError
from shuzhai.frontend.async_engine import AsyncEngine

CTRL_C, CTRL_D, ALT_ENTER, UP = "\x03", "\x04", "\x1b\r", "\x1b[A"
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


class Paper(io.StringIO):
    """What a console writes, also piece by piece. `on_piece` is called before each."""

    def __init__(self):
        super().__init__()
        self.pieces = []
        self.on_piece = lambda: None

    def write(self, text):
        self.on_piece()
        self.pieces.append(text)
        return super().write(text)


@pytest.fixture(scope="module")
def engine(tiny_folder):
    engine = AsyncEngine.load(tiny_folder, max_num_seqs=1)
    yield engine
    asyncio.run(engine.shutdown())


@pytest.fixture
def short_engine(tiny_folder):
    engine = AsyncEngine.load(tiny_folder, max_num_seqs=1, max_model_len=128)
    yield engine
    asyncio.run(engine.shutdown())


@pytest.fixture
def seeing_engine(engine, monkeypatch):
    """Takes pictures, and goes by the text beside them; `asked` holds the messages of each call."""
    encode, engine.asked = engine.encode_chat, []

    async def encode_texts(messages):
        engine.asked.append(messages)
        return await encode([{**m, "content": text_of(m["content"])} for m in messages])

    monkeypatch.setattr(engine, "encode_chat", encode_texts)
    monkeypatch.setattr(engine.processor, "image_spec", ImageSpec(28, 4, max_tiles=12))
    return engine


def text_of(content):
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder to be in, with the bytes of its two pictures by name."""
    monkeypatch.chdir(tmp_path)
    for name, size in (("cat.png", (30, 20)), ("my dog.jpg", (7, 9))):
        Image.new("RGB", size, "red").save(name)
    (tmp_path / "page.png").write_text("<html>")
    return {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.fixture
def conversation():
    return Conversation("Hi.")


@pytest.fixture
def paper():
    return Paper()


@pytest.fixture
def chat(engine, conversation, paper):
    """Type keys into a chat that begins, and see what it prints until it ends."""

    def chat(keys, engine=engine, words=ENGLISH, params=GREEDY, history=None, later=""):
        console = Console(file=paper, width=200, highlight=False)
        with create_pipe_input() as keyboard, create_app_session(keyboard, DummyOutput()):
            keyboard.send_text(keys)
            screen = ChatScreen(
                engine, params, conversation, words, console, history or InMemoryHistory()
            )
            timer = threading.Timer(0.3, lambda: keyboard.send_text(later))
            timer.start()
            screen.run()
            timer.join()
        return paper.getvalue()

    return chat


def expected(engine, conversation, question, params=GREEDY):
    return answer(engine, conversation.messages(question), params, lambda piece: None).text


def all_free(engine):
    """Whether every block comes back; the engine's thread obeys an abort when it can."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        stats = engine.stats()
        if (
            stats.num_running == stats.num_waiting == 0
            and stats.num_free_blocks == stats.num_blocks
        ):
            return True
        time.sleep(0.01)
    return False


def test_an_answer_streams_and_is_summed_up(chat, engine, conversation, paper):
    text = expected(engine, conversation, "Hello! 你好")
    said = chat("Hello! 你好\r" + CTRL_D)
    assert conversation.turns == [("Hello! 你好", text)]
    assert for_terminal(text) in said
    assert len([p for p in paper.pieces if p.strip() and p in for_terminal(text)]) > 3
    assert re.search(
        r"\n12 tokens · [\d.]+ tokens/s · first after \d+\.\d\d s · context \d+ of 2,048\n", said
    )
    assert "Cut at 12 tokens, as --max-tokens says." in said
    assert said.endswith("Bye.\n")
    assert "\x1b" not in said


def test_earlier_turns_are_part_of_the_next_question(chat, engine, conversation):
    first = expected(engine, conversation, "Hello!")
    conversation.turns.append(("Hello!", first))
    second = expected(engine, conversation, "And you?")
    conversation.turns.clear()
    before = engine.stats().num_cached_prompt_tokens
    chat("Hello!\rAnd you?\r/exit\r")
    assert conversation.turns == [("Hello!", first), ("And you?", second)]
    assert engine.stats().num_cached_prompt_tokens > before


def test_commands(chat, engine, conversation):
    text = expected(engine, conversation, "/etc is what?")
    said = chat(
        "/help\r/nope x\r/\r/system\r/clear now\r//etc is what?\r"
        "/system Be brief.\r/system\r/exit\r"
    )
    for what, meaning in ENGLISH.help:
        assert (what in said and meaning in said) is not what.startswith("/image")
    assert "There is no command /nope;" in said
    assert "There is no command /;" in said
    assert "System prompt: Hi." in said
    assert "/clear stands alone" in said
    assert conversation.turns == [("/etc is what?", text)]
    assert "The system prompt is replaced" in said
    assert "System prompt: Be brief." in said
    assert conversation.system == "Be brief."


def test_clear_forgets_the_turns_and_keeps_the_system_prompt(chat, conversation):
    assert "A new chat begins." in chat("Hello!\r/clear\r/exit\r")
    assert conversation == Conversation("Hi.")


def test_the_models_own_system_prompt_is_shown(chat, conversation):
    conversation.system = None
    assert "System prompt: You are an AI assistant whose name is InternLM (书生·浦语)." in chat(
        "/system\r" + CTRL_D
    )
    conversation.system = ""
    assert "There is no system prompt." in chat("/system\r" + CTRL_D)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_stops_the_answer_only(chat, engine, conversation, paper, presses):
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=400)

    def press():
        if len(paper.pieces) == 6:
            paper.on_piece = lambda: None
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)

    paper.on_piece = press
    said = chat("Hello!\rAre you there?\r/exit\r", params=params)
    assert "stopped · " in said
    (_, stopped), (_, whole) = conversation.turns
    assert 0 < len(stopped) < 200
    assert for_terminal(stopped).rstrip("\n") + "\nstopped · " in said
    assert len(whole) > 200
    assert "\n400 tokens · " in said
    assert all_free(engine)


def test_ctrl_c_before_the_first_word_gives_the_message_back(
    chat, engine, conversation, monkeypatch
):
    text = expected(engine, conversation, "Hello!")
    encode = engine.encode_chat

    async def press(messages):
        monkeypatch.setattr(engine, "encode_chat", encode)
        signal.raise_signal(signal.SIGINT)
        return await encode(messages)

    monkeypatch.setattr(engine, "encode_chat", press)
    said = chat("Hello!\r\r/exit\r")
    assert "Stopped before the answer began." in said
    assert conversation.turns == [("Hello!", text)]


def test_a_full_context_keeps_the_message_for_the_new_chat(chat, short_engine, conversation):
    params = SamplingParams(temperature=0, ignore_eos=True)
    said = chat("Hello!\rAnd now?\r/clear\r\r/exit\r", engine=short_engine, params=params)
    assert "The context of 128 tokens is full and the answer was cut." in said
    assert "The chat has filled the context of 128 tokens. Type /clear" in said
    assert "A new chat begins." in said
    assert [question for question, _ in conversation.turns] == ["And now?"]


def test_a_message_that_is_too_long_can_be_shortened(chat, short_engine, conversation):
    long = "\x1b[200~" + 5000 * "x" + "\x1b[201~"
    said = chat(f"{long}\r{CTRL_C}short\r/exit\r", engine=short_engine)
    assert "The message does not fit the context of 128 tokens." in said
    assert [question for question, _ in conversation.turns] == ["short"]


def test_max_tokens_do_not_refuse_what_still_fits(chat, short_engine, conversation):
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=100_000)
    said = chat("Hello!\r/exit\r", engine=short_engine, params=params)
    assert "context 128 of 128" in said
    assert len(conversation.turns) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("one\\\rtwo\r", "one\ntwo"),
        (f"one{ALT_ENTER}  two\r", "one\n  two"),
        ("\x1b[200~one\ntwo\r\n/clear\x1b[201~\r", "one\ntwo\n/clear"),
        ("\r  \rone\r", "one"),
        (f"gone{CTRL_C}one\r", "one"),
        ("你好👍 café\r", "你好👍 café"),
    ],
)
def test_writing_a_message(chat, conversation, keys, message):
    said = chat(keys + "/exit\r")
    assert [question for question, _ in conversation.turns] == [message]
    assert "Ctrl+D or /exit" not in said


def test_a_line_that_was_emptied_is_in_the_history(chat, conversation):
    # History is read when the line is drawn, so that the Up key needs a moment, as people do.
    chat(f"back{CTRL_C}", later=f"{UP}\r/exit\r")
    assert [question for question, _ in conversation.turns] == ["back"]


def test_ctrl_c_on_an_empty_line_tells_how_to_leave(chat, conversation):
    assert "Ctrl+D or /exit leaves." in chat(f"abc{CTRL_C}{CTRL_C}/exit\r")
    assert conversation.turns == []


def test_chinese(chat, conversation):
    said = chat("你好\r/help\r/nope\r/clear\r/exit\r", words=CHINESE)
    assert re.search(
        r"12 个词元 · [\d.]+ 词元/秒 · 首个词元 \d+\.\d\d 秒 · 上下文 \d+ / 2,048", said
    )
    assert "没有命令 /nope。" in said
    assert "新对话开始。" in said
    assert said.endswith("再见。\n")
    assert not re.search(r"\b(tokens/s|answer|prompt|context)\b", said)


def test_what_was_typed_is_found_again_in_the_next_chat(chat, conversation, tmp_path):
    home = tmp_path / "new" / "home"
    chat("你好\\\rtwo\r/exit\r", history=open_history(home))
    chat(f"{UP}{UP}{UP}\r{CTRL_D}", history=open_history(home))
    assert [question for question, _ in conversation.turns] == ["你好\ntwo"] * 2
    if sys.platform != "win32":
        assert stat.S_IMODE((home / "chat_history").stat().st_mode) == 0o600


def test_a_home_that_cannot_be_written_is_no_hindrance(chat, conversation, tmp_path):
    (tmp_path / "file").touch()
    chat("Hello!\r/exit\r", history=open_history(tmp_path / "file"))
    assert len(conversation.turns) == 1


def test_pictures_go_with_the_next_message_and_stay_in_the_chat(
    chat, seeing_engine, conversation, pictures
):
    said = chat("/help\r/image\r/image cat.png\r/image 'my dog.jpg'\rTwo?\rAnd?\r/image\r/exit\r")
    assert all(what in said and meaning in said for what, meaning in ENGLISH.help)
    assert said.count("No picture waits.") == 2
    assert "With the next message: cat.png (30 × 20)\n" in said
    assert "With the next message: cat.png (30 × 20), my dog.jpg (7 × 9)\n" in said
    two = [
        {"type": "image", "image": pictures["cat.png"]},
        {"type": "image", "image": pictures["my dog.jpg"]},
        {"type": "text", "text": "Two?"},
    ]
    assert [messages[-1]["content"] for messages in seeing_engine.asked] == [two, "And?"]
    assert seeing_engine.asked[1][1]["content"] == two
    assert [question for question, _ in conversation.turns] == [two, "And?"]


def test_a_bad_picture_loses_nothing(chat, seeing_engine, conversation, pictures):
    said = chat("/image cat.png\r/image page.png\r/image none.png\rOne?\r/exit\r")
    assert "page.png: " in said
    assert "There is no such file: none.png" in said
    assert [part["type"] for part in conversation.turns[0][0]] == ["image", "text"]


def test_clear_drops_the_pictures(chat, seeing_engine, conversation, pictures):
    chat("/image cat.png\r/clear\rNone?\r/exit\r")
    assert [question for question, _ in conversation.turns] == ["None?"]


def test_a_refused_question_keeps_its_pictures(
    chat, seeing_engine, conversation, pictures, monkeypatch
):
    encode = seeing_engine.encode_chat

    async def refuse(messages):
        monkeypatch.setattr(seeing_engine, "encode_chat", encode)
        raise InvalidRequestError("that many tiles do not fit")

    monkeypatch.setattr(seeing_engine, "encode_chat", refuse)
    assert "that many tiles" in chat("/image cat.png\rOne?\r\r/exit\r")
    assert [text_of(question) for question, _ in conversation.turns] == ["One?"]
    assert conversation.turns[0][0][0]["image"] == pictures["cat.png"]


def test_a_full_context_keeps_the_pictures_for_the_new_chat(
    chat, seeing_engine, conversation, pictures, monkeypatch
):
    encode = seeing_engine.encode_chat

    async def refuse_two(messages):
        if len(messages) > 2:
            raise ContextLengthError("too long")
        return await encode(messages)

    monkeypatch.setattr(seeing_engine, "encode_chat", refuse_two)
    chat("Hello!\r/image cat.png\rOne?\r/clear\r\r/exit\r")
    assert [text_of(question) for question, _ in conversation.turns] == ["One?"]
    assert conversation.turns[0][0][0]["image"] == pictures["cat.png"]


def test_a_model_that_reads_text_only_says_so(chat, engine, conversation, pictures):
    said = chat("/image cat.png\rHello!\r/exit\r")
    assert f"{engine.name} reads text only and cannot see pictures." in said
    assert [question for question, _ in conversation.turns] == ["Hello!"]


def test_pictures_in_chinese(chat, seeing_engine, conversation, pictures):
    said = chat("/image\r/image cat.png\r/image none.png\r/help\r/exit\r", words=CHINESE)
    assert "没有待发送的图片。" in said
    assert "随下一条消息发送：cat.png (30 × 20)" in said
    assert "没有这个文件：none.png" in said
    assert "/image 路径" in said
