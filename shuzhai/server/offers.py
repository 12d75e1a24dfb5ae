"""The models of the catalog that a server could have besides those it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shuzhai.hub.catalog import CATALOG, find
from shuzhai.server.source import ModelFacts, ModelSource


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that is not served."""

    source: ModelSource
    facts: ModelFacts
    is_here: bool


class Offers:
    """make: the source of a catalog name. may_pull: clients may have more models served.

    Its methods look at the disk: they are for threads, of which any may call them.
    """

    def __init__(self, make: Callable[[str], ModelSource], *, may_pull: bool = True) -> None:
        self.may_pull = may_pull
        self._make = make
        self._known: dict[str, Offer] = {}

    def beside(self, served: Iterable[str]) -> list[Offer]:
        """In the catalog's order; `served` are names and aliases."""
        names = set(served)
        return [self._look(name) for name in CATALOG if name not in names]

    def source_of(self, name: str) -> ModelSource:
        """ModelNotFoundError for what the catalog does not have."""
        return self._make(find(name).name)

    def _look(self, name: str) -> Offer:
        """What is known of a model changes when it comes or goes."""
        known = self._known.get(name)
        source = self._make(name) if known is None else known.source
        is_here = source.is_here()
        if known is None or known.is_here != is_here:
            known = self._known[name] = Offer(source, source.look(), is_here)
        return known
