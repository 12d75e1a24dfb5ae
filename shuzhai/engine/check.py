"""Whether a request can ever run on an engine. Pure; no torch."""

from __future__ import annotations

from shuzhai.config import ModelConfig, VisionConfig
from shuzhai.engine.memory import MemoryPlan
from shuzhai.engine.request import Request
from shuzhai.errors import ContextLengthError, InvalidRequestError


def check_request(request: Request, model: ModelConfig, plan: MemoryPlan) -> None:
    """Raise InvalidRequestError if the request can never run."""
    count, limit = len(request.token_ids), plan.max_model_len
    if count == 0:
        raise InvalidRequestError("the prompt is empty; give at least one token", "prompt")
    params, vocab = request.params, model.decoder.vocab_size
    wanted = 0 if request.want_prompt_logits else max(params.max_tokens or 1, params.min_tokens)
    if count + wanted > limit:
        room = limit - count
        raise ContextLengthError(
            f"{count} tokens of prompt and {wanted} of answer are more than the context of "
            f"{limit} tokens; "
            + (f"ask for at most {room}, or " if room > 0 else "")
            + "shorten the prompt, or give the model more memory or a larger max_model_len",
            param="messages" if room <= 0 else "max_tokens" if params.max_tokens else "min_tokens",
        )
    _check_images(request, model.vision, plan.picture_rows)
    least = -1 if request.images else 0
    for name, ids, low in (
        ("prompt", request.token_ids, least),
        ("logit_bias", params.logit_bias, 0),
        ("stop_token_ids", params.stop_token_ids, 0),
    ):
        if ids and (min(ids) < low or max(ids) >= vocab):
            raise InvalidRequestError(
                f"{name}: token ids must be from 0 to {vocab - 1}", param=name
            )


def _check_images(request: Request, vision: VisionConfig | None, room: int) -> None:
    """Pictures that this model can encode, at their places. room: for rows of pictures"""
    if not request.images:
        return
    if vision is None:
        raise InvalidRequestError(
            "this model reads text only; choose a vision model for pictures", "messages"
        )
    if request.params.prompt_logprobs is not None:
        raise InvalidRequestError(
            "prompt_logprobs cannot be had of a prompt with pictures", "prompt_logprobs"
        )
    at = 0
    for image in request.images:
        tiles, size = image.pixels.shape[0], vision.image_size
        fits = image.pixels.shape == (tiles, size, size, 3)
        count = tiles * vision.tokens_per_tile
        if not (fits and at <= image.start and image.end - image.start == count > 0):
            raise InvalidRequestError(
                f"a picture of {tiles} tiles takes {count} positions in a row in the prompt, "
                "and its tiles are of this model's size; encode it with this model",
                "messages",
            )
        if count > room:
            raise InvalidRequestError(
                f"a picture takes {count} rows and {room} are the most; "
                "ask for fewer tiles (max_tiles)",
                "messages",
            )
        at = image.end
    if at > len(request.token_ids) or -1 in _outside(request):
        raise InvalidRequestError("token id -1 stands for pictures only", "prompt")


def _outside(request: Request) -> set[int]:
    """The token ids that do not stand at the positions of pictures."""
    bounds = [0, *(at for image in request.images for at in (image.start, image.end)), None]
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return {i for low, high in pairs for i in request.token_ids[low:high]}
