"""The models of a server: loaded when they are asked for, within one memory budget.

Everything here belongs to one event loop. What blocks is done in threads; between two awaits
nothing changes, so a model that is held cannot be on its way out.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from shuzhai.engine.memory import share_memory, size_that_holds
from shuzhai.engine.process_memory import release_memory
from shuzhai.errors import (
    ConfigError,
    InvalidRequestError,
    MemoryBudgetError,
    ModelNotFoundError,
    ShuzhaiError,
)
from shuzhai.frontend.async_engine import AsyncEngine
from shuzhai.hub.progress import Progress
from shuzhai.server.errors import (
    SHUTTING_DOWN,
    RefusedError,
    load_problem,
    models_busy,
    refusal,
    still_fetched,
    still_leaving,
)
from shuzhai.server.loading import LoadProgress, LoadStoppedError, in_daemon_thread
from shuzhai.server.model import ServedModel
from shuzhai.server.source import ModelFacts, ModelSource

_Load = Callable[[ServedModel, LoadProgress], Coroutine[Any, Any, AsyncEngine]]

# For another model's answers, or a model that is unloaded, to end.
ROOM_SECONDS = 60.0
# A request holds its body: it does not wait for a download for longer.
FETCH_SECONDS = 30.0
# For a load to see that it is not wanted: before it is said that it does not end, and at shutdown.
_UNLOAD_SECONDS = 5.0
_STOP_SECONDS = 2.0


class Registry:
    """The served models. Where no name is given, the only one is meant that was there at the start.

    budget_bytes  for all models together
    keep_alive    seconds that an idle model stays loaded; None: until its memory is needed
    say           gets a line when a model comes or goes
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        budget_bytes: int,
        *,
        keep_alive: float | None = None,
        room_seconds: float = ROOM_SECONDS,
        fetch_seconds: float = FETCH_SECONDS,
        say: Callable[[str], None] | None = None,
    ) -> None:
        assert sources, "a server serves something"
        names = [source.name for source in sources]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(
                f"two of the models are called {min(twice)}, and clients could not tell them "
                "apart: name each once, or rename one's folder"
            )
        self.budget_bytes = budget_bytes
        self.models = tuple(ServedModel(source, source.look()) for source in sources)
        self._usual = self.models[0] if len(self.models) == 1 else None
        self._keep_alive = keep_alive
        self._room_seconds = room_seconds
        self._fetch_seconds = fetch_seconds
        self._say = say or logging.getLogger(__name__).info
        self._one_load = asyncio.Lock()
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def find(self, name: str | None) -> ServedModel:
        """The model of that name. Names are compared, never looked up on a disk or a hub."""
        if name is None:
            if self._usual is not None:
                return self._usual
            raise InvalidRequestError(
                "model is missing", param="model", code="missing_required_parameter"
            )
        for model in self.models:
            if name == model.name:
                return model
        for model in self.models:
            if name in model.aliases:
                return model
        served = ", ".join(model.name for model in self.models)
        raise ModelNotFoundError(f"the model {name[:64]!r} is not served here; there is: {served}")

    async def add(self, source: ModelSource) -> ServedModel:
        """Serve one more model, which is neither fetched nor loaded yet; the one of that name if
        there is one. What no name means stays as it was."""
        facts = await asyncio.to_thread(source.look)
        if self._closing.is_set():
            raise RefusedError(SHUTTING_DOWN)
        with suppress(ModelNotFoundError):
            return self.find(source.name)
        model = ServedModel(source, facts)
        self.models = (*self.models, model)
        return model

    def begin_fetch(self, model: ServedModel) -> None:
        """Make a model be here, without memory for it. Its progress is that of a load; who asks for
        it meanwhile has it loaded afterwards."""
        if self._closing.is_set():
            raise RefusedError(SHUTTING_DOWN)
        if model.loading is None and model.engine is None:
            self._begin_load(model, self._fetch_only, LoadProgress())

    async def use(
        self, name: str | None, leaving: ExitStack, *, is_patient: bool = False
    ) -> tuple[ServedModel, AsyncEngine]:
        """The model and its engine, loaded if need be and held until `leaving` is closed.

        RefusedError says why it cannot be had: for who is not patient, also that it is still being
        fetched. Who gives up waiting does not end the load.
        """
        model = self.find(name)
        self._hold(model)
        leaving.callback(self._release, model)
        now = asyncio.get_running_loop().time()
        deadline = None if is_patient else now + self._fetch_seconds
        try:
            return model, await self._engine_of(model, fetched_by=deadline)
        except ShuzhaiError as error:
            raise RefusedError(load_problem(model.name, error, model.source.secrets)) from error

    async def load(self, name: str, progress: Progress | None = None) -> AsyncEngine:
        """Load a model that nobody asks for yet. Raises what the load raises, and RefusedError.

        Nothing more is told to `progress` when this has ended, be it that the waiting was given up.
        """
        model = self.find(name)
        self._hold(model)
        try:
            return await self._engine_of(model, progress)
        finally:
            if model.progress is not None and progress is not None:
                model.progress.detach(progress)
            self._release(model)

    async def unload(self, name: str | None) -> ServedModel:
        """Unload a model, or stop its load; its memory is free then. RefusedError (409) while
        requests use or await it, and (503) where it does not end."""
        model = self.find(name)
        while model.loading is not None or model.engine is not None or model.memory_bytes:
            if model.num_holds:
                users = "1 request" if model.num_holds == 1 else f"{model.num_holds} requests"
                raise refusal(
                    409,
                    "model_in_use",
                    f"{model.name} is in use by {users}; try again when they are done, or end them",
                )
            if model.progress is not None:
                model.progress.stop()
                self._wake()
            loading = model.loading
            work = loading or self._unload(model)
            seconds = self._room_seconds if loading is None else _UNLOAD_SECONDS
            if not (await asyncio.wait({work}, timeout=seconds))[0]:
                raise RefusedError(still_leaving(model.name, seconds))
            if loading is None:
                work.result()
        model.error = None
        return model

    async def shutdown(self, drain_seconds: float = 0.0) -> None:
        """Load nothing more, let running answers finish for so long, then stop all engines."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake()
        for model in self.models:
            if model.progress is not None:
                model.progress.stop()
        engines = [model.engine for model in self.models if model.engine is not None]
        await asyncio.gather(*(engine.shutdown(drain_seconds) for engine in engines))
        if self._tasks:
            # A thread that waits for a network would not end; it ends with the process.
            await asyncio.wait(self._tasks, timeout=_STOP_SECONDS)

    def _hold(self, model: ServedModel) -> None:
        model.num_holds += 1
        model.stop_timer()

    def _release(self, model: ServedModel) -> None:
        model.num_holds -= 1
        if model.num_holds == 0:
            self._rest(model)

    def _rest(self, model: ServedModel) -> None:
        """Nobody uses this model any more: it may go when it must, or when its time is over."""
        loop = asyncio.get_running_loop()
        model.idle_since = loop.time()
        model.stop_timer()
        if model.engine is None or self._closing.is_set():
            return
        if not model.engine.is_alive:
            self._unload(model)
        elif self._keep_alive is not None:
            model.unload_at = loop.time() + self._keep_alive
            model.timer = loop.call_later(self._keep_alive, self._unload, model)
        self._wake()

    async def _engine_of(
        self, model: ServedModel, also: Progress | None = None, fetched_by: float | None = None
    ) -> AsyncEngine:
        while True:
            if self._closing.is_set():
                raise RefusedError(SHUTTING_DOWN)
            if model.engine is not None and model.engine.is_alive:
                return model.engine
            if model.loading is None:
                self._begin_load(model, self._load, LoadProgress(also), tell=also is None)
            loading = model.loading
            await self._wait_for_load(model, fetched_by)
            if loading.done() and not self._closing.is_set():
                # Somebody who left had it stopped: for this one it begins again.
                with suppress(LoadStoppedError):
                    return loading.result()

    def _begin_load(
        self, model: ServedModel, load: _Load, progress: LoadProgress, *, tell: bool = True
    ) -> None:
        model.progress = progress
        model.loading = self._begin(load(model, progress))
        model.loading.add_done_callback(partial(self._loaded, model, tell))

    async def _wait_for_load(self, model: ServedModel, fetched_by: float | None) -> None:
        """Until a load is over, or nothing is loaded any more. RefusedError if so late (in the
        loop's time) it is still being fetched."""
        loading, progress = model.loading, model.progress
        assert loading is not None, "it has begun"
        assert progress is not None, "it has begun"
        closing = asyncio.ensure_future(self._closing.wait())
        loop, first = asyncio.get_running_loop(), asyncio.FIRST_COMPLETED
        try:
            if fetched_by is not None:
                patience = max(0.0, fetched_by - loop.time())
                await asyncio.wait({loading, closing}, timeout=patience, return_when=first)
                if not (loading.done() or closing.done() or progress.is_here):
                    raise RefusedError(still_fetched(model.name, progress.status, progress.share))
            await asyncio.wait({loading, closing}, return_when=first)
        finally:
            closing.cancel()

    def _loaded(self, model: ServedModel, tell: bool, task: asyncio.Task[AsyncEngine]) -> None:
        """The end of a load, noted before anybody who waits for it goes on."""
        model.loading = model.progress = None
        model.error = None
        error = None if task.cancelled() else task.exception()
        if error is None or isinstance(error, (LoadStoppedError, RefusedError)):
            pass
        elif isinstance(error, ShuzhaiError):
            model.error = load_problem(model.name, error, model.source.secrets).message
            if tell or not model.num_holds:
                self._tell(f"{model.name} could not be loaded: {error}")
        else:
            model.error = f"{model.name} could not be loaded: an internal fault; see the log"
            logging.getLogger(__name__).error("a load failed", exc_info=error)
        if model.num_holds == 0:
            self._rest(model)

    async def _load(self, model: ServedModel, progress: LoadProgress) -> AsyncEngine:
        if model.engine is not None:  # it has died
            self._unload(model)
        model.facts = await self._fetch(model, progress)
        for other in self.models:
            if other.facts.need is None:  # what kept it from being read may be repaired
                other.facts = await asyncio.to_thread(other.source.look)
        await self._make_room(model, progress)
        try:
            if self._one_load.locked():
                progress.begin("Waiting for another model to load", None)
            async with self._one_load:
                progress.loaded(0.0)
                load = partial(model.source.load, model.memory_bytes, progress)
                engine = await in_daemon_thread(load)
            if self._closing.is_set() or (progress.is_stopped and not model.num_holds):
                await engine.shutdown()
                raise LoadStoppedError
            model.engine, model.memory_bytes = engine, engine.memory_bytes
            model.sampling = engine.processor.default_sampling
        finally:
            if model.engine is None:
                await self._free(model, collect=False)
            self._wake()
        self._tell(f"{model.name} is loaded: {engine.plan_line}")
        return engine

    async def _fetch_only(self, model: ServedModel, progress: LoadProgress) -> AsyncEngine:
        """A load that is stopped once all is here: it begins again for those who wait."""
        model.facts = await self._fetch(model, progress)
        self._tell(f"{model.name} is here.")
        raise LoadStoppedError

    async def _fetch(self, model: ServedModel, progress: LoadProgress) -> ModelFacts:
        """Who stops it does not wait for the thread, which may hang in a network for long; it ends
        when it next tells its progress."""
        if progress.is_stopped:
            raise LoadStoppedError
        call = partial(model.source.fetch, progress)
        work = asyncio.ensure_future(in_daemon_thread(call))
        try:
            with progress.ended_by(work.cancel):
                facts = await work
        except asyncio.CancelledError:
            if progress.is_stopped:
                raise LoadStoppedError from None
            raise
        progress.is_here = True
        return facts

    async def _make_room(self, model: ServedModel, progress: LoadProgress) -> None:
        """Reserve memory for a model. Idle ones leave for it, the least recently used first, if
        that is enough; else it waits for busy ones, and nobody leaves in vain."""
        need = model.facts.need
        assert need is not None, "it is here"
        if need.least_bytes > self.budget_bytes:
            least = size_that_holds(need.least_bytes)
            raise MemoryBudgetError(
                f"it needs {least}, and all models of this server together may have "
                f"{self.budget_bytes / 2**30:.2f}GiB. Start the server with --memory {least} or "
                "more, or with what `shuzhai plan` says would do"
            )
        wanted = min(need.good_bytes, self.budget_bytes)
        for other in self.models:
            if other.leaving is not None:
                self._unload(other)  # once more, where that has failed
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._room_seconds
        while model.memory_bytes or (free := self._free_bytes()) < wanted:
            will_do = self._send_away(wanted)
            who = "memory" if will_do else "other models to finish their answers"
            progress.begin(f"Waiting for {who}", None)
            if not await self._wait_for_change(deadline - loop.time()):
                for other in self.models:
                    if other.ending is not None:
                        raise RefusedError(still_leaving(other.name, self._room_seconds))
                raise RefusedError(models_busy(model.name, self._room_seconds))
        others = [m for m in self.models if m is not model and not m.memory_bytes]
        needs = [m.facts.need for m in others if m.facts.need is not None]
        model.memory_bytes = min(free, share_memory(free, need, needs))

    def _send_away(self, wanted: int) -> bool:
        """Unload idle models if so much memory will be free then; whether it will. The least
        recently used ones that suffice, but for those that the others suffice without."""
        leaving: list[ServedModel] = []
        idle = sorted((m for m in self.models if m.is_idle), key=lambda m: m.idle_since)
        soon = self._free_bytes()
        soon += sum(m.memory_bytes for m in self.models if m.ending is not None)
        if soon + sum(m.memory_bytes for m in idle) < wanted:
            return False
        for other in idle:
            if soon < wanted:
                soon += other.memory_bytes
                leaving.append(other)
        for other in reversed(leaving):
            if soon - other.memory_bytes >= wanted:  # without it, too
                soon -= other.memory_bytes
            else:
                self._unload(other)
        return True

    def _free_bytes(self) -> int:
        return self.budget_bytes - sum(model.memory_bytes for model in self.models)

    async def _wait_for_change(self, seconds: float) -> bool:
        """Until a model has gone or become idle; False if that takes too long."""
        if self._closing.is_set():
            raise RefusedError(SHUTTING_DOWN)
        self._changed.clear()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        self._changed.set()

    def _tell(self, line: str) -> None:
        """In a step of its own: that nobody can be told is no fault of a load."""

        def tell() -> None:
            with suppress(OSError):
                self._say(line)

        asyncio.get_running_loop().call_soon(tell)

    def _unload(self, model: ServedModel) -> asyncio.Task[None]:
        """Take the engine from the model now, end it soon; once more if that has failed."""
        if model.ending is not None:
            return model.ending
        if model.engine is not None:
            model.leaving, model.engine = model.engine, None
            model.stop_timer()
            if not model.leaving.is_alive:
                model.error = model.public(model.leaving.cause_of_death or "unknown")
        model.ending = self._begin(self._end(model))
        model.ending.add_done_callback(partial(self._ended, model))
        return model.ending

    async def _end(self, model: ServedModel) -> None:
        assert model.leaving is not None, "only what is loaded is unloaded"
        try:
            await model.leaving.shutdown()
            kept = weakref.ref(model.leaving)
            model.leaving = None
            await self._free(model, collect=kept() is not None)
        finally:
            model.ending = None
            self._wake()
        self._tell(f"{model.name} is unloaded.")

    def _ended(self, model: ServedModel, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            model.error = f"{model.name} could not be unloaded: an internal fault; see the log"
            logging.getLogger(__name__).error("an engine could not be ended", exc_info=error)

    async def _free(self, model: ServedModel, *, collect: bool) -> None:
        """The memory that a model kept from others, once nothing refers to its weights."""
        try:
            await asyncio.to_thread(release_memory, collect=collect)
        finally:
            model.memory_bytes = 0

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that is held until it is done."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
