"""One served model: its names, its engine while it is loaded, and how it is shown."""

from __future__ import annotations

import asyncio
import time

from shuzhai.engine.request import SamplingParams
from shuzhai.frontend.async_engine import AsyncEngine
from shuzhai.server.errors import without_secrets
from shuzhai.server.loading import LoadProgress
from shuzhai.server.replies import Json
from shuzhai.server.source import ModelFacts, ModelSource

# A step has a bounded number of tokens: even a slow CPU is through in a fraction of this.
_STUCK_SECONDS = 180.0


class ServedModel:
    """A model and the name it goes by; `aliases` are understood as well. Registry changes it.

    created       Unix seconds, when it began to be served
    engine        None while it is not loaded
    loading       the load under way, with its progress
    leaving       the engine that was unloaded, until it has ended
    ending        the end under way; None while one leaves: that has failed, and is tried again
    error         why it cannot be used: of the last load, or of the engine that died
    num_holds     requests that use it or wait for it
    memory_bytes  that it keeps from others: from the start of a load until the engine is freed
    sampling      the model's own defaults, once it was loaded
    idle_since, unload_at   in the event loop's time
    """

    def __init__(self, source: ModelSource, facts: ModelFacts) -> None:
        self.source = source
        self.name = source.name
        self.aliases = source.aliases
        self.created = int(time.time())
        self.facts = facts
        self.engine: AsyncEngine | None = None
        self.loading: asyncio.Task[AsyncEngine] | None = None
        self.progress: LoadProgress | None = None
        self.leaving: AsyncEngine | None = None
        self.ending: asyncio.Task[None] | None = None
        self.error: str | None = None
        self.num_holds = 0
        self.memory_bytes = 0
        self.sampling: SamplingParams | None = None
        self.idle_since = 0.0
        self.unload_at = 0.0
        self.timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        return self.engine is not None and self.num_holds == 0

    @property
    def is_blind(self) -> bool:
        """It is known to read text only. Of a folder that could not be read nothing is known."""
        if (engine := self.engine) is not None:  # once: any thread may ask
            return engine.processor.image_spec is None
        return self.facts.need is not None and "image" not in self.facts.input_modalities

    @property
    def state(self) -> str:
        if self.loading is not None:
            return "loading"
        if self.engine is not None and self.engine.is_alive:
            return "loaded"
        return "unloaded" if self.fault() is None else "failed"

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def public(self, cause: str) -> str:
        """A fault's text for everybody's eyes."""
        return without_secrets(cause, self.source.secrets)

    def fault(self) -> Json | None:
        """What is wrong with it, if anything is."""
        engine = self.engine
        if engine is not None and not engine.is_alive:
            return {"status": "dead", "cause": self.public(engine.cause_of_death or "unknown")}
        at_work = engine or self.leaving
        if at_work is not None and (seconds := at_work.step_seconds) >= _STUCK_SECONDS:
            return {"status": "stuck", "cause": f"a step has taken {seconds:.0f} s"}
        if engine is None and self.error is not None:
            return {"status": "failed", "cause": self.error}
        return None

    def json(self, now: float) -> Json:
        """As /v1/models shows it; `now` is the event loop's time."""
        engine, facts, state = self.engine, self.facts, self.state
        length, modalities = facts.max_model_len, facts.input_modalities
        if engine is not None:
            length, spec = engine.processor.max_model_len, engine.processor.image_spec
            pictures = [] if spec is None else ["image", "video"] if spec.has_video else ["image"]
            modalities = ("text", *pictures)
        fault = self.fault() if state == "failed" else None
        idle = self.is_idle and state == "loaded"
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "shuzhai",
            "max_model_len": length,
            "input_modalities": list(modalities),
            "state": state,
            "progress": self.progress.share if self.progress else None,
            "status": self.progress.status if self.progress else fault and fault["cause"],
            "memory_bytes": self.memory_bytes if state == "loaded" else None,
            "requests": self.num_holds,
            "idle_seconds": round(now - self.idle_since, 1) if idle else None,
            "unload_in_seconds": round(self.unload_at - now, 1) if idle and self.timer else None,
        }
