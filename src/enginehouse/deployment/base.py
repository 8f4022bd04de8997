"""What an open deployment offers, whatever answers behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.incidents import Incident
from enginehouse.core.sampler import Provenance
from enginehouse.engines.base import Engine
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.servers.endpoint import Server
from enginehouse.weights.swap import WeightSwapper

OnIncident = Callable[[Incident], None]


class Incidents:
    """The failures of a deployment's server, reported to every subscriber."""

    def __init__(self) -> None:
        self._subscribers: list[OnIncident] = []

    @contextmanager
    def subscribe(self, callback: OnIncident) -> Iterator[None]:
        """Call `callback` with every incident for the length of the block.

        It is called from the event loop, before the server is restarted. What it raises ends the
        deployment: every waiting request fails with it.
        """
        self._subscribers.append(callback)
        try:
            yield
        finally:
            self._subscribers.remove(callback)

    def report(self, incident: Incident) -> None:
        """Tell the subscribers."""
        for callback in tuple(self._subscribers):
            callback(incident)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A deployment answering as one model, adapter or checkpoint.

    `adapter` is the stored copy of the adapter that answers, where a server of our own loaded one.
    """

    deployment: Deployment
    sampler: HTTPSampler
    provenance: Provenance
    adapter: Path | None = None


class Deployment(ABC):
    """An open deployment (see `open_deployment`), with a sampler for what its plan names.

    `model` is None where the server is not ours.
    """

    engine: Engine
    incidents: Incidents
    model: ResolvedModel | None = None
    default: Target
    """What the plan names: the model, or an adapter of it."""
    weights: WeightSwapper | None = None
    """Swaps full weights, for all who ask the server; None where `target` is the only way."""
    left_with: Path | None = None
    """A checkpoint that a server which is not ours still answers with, though its target ended."""

    @property
    @abstractmethod
    def server(self) -> Server:
        """The server as it is now: a restart changes its pid and log."""

    @abstractmethod
    def target(self, folder: Path | None = None) -> AbstractAsyncContextManager[Target]:
        """Answer as the adapter or checkpoint in `folder`; None is the plan's model.

        An adapter is checked, copied, loaded, and proven to have an effect where the engine
        reports log-probabilities of prompts and it was trained at all. A checkpoint replaces the
        weights, for all who ask the server, until another target needs others. Open one target at
        a time. Raises AdapterError, ModelError or WeightsError, and WireError; the server then
        answers as before unless a WeightsError says otherwise.
        """

    @property
    def sampler(self) -> HTTPSampler:
        """Asks what the plan names."""
        return self.default.sampler

    @property
    def provenance(self) -> Provenance:
        """Who answers `sampler`."""
        return self.default.provenance

    @property
    def url(self) -> str:
        """The server's base URL, without /v1."""
        return self.server.base_url

    @property
    def models(self) -> tuple[str, ...]:
        """The names that requests may use; the first is the default."""
        return self.server.models
