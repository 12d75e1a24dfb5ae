"""Which models a server serves, and under which names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shuzhai.errors import InvalidRequestError, ModelNotFoundError
from shuzhai.frontend.async_engine import AsyncEngine


@dataclass(frozen=True, slots=True)
class ServedModel:
    """An engine and the name it goes by; `aliases` are understood as well.

    created  when it was loaded, in Unix seconds
    """

    name: str
    engine: AsyncEngine
    created: int
    aliases: tuple[str, ...] = ()


class Registry:
    """The served models; the first one is meant where no name is given and there is no other."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        assert models, "a server serves something"
        self.models = tuple(models)

    def find(self, name: str | None) -> ServedModel:
        """The model of that name. Names are compared, never looked up on a disk or a hub."""
        if name is None:
            if len(self.models) == 1:
                return self.models[0]
            raise InvalidRequestError(
                "model is missing", param="model", code="missing_required_parameter"
            )
        for model in self.models:
            if name == model.name or name in model.aliases:
                return model
        served = ", ".join(model.name for model in self.models)
        raise ModelNotFoundError(f"the model {name[:64]!r} is not served here; there is: {served}")
