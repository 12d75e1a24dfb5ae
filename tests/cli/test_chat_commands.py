import string
from dataclasses import fields

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from shuzhai.cli.chat_answer import Reply, for_terminal
from shuzhai.cli.chat_commands import COMMANDS, Command, Conversation, parse
from shuzhai.cli.chat_input import _CommandCompleter, well_formed
from shuzhai.cli.chat_pictures import Picture
from shuzhai.cli.chat_words import CHINESE, ENGLISH, words_of
from shuzhai.config import Environment


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("Hello / there", "Hello / there"),
        ("  你好\n第二行 ", "你好\n第二行"),
        ("/help", Command("/help", "")),
        (" /clear \n", Command("/clear", "")),
        ("/system Be brief.\nBe kind.", Command("/system", "Be brief.\nBe kind.")),
        ("/usr/bin is what?", Command("/usr/bin", "is what?")),
        ("/", Command("/", "")),
        ("//usr/bin is what?", "/usr/bin is what?"),
        ("//", "/"),
    ],
)
def test_parse(line, meaning):
    assert parse(line) == meaning


def test_conversation_messages():
    conversation = Conversation()
    assert conversation.messages("a") == [{"role": "user", "content": "a"}]
    conversation.turns.append(("a", "b"))
    conversation.system = ""
    assert conversation.messages("c") == [
        {"role": "system", "content": ""},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


def test_pictures_stand_before_the_question_and_stay_in_its_turn():
    conversation = Conversation(pictures=[Picture("cat.png", 3, 2, b"cat")])
    question = conversation.question("a")
    parts = [{"type": "image", "image": b"cat"}, {"type": "text", "text": "a"}]
    assert question == parts
    assert conversation.messages(question) == [{"role": "user", "content": parts}]
    conversation.turns.append((question, "b"))
    conversation.pictures.clear()
    assert conversation.messages(conversation.question("c")) == [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


def test_both_languages_have_the_same_blanks_and_the_same_help():
    def blanks(text):
        return sorted((name, form) for _, name, form, _ in string.Formatter().parse(text) if name)

    for field in fields(ENGLISH):
        english, chinese = getattr(ENGLISH, field.name), getattr(CHINESE, field.name)
        if field.name == "help":
            assert len(english) == len(chinese)
            assert set(COMMANDS) <= set(dict(english)) & set(dict(chinese))
        else:
            assert blanks(english) == blanks(chinese), field.name


@pytest.mark.parametrize(
    ("env", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8", "LC_ALL": ""}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "en_US.UTF-8", "LC_ALL": "zh_CN"}, "zh"),
        ({"LANG": "C"}, "en"),
    ],
)
def test_language_comes_from_the_locale(env, language):
    assert Environment.read(env).language == language
    assert words_of(language) is (CHINESE if language == "zh" else ENGLISH)


def test_a_model_cannot_command_the_terminal():
    assert for_terminal("a\tb\n\x1b[2J\x07\r\x7f\x9b你好👍") == "a\tb\n␛[2J␇␍␡\ufffd你好👍"


def test_bytes_that_are_no_text_become_question_marks():
    assert well_formed("a\udcffb你") == "a?b你"


def test_tokens_per_second_leave_the_prompt_out():
    reply = Reply(started=10.0, arrivals=[12.0, 12.5, 13.0])
    assert (reply.seconds_to_first, reply.tokens_per_second) == (2.0, 2.0)
    assert Reply(started=10.0, arrivals=[12.0]).tokens_per_second is None
    assert Reply(started=10.0).seconds_to_first == 0.0


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("/", list(COMMANDS)),
        ("/h", ["/help"]),
        ("/help", []),
        ("/i", ["/image"]),
        ("/system x", []),
        ("hello", []),
        ("", []),
    ],
)
def test_completion_of_commands(typed, offered):
    assert completions(typed) == offered
    blind = [name for name in offered if name != "/image"]
    assert completions(typed, sees=False) == blind


def test_completion_of_paths_to_pictures(tmp_path):
    for name in ("cat.PNG", "cat 2.jpg", "cat.txt", "dog.png"):
        (tmp_path / name).touch()
    (tmp_path / "cats").mkdir()
    assert completions(f"/image {tmp_path}/ca") == ["t 2.jpg", "t.PNG", "ts"]
    assert completions(f"/image {tmp_path}/dog.p") == ["ng"]
    assert completions(f"/image {tmp_path}/ca", sees=False) == []


def completions(typed, sees=True):
    found = _CommandCompleter(CHINESE, sees).get_completions(Document(typed), CompleteEvent())
    return [completion.text for completion in found]
