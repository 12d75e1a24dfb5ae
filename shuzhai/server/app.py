"""The web application: routes over engines. It knows neither uvicorn nor the command line."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shuzhai.engine.request import SamplingParams
from shuzhai.errors import ContextLengthError, InvalidRequestError
from shuzhai.frontend.async_engine import AsyncEngine
from shuzhai.frontend.content import check_goes_on, hold_pictures, read_messages
from shuzhai.frontend.outputs import Delta, EncodedPrompt
from shuzhai.server.boundary import Boundary, error_response
from shuzhai.server.chats.api import ChatsApi
from shuzhai.server.chats.database import Database
from shuzhai.server.chats.pictures import Attachments
from shuzhai.server.errors import problem_of
from shuzhai.server.model import ServedModel
from shuzhai.server.offers import Offers
from shuzhai.server.page_files import PageFile
from shuzhai.server.pictures import LinkedPicture, PictureFetcher, fill_in, linked_pictures
from shuzhai.server.reading import BodyReader, Endpoint
from shuzhai.server.registry import Registry
from shuzhai.server.replies import ChatFormat, CompletionFormat, Json, without_answer
from shuzhai.server.schemas import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ModelRequest,
)
from shuzhai.server.settings import CHAT_PATH, ServerConfig
from shuzhai.server.status import StatusApi
from shuzhai.server.stream import Answering, EventStream, Pieces, merge, unless_gone

_MAX_ECHOED_LOGPROBS = 65536
_HEALTH_PATH = "/health"
# So few ids of a request are read sooner than a thread gets its turn.
_IDS_AT_ONCE = 1024


def create_app(
    registry: Registry,
    config: ServerConfig | None = None,
    fetcher: PictureFetcher | None = None,
    *,
    database: Database | None = None,
    offers: Offers | None = None,
    page: Mapping[str, PageFile] | None = None,
) -> FastAPI:
    """The whole HTTP side. Registry and database are closed by the caller.

    Without a database nothing is kept, without offers no other model is known, without a page there
    is the API alone.
    """
    config = config or ServerConfig()
    page = page or {}
    app = FastAPI(
        title="Shuzhai",
        openapi_url=None,  # the interactive docs would load other people's code
        redirect_slashes=False,
    )
    reader = BodyReader()
    fetcher = fetcher or PictureFetcher(config.allowed_image_hosts)
    routes = dict(_Api(registry, fetcher, Attachments(database), reader).routes())
    if offers is not None:
        routes |= StatusApi(registry, offers, reader).routes()
    if database is not None:
        routes |= ChatsApi(database, reader).routes()
    routes |= {path: {"GET": file.serve} for path, file in page.items()}
    for path, endpoints in routes.items():
        app.add_route(path, _by_method(endpoints), methods=[*endpoints])
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_middleware(Boundary, config=config, open_paths={_HEALTH_PATH, *page})
    return app


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    return error_response(problem_of(error))


def _by_method(endpoints: Mapping[str, Endpoint]) -> Endpoint:
    async def serve(request: Request) -> Response:
        # The router lets HEAD in where there is GET.
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return serve


class _Api:
    """The endpoints of the OpenAI API, and those of its kind."""

    def __init__(
        self,
        registry: Registry,
        fetcher: PictureFetcher,
        attachments: Attachments,
        reader: BodyReader,
    ) -> None:
        self._registry = registry
        self._fetcher = fetcher
        self._attachments = attachments
        self._reader = reader

    def routes(self) -> Mapping[str, Mapping[str, Endpoint]]:
        """Endpoints by path and method."""
        return {
            _HEALTH_PATH: {"GET": self.health},
            "/v1/models": {"GET": self.list_models},
            "/v1/models/load": {"POST": self.load_model},
            "/v1/models/unload": {"POST": self.unload_model},
            "/v1/models/{name:path}": {"GET": self.show_model},
            CHAT_PATH: {"POST": self.chat_completions},
            "/v1/completions": {"POST": self.completions},
        }

    async def health(self, request: Request) -> Response:
        """503 if a step hangs, or if no model is there to be used: all that were tried have failed.

        Less is not told by the status: a model that failed is tried again by its next request, and
        the others do without it.
        """
        models = self._registry.models
        faults = [(m.name, fault) for m in models if (fault := m.fault()) is not None]
        stuck = [(name, fault) for name, fault in faults if fault["status"] == "stuck"]
        if stuck or len(faults) == len(models):
            name, fault = (stuck or faults)[0]
            return JSONResponse({"model": name, **fault}, 503)
        stats = [m.engine.stats() for m in models if m.engine is not None]
        return JSONResponse(
            {
                "status": "ok",
                "running": sum(s.num_running for s in stats),
                "waiting": sum(s.num_waiting for s in stats),
                "models": {m.name: m.state for m in models},
            }
        )

    async def list_models(self, request: Request) -> Response:
        data = [_shown(model) for model in self._registry.models]
        return JSONResponse({"object": "list", "data": data})

    async def show_model(self, request: Request) -> Response:
        return JSONResponse(_shown(self._registry.find(request.path_params["name"])))

    async def load_model(self, request: Request) -> Response:
        """Answers when the model is loaded. The client that leaves before does not end the load."""
        name = (await self._reader.object(request, ModelRequest.parse)).model
        use = self._registry.use(name, request.state.leaving, is_patient=True)
        model, _ = await unless_gone(request.receive, use)
        return JSONResponse(_shown(model))

    async def unload_model(self, request: Request) -> Response:
        """Answers when the memory is free. There is no forcing it: 409 while requests use it."""
        name = (await self._reader.object(request, ModelRequest.parse)).model
        return JSONResponse(_shown(await self._registry.unload(name)))

    async def chat_completions(self, request: Request) -> Response:
        # An answer may take minutes: what was read is in no variable here that would keep it.
        return await unless_gone(
            request.receive,
            self._begin_chat(request, await self._reader.object(request, ChatRequest.parse)),
        )

    async def completions(self, request: Request) -> Response:
        return await unless_gone(
            request.receive,
            self._begin_completions(request, *await self._reader.object(request, _completion)),
        )

    async def _begin_chat(self, request: Request, ask: ChatRequest) -> Response:
        model = self._registry.find(ask.model)
        _check_sampling(ask, model)
        messages, kept, remote = await asyncio.to_thread(_prepare, ask, model)
        found = await self._attachments.find(request.state.tenant, kept)
        model, engine = await self._registry.use(ask.model, request.state.leaving)
        params = ask.sampling(engine.processor.default_sampling)
        ask = ask.model_copy(update={"messages": []})
        if kept or remote:
            _check_sees(model)  # which may be known only now
            contents = await self._attachments.read(found, request.state.held)
            messages = fill_in(messages, kept, contents)
            del contents
            messages = await self._fetcher.fetch(messages, remote, request.state.held)
        prompt = await engine.encode_chat(messages, goes_on=ask.goes_on)
        del messages, kept, remote
        request.state.held.release()
        salt = cache_salt(request.state.tenant, ask.cache_salt)
        pieces = merge([engine.generate(prompt, params, cache_salt=salt)], params.n)
        return await _begin(ask, Answering(pieces, ChatFormat(ask.logprobs), model.name, params.n))

    async def _begin_completions(
        self, request: Request, ask: CompletionRequest, texts: list[str | list[int]]
    ) -> Response:
        _check_sampling(ask, self._registry.find(ask.model))
        model, engine = await self._registry.use(ask.model, request.state.leaving)
        params = ask.sampling(engine.processor.default_sampling)
        prompts = await _encode_all(engine, texts)
        del texts
        request.state.held.release()
        _check_echo(ask, prompts)
        salt = cache_salt(request.state.tenant, ask.cache_salt)
        streams = [engine.generate(p, params, cache_salt=salt) for p in prompts]
        pieces = merge(streams, params.n)
        if ask.is_echo_only:
            pieces = _without_answers(pieces)
        wording = CompletionFormat(ask.logprobs, prompts if ask.echo else None, params.n)
        try:
            return await _begin(ask, Answering(pieces, wording, model.name, params.n))
        except ContextLengthError as error:  # whoever found it thought of a chat
            param = "prompt" if error.param == "messages" else error.param
            raise ContextLengthError(str(error), param) from None


def _completion(data: Mapping[str, Any]) -> tuple[CompletionRequest, list[str | list[int]]]:
    """What is asked, and about which prompts: it keeps none."""
    ask = CompletionRequest.parse(data)
    return ask.model_copy(update={"prompt": ""}), ask.prompts()


def _prepare(
    ask: ChatRequest, model: ServedModel
) -> tuple[list[Json], list[LinkedPicture], list[LinkedPicture]]:
    """The messages for the frontend, and which pictures of them are to be read from what is kept,
    and to be fetched, before.

    No model is loaded for what will be refused.
    """
    messages = ask.plain_messages()
    linked = linked_pictures(messages)
    read = read_messages(messages)
    if ask.goes_on:
        check_goes_on(read)
    if hold_pictures(messages):
        _check_sees(model)
    kept = [picture for picture in linked if picture.kept_id is not None]
    return messages, kept, [picture for picture in linked if picture.kept_id is None]


def _check_sampling(ask: GenerationRequest, model: ServedModel) -> None:
    """No model is loaded for values that none of its defaults can mend."""
    params = ask.sampling(SamplingParams())
    wanted, limit = max(params.max_tokens or 1, params.min_tokens), model.facts.max_model_len
    if limit is not None and wanted > limit:
        raise ContextLengthError(
            f"{wanted} tokens of answer are more than the context of {limit} tokens; ask for fewer",
            "max_tokens" if params.max_tokens else "min_tokens",
        )


def _check_sees(model: ServedModel) -> None:
    """Nothing is fetched for a model that is known not to see it."""
    if model.is_blind:
        raise InvalidRequestError(
            f"{model.name} reads text only; choose a vision model for pictures", param="messages"
        )


async def _begin(ask: GenerationRequest, answering: Answering) -> Response:
    await answering.start()
    if not ask.stream:
        return await answering.fold()
    options = ask.stream_options
    return EventStream(answering, include_usage=options is not None and options.include_usage)


async def _encode_all(
    engine: AsyncEngine, prompts: Sequence[str | list[int]]
) -> list[EncodedPrompt]:
    encoded = []
    is_short = sum(map(len, prompts)) <= _IDS_AT_ONCE
    for prompt in prompts:
        if isinstance(prompt, str):
            encoded.append(await engine.encode_text(prompt))
        elif is_short:
            encoded.append(engine.processor.encode_ids(prompt))
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


def _shown(model: ServedModel) -> Json:
    return model.json(asyncio.get_running_loop().time())
