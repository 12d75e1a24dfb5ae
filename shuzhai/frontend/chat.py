"""Chat templates: turns to text, special tokens and the places of pictures.

No template of a checkpoint is ever run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from shuzhai.checkpoint import CheckpointConfig, TowerHints
from shuzhai.errors import CheckpointError, ConfigError
from shuzhai.frontend.outputs import EncodedImage, EncodedPrompt
from shuzhai.frontend.tokenizer import Tokenizer

# At the positions of pictures where the vocabulary has no id for them.
NO_ID = -1
_LABEL_AT_END = re.compile(r"(Image-|Frame-?)\d+: ?$")

_INTERNLM2_SYSTEM = (
    "You are an AI assistant whose name is InternLM (书生·浦语).\n"
    "- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI "
    "Laboratory (上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the "
    "user such as English and 中文."
)
_SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_XCOMPOSER2_SYSTEM = (
    "You are an AI assistant whose name is InternLM-XComposer (浦语·灵笔).\n"
    "- InternLM-XComposer (浦语·灵笔) is a multi-modality conversational language model that is "
    "developed by Shanghai AI Laboratory (上海人工智能实验室). It is designed to be helpful, "
    "honest, and harmless.\n"
    "- InternLM-XComposer (浦语·灵笔) can understand and communicate fluently in the language "
    "chosen by the user such as English and 中文.\n"
    "- InternLM-XComposer (浦语·灵笔) is capable of comprehending and articulating responses "
    "effectively based on the provided image."
)
_INTERNVL2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。"
)
_INTERNVL2_5_SYSTEM = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True, slots=True)
class Pictures:
    """One picture of a turn, or the frames of one video."""

    images: tuple[EncodedImage, ...]
    are_frames: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, ready for a template: texts and pictures in their order."""

    role: str
    parts: tuple[str | Pictures, ...]


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """How a picture stands in a prompt.

    start, end   special tokens around it, if any
    token        fills its positions; None: the vocabulary has none, and they hold NO_ID
    shown        what the text of the prompt shows at a picture without a token
    are_lines    a line for each picture, several in a turn numbered ("Image-1: ", "Frame1: ");
                 else a picture stands between the words as it comes
    """

    start: str = ""
    end: str = ""
    token: str | None = None
    shown: str = ""
    are_lines: bool = False

    def lay_out(self, parts: Sequence[str | Pictures], first: int) -> Iterator[str | EncodedImage]:
        """A turn's texts and pictures with the lines and labels between them.

        first: the number of the turn's first picture. Labels that the user wrote are kept.
        """
        if not self.are_lines:
            for part in parts:
                yield from (part,) if isinstance(part, str) else part.images
            return
        alone = sum(isinstance(part, Pictures) and not part.are_frames for part in parts) == 1
        before: str | EncodedImage = "\n"  # the piece that came last
        for part in filter(None, parts):
            if isinstance(part, str):
                yield (before := part if _ends_line(before, part) else "\n" + part)
                continue
            for number, image in enumerate(part.images, 1 if part.are_frames else first):
                labelled = isinstance(before, str) and _LABEL_AT_END.search(before)
                if not labelled:
                    label = f"Frame{number}: " if part.are_frames else f"Image-{number}: "
                    label = "" if alone and not part.are_frames else label
                    yield label if _ends_line(before, "") else "\n" + label
                yield (before := image)
            first += 0 if part.are_frames else 1


def _ends_line(before: str | EncodedImage, text: str) -> bool:
    """No line break is missing between a piece and the text that follows."""
    if isinstance(before, EncodedImage):
        return text.startswith("\n")
    return bool(text) or before.endswith("\n")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """ChatML with its variations: `{start}{role}\\n{content}{end}{after_end}` for each turn.

    default_system    stands first unless the messages begin with a system turn of their own
    keeps_empty_system  an empty system turn is a turn; else it means none at all
    bos_per_text      a BOS in front of every stretch of text between pictures, and two where there
                      is no picture
    pictures          None for a model that reads text only
    sampling          what the model's authors sample chats with, where its checkpoint does not say
    """

    name: str
    start: str = "<|im_start|>"
    end: str = "<|im_end|>"
    after_end: str = "\n"
    default_system: str = ""
    keeps_empty_system: bool = False
    bos_per_text: bool = False
    pictures: PictureFormat | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)

    def marker_ids(self, tokenizer: Tokenizer) -> tuple[int, int]:
        """The ids that begin and end a turn; CheckpointError if the tokenizer lacks them."""
        return self._id(tokenizer, self.start), self._id(tokenizer, self.end)

    def picture_ids(self, tokenizer: Tokenizer) -> tuple[list[int], int, list[int]]:
        """(before, at each position of, after) a picture; CheckpointError as marker_ids."""
        assert self.pictures is not None, "asked of vision models only"
        start, token, end = self.pictures.start, self.pictures.token, self.pictures.end
        return (
            [self._id(tokenizer, start)] if start else [],
            NO_ID if token is None else self._id(tokenizer, token),
            [self._id(tokenizer, end)] if end else [],
        )

    def _id(self, tokenizer: Tokenizer, token: str) -> int:
        found = tokenizer.token_id(token)
        if found is None:
            raise CheckpointError(
                f"chat template {self.name} needs the token {token}, which the tokenizer lacks"
            )
        return found

    def encode(
        self, turns: Sequence[Turn], tokenizer: Tokenizer, *, goes_on: bool = False
    ) -> EncodedPrompt:
        """The prompt that asks for the next assistant turn. goes_on: for more of the last turn,
        which is one of text."""
        begun = ""
        if goes_on:
            begun = "".join(part for part in turns[-1].parts if isinstance(part, str))
            turns = turns[:-1]
        prompt = _Prompt(self, tokenizer)
        num_pictures = 0
        for turn in self._with_system(turns):
            prompt.add_marker(self.start)
            prompt.add_text(f"{turn.role}\n")
            pictures = [part for part in turn.parts if isinstance(part, Pictures)]
            if pictures:
                assert self.pictures is not None, "checked before pictures are opened"
                pieces = self.pictures.lay_out(turn.parts, num_pictures + 1)
            else:
                pieces = iter(part for part in turn.parts if isinstance(part, str))
            for piece in pieces:
                if isinstance(piece, str):
                    prompt.add_text(piece)
                else:
                    prompt.add_picture(piece)
            num_pictures += sum(not part.are_frames for part in pictures)
            prompt.add_marker(self.end)
            prompt.add_text(self.after_end)
        prompt.add_marker(self.start)
        prompt.add_text("assistant\n" + begun)
        return prompt.finish(is_open=bool(begun))

    def _with_system(self, turns: Sequence[Turn]) -> list[Turn]:
        if not turns or turns[0].role != "system":
            turns = [Turn("system", (self.default_system,)), *turns]
        elif self.keeps_empty_system:
            return list(turns)
        return [*([turns[0]] if any(turns[0].parts) else []), *turns[1:]]


class _Prompt:
    """A prompt as it grows. Text is tokenised in one piece between markers and pictures."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._markers = dict(
            zip((template.start, template.end), template.marker_ids(tokenizer), strict=True)
        )
        self._ids: list[int] = tokenizer.prefix_ids
        self._text = ""
        self._pending = ""  # the end of _text that has no ids yet
        self._images: list[EncodedImage] = []
        self._is_after_picture = False

    def add_text(self, text: str) -> None:
        self._text += text
        self._pending += text

    def add_marker(self, marker: str) -> None:
        self._flush()
        self._begin_text()
        self._text += marker
        self._ids.append(self._markers[marker])

    def add_picture(self, image: EncodedImage) -> None:
        assert self._template.pictures is not None, "checked before pictures are opened"
        self._flush()
        form = self._template.pictures
        before, token, after = self._template.picture_ids(self._tokenizer)
        self._ids += [*before, *[token] * image.num_tokens, *after]
        fill = form.shown if form.token is None else form.token * image.num_tokens
        self._text += form.start + fill + form.end
        self._images.append(image)
        self._is_after_picture = True

    def finish(self, *, is_open: bool) -> EncodedPrompt:
        self._flush()
        if self._template.bos_per_text and not self._images:
            bos = self._tokenizer.prefix_ids
            self._ids = bos + self._ids
            self._text = "".join(map(self._tokenizer.token_text, bos)) + self._text
        return EncodedPrompt(self._text, self._ids, tuple(self._images), is_open)

    def _flush(self) -> None:
        if self._pending:
            self._begin_text()
            self._ids += self._tokenizer.encode_text(self._pending)
            self._pending = ""

    def _begin_text(self) -> None:
        if self._is_after_picture and self._template.bos_per_text:
            self._ids += self._tokenizer.prefix_ids
        self._is_after_picture = False


_INTERNVL2 = ChatTemplate(
    "internvl2",
    after_end="",
    default_system=_INTERNVL2_SYSTEM,
    keeps_empty_system=True,
    pictures=PictureFormat("<img>", "</img>", token="<IMG_CONTEXT>", are_lines=True),
    sampling={"temperature": 0.8, "top_p": 0.8},
)
_XCOMPOSER2 = ChatTemplate(
    "internlm-xcomposer2",
    start="[UNUSED_TOKEN_146]",
    end="[UNUSED_TOKEN_145]",
    default_system=_XCOMPOSER2_SYSTEM,
    pictures=PictureFormat(shown="<ImageHere>"),
    sampling={"temperature": 1.0, "top_p": 0.8, "repetition_penalty": 1.005},
)

TEMPLATES: Mapping[str, ChatTemplate] = {
    template.name: template
    for template in (
        ChatTemplate(
            "internlm2-chat",
            default_system=_INTERNLM2_SYSTEM,
            sampling={"temperature": 0.8, "top_p": 0.8},
        ),
        _XCOMPOSER2,
        # As the chat() of the model's own code writes it, which differs from its training.
        dataclasses.replace(_XCOMPOSER2, name="internlm-xcomposer2-demo", bos_per_text=True),
        _INTERNVL2,
        dataclasses.replace(
            _INTERNVL2, name="internvl2.5", after_end="\n", default_system=_INTERNVL2_5_SYSTEM
        ),
        ChatTemplate(
            "smollm2-chat",
            default_system=_SMOLLM2_SYSTEM,
            sampling={"temperature": 0.2, "top_p": 0.9},
        ),
        ChatTemplate("chatml"),
    )
}

# What the configs of InternVL checkpoints call their templates.
INTERNVL_TEMPLATES = {"internlm2-chat": "internvl2", "internvl2_5": "internvl2.5"}


def find_template(name: str) -> ChatTemplate:
    """ConfigError lists the known ones."""
    if name not in TEMPLATES:
        raise ConfigError(f"chat template {name!r} is unknown; known are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def choose_template(checkpoint: CheckpointConfig, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template that a checkpoint names, else the usual one of its family, None where there is
    none."""
    if isinstance(checkpoint.vision, TowerHints):
        return _XCOMPOSER2
    name = checkpoint.template
    if checkpoint.vision is not None:
        return find_template(INTERNVL_TEMPLATES.get(name or "internlm2-chat", name or ""))
    if name is not None:
        return find_template(name)
    usual = TEMPLATES["internlm2-chat" if checkpoint.decoder.layout == "internlm2" else "chatml"]
    return usual if tokenizer.token_id(usual.start) is not None else None
