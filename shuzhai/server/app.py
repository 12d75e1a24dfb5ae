"""The web application: routes over engines. It knows neither uvicorn nor the command line."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from importlib.resources import files
from typing import TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from shuzhai.errors import ContextLengthError, InvalidRequestError
from shuzhai.frontend.async_engine import AsyncEngine
from shuzhai.frontend.content import read_messages
from shuzhai.frontend.outputs import Delta, EncodedPrompt
from shuzhai.server.body import parse_object
from shuzhai.server.boundary import Boundary, ClientGoneError, error_response
from shuzhai.server.errors import problem_of, without_secrets
from shuzhai.server.pictures import PictureFetcher, RemotePicture, remote_pictures
from shuzhai.server.registry import Registry, ServedModel
from shuzhai.server.replies import ChatFormat, CompletionFormat, Json, without_answer
from shuzhai.server.schemas import ChatRequest, CompletionRequest, GenerationRequest
from shuzhai.server.settings import CHAT_PATH, ServerConfig
from shuzhai.server.stream import Answering, EventStream, Pieces, merge, unless_gone

Ask = TypeVar("Ask", bound=GenerationRequest)

_PARSE_IN_THREAD_BYTES = 64 * 2**10
_MAX_ECHOED_LOGPROBS = 65536
# A step has a bounded number of tokens: even a slow CPU is through in a fraction of this.
_STUCK_SECONDS = 180.0
_PAGE_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def create_app(
    models: Sequence[ServedModel],
    config: ServerConfig | None = None,
    fetcher: PictureFetcher | None = None,
) -> FastAPI:
    """The whole HTTP side. Engines are made and shut down by the caller."""
    config = config or ServerConfig()
    fetcher = fetcher or PictureFetcher(config.allowed_image_hosts)
    app = FastAPI(
        title="Shuzhai",
        openapi_url=None,  # the interactive docs would load other people's code
        redirect_slashes=False,
    )
    api = _Api(Registry(models), fetcher)
    app.add_route("/", _page_file("index.html"), methods=["GET"])
    for name in _PAGE_TYPES:
        app.add_route(f"/static/{name}", _page_file(name), methods=["GET"])
    app.add_route("/health", api.health, methods=["GET"])
    app.add_route("/v1/models", api.list_models, methods=["GET"])
    app.add_route("/v1/models/{name:path}", api.show_model, methods=["GET"])
    app.add_route(CHAT_PATH, api.chat_completions, methods=["POST"])
    app.add_route("/v1/completions", api.completions, methods=["POST"])
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_middleware(Boundary, config=config)
    return app


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    return error_response(problem_of(error))


def _page_file(name: str) -> Callable[[Request], Awaitable[Response]]:
    """A route that serves one file of the page, read once: no path of a request meets the disk."""
    content = (files("shuzhai.server") / "static" / name).read_bytes()

    async def serve(request: Request) -> Response:
        return Response(
            content, media_type=_PAGE_TYPES[name], headers={"cache-control": "no-cache"}
        )

    return serve


class _Api:
    """The endpoints."""

    def __init__(self, registry: Registry, fetcher: PictureFetcher) -> None:
        self._registry = registry
        self._fetcher = fetcher
        # One big body at a time: meanwhile it takes several times its size, and the interpreter.
        self._parsing = asyncio.Lock()

    async def health(self, request: Request) -> Response:
        """200 only if every engine thread lives and gets on with its steps."""
        models = self._registry.models
        for model in models:
            if (fault := _fault(model.engine)) is not None:
                return JSONResponse({"model": model.name, **fault}, 503)
        stats = [model.engine.stats() for model in models]
        return JSONResponse(
            {
                "status": "ok",
                "model": models[0].name,
                "running": sum(s.num_running for s in stats),
                "waiting": sum(s.num_waiting for s in stats),
            }
        )

    async def list_models(self, request: Request) -> Response:
        data = [_model_json(model) for model in self._registry.models]
        return JSONResponse({"object": "list", "data": data})

    async def show_model(self, request: Request) -> Response:
        return JSONResponse(_model_json(self._registry.find(request.path_params["name"])))

    async def chat_completions(self, request: Request) -> Response:
        # An answer may take minutes: what was read is in no variable here that would keep it.
        return await unless_gone(
            request.receive, self._begin_chat(request, await self._read(request, ChatRequest))
        )

    async def completions(self, request: Request) -> Response:
        return await unless_gone(
            request.receive,
            self._begin_completions(request, await self._read(request, CompletionRequest)),
        )

    async def _begin_chat(self, request: Request, ask: ChatRequest) -> Response:
        model = self._registry.find(ask.model)
        params = ask.sampling(model.engine.processor.default_sampling)
        messages, remote = await asyncio.to_thread(_prepare, ask)
        ask = ask.model_copy(update={"messages": []})
        if remote:
            _check_sees(model)
            messages = await self._fetcher.fetch(messages, remote, request.state.held)
        prompt = await model.engine.encode_chat(messages)
        del messages, remote
        request.state.held.release()
        salt = cache_salt(request.state.tenant, ask.cache_salt)
        pieces = merge([model.engine.generate(prompt, params, cache_salt=salt)], params.n)
        return await _begin(ask, Answering(pieces, ChatFormat(ask.logprobs), model.name, params.n))

    async def _begin_completions(self, request: Request, ask: CompletionRequest) -> Response:
        model = self._registry.find(ask.model)
        params = ask.sampling(model.engine.processor.default_sampling)
        prompts = await _encode_all(model, ask)
        ask = ask.model_copy(update={"prompt": ""})
        request.state.held.release()
        _check_echo(ask, prompts)
        salt = cache_salt(request.state.tenant, ask.cache_salt)
        streams = [model.engine.generate(p, params, cache_salt=salt) for p in prompts]
        pieces = merge(streams, params.n)
        if ask.is_echo_only:
            pieces = _without_answers(pieces)
        wording = CompletionFormat(ask.logprobs, prompts if ask.echo else None, params.n)
        try:
            return await _begin(ask, Answering(pieces, wording, model.name, params.n))
        except ContextLengthError as error:  # whoever found it thought of a chat
            param = "prompt" if error.param == "messages" else error.param
            raise ContextLengthError(str(error), param) from None

    async def _read(self, request: Request, kind: type[Ask]) -> Ask:
        """The checked body. A big one is read in a thread: others' streams must not wait for it."""
        try:
            # request.body() would keep it for as long as the answer takes.
            body = b"".join([piece async for piece in request.stream()])
        except ClientDisconnect:
            raise ClientGoneError from None
        if len(body) <= _PARSE_IN_THREAD_BYTES:
            return _parse(body, kind)
        async with self._parsing:
            return await asyncio.to_thread(_parse, body, kind)


def _parse(body: bytes, kind: type[Ask]) -> Ask:
    return kind.parse(parse_object(body))


def _prepare(ask: ChatRequest) -> tuple[list[Json], list[RemotePicture]]:
    """The messages for the frontend, and which pictures of them are to be fetched before."""
    messages = ask.plain_messages()
    remote = remote_pictures(messages)
    if remote:
        read_messages(messages)  # what will be refused is not fetched for
    return messages, remote


def _check_sees(model: ServedModel) -> None:
    """Nothing is fetched for a model that cannot see it."""
    if model.engine.processor.image_spec is None:
        raise InvalidRequestError(
            f"{model.name} reads text only; choose a vision model for pictures", param="messages"
        )


async def _begin(ask: GenerationRequest, answering: Answering) -> Response:
    await answering.start()
    if not ask.stream:
        return await answering.fold()
    options = ask.stream_options
    return EventStream(answering, include_usage=options is not None and options.include_usage)


async def _encode_all(model: ServedModel, ask: CompletionRequest) -> list[EncodedPrompt]:
    engine = model.engine
    encoded = []
    for prompt in await asyncio.to_thread(ask.prompts):
        if isinstance(prompt, str):
            encoded.append(await engine.encode_text(prompt))
        else:
            encoded.append(await asyncio.to_thread(engine.processor.encode_ids, prompt))
    return encoded


def _check_echo(ask: CompletionRequest, prompts: Sequence[EncodedPrompt]) -> None:
    """Every answer of an echo repeats the prompt's log-probabilities: keep the reply bounded."""
    if not ask.echo or ask.logprobs is None:
        return
    count = sum(len(p.token_ids) for p in prompts) * ask.n * (ask.logprobs + 1)
    if count > _MAX_ECHOED_LOGPROBS:
        raise InvalidRequestError(
            f"echo would repeat {count} log-probabilities and {_MAX_ECHOED_LOGPROBS} is the most: "
            "shorten the prompts, or lower logprobs or n",
            param="logprobs",
        )


async def _without_answers(pieces: Pieces) -> AsyncGenerator[tuple[int, Delta], None]:
    async with aclosing(pieces):
        async for index, delta in pieces:
            yield index, without_answer(delta)


def cache_salt(tenant: bytes, wish: str) -> bytes:
    """Prefixes are shared between requests of one API key and one wish, and with nobody else."""
    if not tenant and not wish:
        return b""
    return hashlib.sha256(len(tenant).to_bytes(1) + tenant + wish.encode("utf-8")).digest()


def _fault(engine: AsyncEngine) -> Json | None:
    """What is wrong with an engine, if anything is."""
    if not engine.is_alive:
        return {"status": "dead", "cause": without_secrets(engine.cause_of_death or "unknown")}
    if (seconds := engine.step_seconds) >= _STUCK_SECONDS:
        return {"status": "stuck", "cause": f"a step has taken {seconds:.0f} s"}
    return None


def _model_json(model: ServedModel) -> Json:
    spec = model.engine.processor.image_spec
    pictures = [] if spec is None else ["image", "video"] if spec.has_video else ["image"]
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "shuzhai",
        "max_model_len": model.engine.processor.max_model_len,
        "input_modalities": ["text", *pictures],
    }
