"""Between words and the engine: messages, texts and pictures to prompts, prompts to requests.

A Processor keeps no state of any request; threads may share it. It never runs the engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from PIL import Image

from shuzhai.checkpoint import CheckpointConfig
from shuzhai.config import MAX_TILES, ImageSpec, VisionConfig
from shuzhai.engine.request import ImageSpan, Request, SamplingParams
from shuzhai.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    InvalidRequestError,
)
from shuzhai.frontend.chat import (
    NO_ID,
    ChatTemplate,
    Pictures,
    Turn,
    choose_template,
    find_template,
)
from shuzhai.frontend.content import MediaPart, Message, check_goes_on, read_messages
from shuzhai.frontend.effort import Effort
from shuzhai.frontend.images import ImageSource, check_max_tiles, open_image, prepare_image
from shuzhai.frontend.outputs import EncodedImage, EncodedPrompt
from shuzhai.frontend.tokenizer import Tokenizer, load_tokenizer
from shuzhai.frontend.video import sample_frames


class Processor:
    """Everything about one model that concerns text and pictures.

    template          None for a model that was not trained to chat
    image_spec        None for a model that reads text only
    default_sampling  what its checkpoint, else its template recommends
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        stop_ids: Sequence[int],
        default_sampling: SamplingParams,
        max_model_len: int,
        image_spec: ImageSpec | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.image_spec = image_spec
        self._image_id = NO_ID
        if image_spec is not None and template is not None:
            self._image_id = template.picture_ids(tokenizer)[1]
        self.default_sampling = default_sampling
        self.max_model_len = max_model_len
        end = {template.marker_ids(tokenizer)[1]} if template else set()
        self._stop_ids = frozenset(stop_ids) | end

    @classmethod
    def load(
        cls,
        folder: Path,
        config: CheckpointConfig,
        max_model_len: int,
        *,
        vision: VisionConfig | None = None,
        chat_template: str | None = None,
        max_tiles: int | None = None,
    ) -> Processor:
        """For a checkpoint folder.

        vision         the model's tower, None for a model that reads text only
        chat_template  overrides the one that the checkpoint names
        max_tiles      of a picture, instead of the model's own number
        """
        tokenizer = load_tokenizer(folder)
        if chat_template is not None:
            template: ChatTemplate | None = find_template(chat_template)
        else:
            template = choose_template(config, tokenizer)
        vocab_size = config.decoder.vocab_size
        if template and max(template.marker_ids(tokenizer)) >= vocab_size:
            raise CheckpointError(
                f"{folder}: the tokenizer's chat markers are beyond the model's {vocab_size} tokens"
            )
        recommended = {**(template.sampling if template else {}), **config.sampling}
        try:
            default_sampling = SamplingParams(**recommended)
        except InvalidRequestError as error:
            raise CheckpointError(f"{folder / 'generation_config.json'}: {error}") from error
        return cls(
            tokenizer,
            template,
            stop_ids=config.decoder.stop_ids,
            default_sampling=default_sampling,
            max_model_len=max_model_len,
            image_spec=_image_spec(vision, template, max_tiles),
        )

    def encode_chat(
        self,
        messages: Any,
        *,
        max_tiles: int | None = None,
        allow_files: bool = False,
        effort: Effort | None = None,
        goes_on: bool = False,
    ) -> EncodedPrompt:
        """The prompt for OpenAI-style messages; InvalidRequestError, ContextLengthError.

        max_tiles    of each picture, instead of the usual number
        allow_files  pictures may be named by their path
        effort       how long the pictures may take to open
        goes_on      the last message is an answer that is not at its end
        """
        if self.template is None:
            raise InvalidRequestError(
                "this model has no chat template; use completions, or name a template",
                param="messages",
            )
        check_max_tiles(max_tiles)
        read = read_messages(messages, allow_files=allow_files)
        if goes_on:
            check_goes_on(read)
        parts = [part for message in read for part in message.parts]
        self._check_size(sum(len(part) for part in parts if isinstance(part, str)), "messages")
        self._check_sight(parts)
        turns = self._open_pictures(read, max_tiles, effort)
        return self.template.encode(turns, self.tokenizer, goes_on=goes_on)

    def encode_image(self, image: ImageSource, max_tiles: int | None = None) -> EncodedImage:
        """One picture as the model's tower gets it."""
        if self.image_spec is None:
            raise _blind()
        return prepare_image(open_image(image, "the image"), self.image_spec, max_tiles)

    def _check_sight(self, parts: Sequence[str | MediaPart]) -> None:
        media = [part for part in parts if isinstance(part, MediaPart)]
        if media and self.image_spec is None:
            raise _blind(media[0].where)
        if media and self.image_spec is not None:
            least = sum(part.num_frames for part in media) * self.image_spec.tokens_per_tile
            if least > self.max_model_len:
                raise ContextLengthError(
                    f"the pictures take {least} tokens or more, but the context holds "
                    f"{self.max_model_len}; send fewer"
                )
        if self.image_spec is not None and not self.image_spec.has_video:
            for part in media:
                if part.kind == "video":
                    raise InvalidRequestError(
                        f"{part.where}: this model knows pictures but no videos; send pictures",
                        param="messages",
                    )

    def _open_pictures(
        self, messages: Sequence[Message], max_tiles: int | None, effort: Effort | None
    ) -> list[Turn]:
        """Open every picture, one after the other, as long as the context has room for them."""
        num_tokens = 0
        turns = []
        for message in messages:
            parts: list[str | Pictures] = []
            for part in message.parts:
                if isinstance(part, str):
                    parts.append(part)
                    continue
                if effort is not None:
                    effort.check(part.where)
                pictures = self._open(part, max_tiles, effort)
                parts.append(pictures)
                num_tokens += sum(image.num_tokens for image in pictures.images)
                if num_tokens > self.max_model_len:
                    raise ContextLengthError(
                        f"{part.where}: the pictures up to this one take {num_tokens} tokens, but "
                        f"the context holds {self.max_model_len}; send fewer, or with less detail"
                    )
            turns.append(Turn(message.role, tuple(parts)))
        return turns

    def _open(self, part: MediaPart, max_tiles: int | None, effort: Effort | None) -> Pictures:
        assert self.image_spec is not None, "checked for all parts before"
        source = part.read()
        if part.kind == "video":
            assert not isinstance(source, Image.Image), "checked when the message was read"
            frames = sample_frames(source, part.num_frames, part.where, effort)
            images = (prepare_image(frame, self.image_spec, 1) for frame in frames)
            return Pictures(tuple(images), are_frames=True)
        image = open_image(source, part.where)
        tiles = 1 if part.detail == "low" else max_tiles
        return Pictures((prepare_image(image, self.image_spec, tiles),))

    def encode_text(self, text: str) -> EncodedPrompt:
        """A plain text to be continued. It is never parsed for special tokens."""
        self._check_size(len(text), "prompt")
        return EncodedPrompt(text, self.tokenizer.prefix_ids + self.tokenizer.encode_text(text))

    def encode_ids(self, ids: Sequence[int]) -> EncodedPrompt:
        """Ids as they are; nothing is added."""
        if len(ids) > self.max_model_len:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens, but the context holds {self.max_model_len}",
                param="prompt",
            )
        if not all(issubclass(k, Integral) and k is not bool for k in set(map(type, ids))):
            raise InvalidRequestError("a prompt of token ids must hold whole numbers", "prompt")
        plain = [int(i) for i in ids]
        return EncodedPrompt(self.tokenizer.decode(plain, skip_special=False), plain)

    def requests(
        self,
        prompt: EncodedPrompt,
        params: SamplingParams,
        request_id: str,
        cache_salt: bytes = b"",
    ) -> list[Request]:
        """The n engine requests of one prompt; answer i of a seeded request has seed + i."""
        spans = self.image_spans(prompt)
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self._stop_ids
        return [
            Request(
                id=f"{request_id}-{i}",
                token_ids=tuple(prompt.token_ids),
                params=_for_choice(params, i),
                stop_ids=stop_ids,
                cache_salt=cache_salt,
                images=spans,
            )
            for i in range(params.n)
        ]

    def image_spans(self, prompt: EncodedPrompt) -> tuple[ImageSpan, ...]:
        """Where the pictures of a prompt stand: at the model's id for them, one after the other."""
        if not prompt.images:
            return ()
        if self.image_spec is None:
            raise _blind()
        places = [i for i, token in enumerate(prompt.token_ids) if token == self._image_id]
        wanted = sum(image.num_tokens for image in prompt.images)
        # More there may be: after its pictures, a model can say the id as a word.
        if len(places) < wanted:
            raise InvalidRequestError(
                f"token_ids has {len(places)} positions for pictures (id {self._image_id}), "
                f"but the pictures take {wanted}",
                param="prompt",
            )
        spans, at = [], 0
        for image in prompt.images:
            start = places[at]
            spans.append(ImageSpan(start, start + image.num_tokens, image.digest, image.pixels))
            at += image.num_tokens
            if places[at - 1] != start + image.num_tokens - 1:
                raise InvalidRequestError(
                    f"token_ids splits a picture that begins at position {start}", param="prompt"
                )
        return tuple(spans)

    def _check_size(self, num_chars: int, param: str) -> None:
        """Refuse what cannot fit before it is tokenised: no piece holds more than so many bytes."""
        limit = self.max_model_len * self.tokenizer.max_piece_bytes
        if num_chars > limit:
            raise ContextLengthError(
                f"the text has {num_chars} characters, which cannot fit a context of "
                f"{self.max_model_len} tokens; shorten it",
                param=param,
            )


def _image_spec(
    vision: VisionConfig | None, template: ChatTemplate | None, max_tiles: int | None
) -> ImageSpec | None:
    """How pictures are read, if the model has eyes and its template a place for them."""
    if max_tiles is not None and not (type(max_tiles) is int and 1 <= max_tiles <= MAX_TILES):
        raise ConfigError(f"max_tiles must be from 1 to {MAX_TILES}, not {max_tiles!r}")
    if vision is None or template is None or template.pictures is None:
        return None
    spec = vision.image_spec
    if max_tiles is None or spec.max_tiles == 1:
        return spec
    return dataclasses.replace(spec, max_tiles=max_tiles, min_tiles=min(spec.min_tiles, max_tiles))


def _blind(where: str = "this request") -> InvalidRequestError:
    return InvalidRequestError(
        f"{where}: this model reads text only; choose a vision model for pictures",
        param="messages",
    )


def _for_choice(params: SamplingParams, index: int) -> SamplingParams:
    """Parameters of answer `index`: its own seed, and the prompt's log-probabilities only once."""
    if index == 0:
        return params
    seed = None if params.seed is None else (params.seed + index + 2**63) % 2**64 - 2**63
    return dataclasses.replace(params, seed=seed, prompt_logprobs=None)
