"""What the page asks of the models: all there are, with their memory, and to serve one more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shuzhai.engine.request import SamplingParams
from shuzhai.errors import ModelNotFoundError
from shuzhai.server.errors import refusal
from shuzhai.server.model import ServedModel
from shuzhai.server.offers import Offer, Offers
from shuzhai.server.reading import BodyReader, Endpoint, read_query
from shuzhai.server.registry import Registry
from shuzhai.server.replies import Json
from shuzhai.server.schemas import PullRequest
from shuzhai.server.source import ModelFacts, ModelSource

# These are as /v1/models shows them.
_SHOWN = tuple("id state progress status max_model_len input_modalities memory_bytes".split())


class StatusApi:
    """Endpoints over a registry, and what may be added to it."""

    def __init__(self, registry: Registry, offers: Offers, reader: BodyReader) -> None:
        self._registry = registry
        self._offers = offers
        self._reader = reader

    def routes(self) -> Mapping[str, Mapping[str, Endpoint]]:
        """Endpoints by path and method."""
        return {"/api/status": {"GET": self._status}, "/api/models/pull": {"POST": self._pull}}

    async def _status(self, request: Request) -> Response:
        """The served models in their order, then the catalog's others."""
        read_query(request, ())
        models = self._registry.models
        served = [name for model in models for name in (model.name, *model.aliases)]

        def look() -> tuple[list[bool], list[Offer]]:
            return [m.source.is_here() for m in models], self._offers.beside(served)

        are_here, others = await asyncio.to_thread(look)
        shown = [self._served(m, is_here) for m, is_here in zip(models, are_here, strict=True)]
        return JSONResponse(
            {
                "version": _version(),
                "can_pull": self._offers.may_pull,
                "models": shown + [self._offered(offer) for offer in others],
            }
        )

    async def _pull(self, request: Request) -> Response:
        """Serve a model of the catalog, and begin to fetch it if it is not here."""
        wanted = (await self._reader.object(request, PullRequest.parse)).model
        if not self._offers.may_pull:
            raise refusal(
                403,
                "pull_not_allowed",
                "This server fetches no models for its clients: it was started with --no-pull.",
            )
        try:
            model = self._registry.find(wanted)
        except ModelNotFoundError:
            source = await asyncio.to_thread(self._offers.source_of, wanted)
            model = await self._registry.add(source)
        is_here = await asyncio.to_thread(model.source.is_here)
        if not is_here:
            self._registry.begin_fetch(model)
        return JSONResponse(self._served(model, is_here))

    def _served(self, model: ServedModel, is_here: bool) -> Json:
        shown = model.json(asyncio.get_running_loop().time())
        return {
            **self._known(model.source, model.facts),
            **{name: shown[name] for name in _SHOWN},
            "served": True,
            "installed": is_here,
            "sampling": model.sampling and _sampling(model.sampling),
        }

    def _offered(self, offer: Offer) -> Json:
        return {
            **self._known(offer.source, offer.facts),
            "id": offer.source.name,
            "state": "unloaded" if offer.is_here else "absent",
            "progress": None,
            "status": None,
            "max_model_len": offer.facts.max_model_len,
            "input_modalities": list(offer.facts.input_modalities),
            "memory_bytes": None,
            "served": False,
            "installed": offer.is_here,
            "sampling": None,
        }

    def _known(self, source: ModelSource, facts: ModelFacts) -> Json:
        """What is said of served and offered models alike."""
        card, need, budget = source.card, facts.need, self._registry.budget_bytes
        return {
            "title": card.title,
            "shipped": card.shipped,
            "download_bytes": card.download_bytes,
            "languages": None if card.languages is None else list(card.languages),
            "plan": need
            and {
                "fits": need.least_bytes <= budget,
                "least_bytes": need.least_bytes,
                "good_bytes": need.good_bytes,
                "budget_bytes": budget,
            },
        }


def _sampling(params: SamplingParams) -> Json:
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
    }


def _version() -> str:
    try:
        return version("shuzhai")
    except PackageNotFoundError:  # run from its source folder
        return "unknown"
