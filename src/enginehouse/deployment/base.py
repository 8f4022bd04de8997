"""What an open deployment offers, whatever answers behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import UnknownNameError, WeightsError
from enginehouse.core.incidents import Incident
from enginehouse.core.sampler import Provenance
from enginehouse.deployment.loadable_adapters import LoadableAdapters, ServerAdapters
from enginehouse.engines.base import Engine, RemoteEngine
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.servers.endpoint import Server
from enginehouse.weights.peft_folder import CONFIG
from enginehouse.weights.pool import AdapterPool
from enginehouse.weights.store import AdapterStore, UncopiedAdapters
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

    `model` is None where the server is not ours. Subclasses say how each kind of target is opened;
    this class says which of them may be open at the same time.
    """

    engine: Engine
    incidents: Incidents
    model: ResolvedModel | None = None
    default: Target
    """What the plan names: the model, or an adapter of it."""
    weights: WeightSwapper | None = None
    """Swaps full weights, for all who ask the server; None where `target` is the only way."""
    answer_options: tuple[str, ...] = ()
    """What its server was started with that may change answers, besides what `provenance` says."""
    left_with: Path | None = None
    """A checkpoint that a server which is not ours still answers with, though its target ended."""
    _targets = 0  # how many are open that need the plan's own weights
    _checkpoint: Path | None = None  # the one that is open

    @property
    @abstractmethod
    def server(self) -> Server:
        """The server as it is now: a restart changes its pid and log."""

    @asynccontextmanager
    async def target(self, folder: Path | None = None) -> AsyncIterator[Target]:
        """Answer as the adapter or checkpoint in `folder`; None is the plan's model.

        An adapter is checked, copied, loaded, and proven to have an effect where the engine
        reports log-probabilities of prompts and it was trained at all. Targets of the plan's model
        and of adapters can be open at the same time, each with its own sampler; a server of our own
        has `max_loras` places for different adapters. A checkpoint replaces the weights, for all
        who ask the server, until another target needs others, so its target is open alone.

        Raises AdapterError, ModelError or WeightsError (kind "taken" if open targets need other
        weights), and WireError; the server then answers as before unless a WeightsError says
        otherwise.
        """
        if folder is None or (folder / CONFIG).exists():
            opening = self._open_base() if folder is None else self._open_adapter(folder)
            with self._shared_weights():
                async with opening as target:
                    yield target
            return
        if self._targets:
            raise WeightsError(
                f"{folder} cannot replace the weights while other targets are open",
                why=f"{self._targets} of them need the weights of the plan's model, and a server "
                "has one set of weights",
                fix="close the other targets first, or serve the checkpoint on a server of its own",
                kind="taken",
            )
        with self._shared_weights():
            self._checkpoint = folder
            try:
                async with self._open_checkpoint(folder) as target:
                    yield target
            finally:
                self._checkpoint = None

    @abstractmethod
    def adapters(
        self,
        store: AdapterStore | UncopiedAdapters,
        *,
        max_loras: int | None = None,
        for_many: bool = False,
    ) -> AbstractAsyncContextManager[AdapterPool]:
        """Adapters that come and go as requests name them, for the length of the block.

        For those who ask many adapters, more than there are places for; they are given back at the
        end. A server of our own has `max_loras` of its options; of another one's places at most
        `max_loras` are taken. `for_many` is AdapterPool's. Not beside targets of adapters, which
        keep their places.
        """

    @asynccontextmanager
    async def loadable_adapters(
        self, store: AdapterStore | UncopiedAdapters, *, max_loras: int | None = None
    ) -> AsyncIterator[LoadableAdapters]:
        """Adapters for many people, as `adapters`, also where several servers answer alike.

        Each of those has all that are in use, and at most `max_loras` of them.
        """
        async with self.adapters(store, max_loras=max_loras, for_many=True) as pool:
            yield LoadableAdapters([ServerAdapters(pool=pool)])

    @asynccontextmanager
    async def target_named(self, model: str) -> AsyncIterator[Target]:
        """Answer as `model`, a name that the server knows, such as an adapter loaded earlier.

        Raises UnknownNameError for a name that the server does not list, WireError, and
        WeightsError while the target of a checkpoint is open.
        """
        with self._shared_weights():
            async with self._open_model(model) as target:
                # hosted APIs answer to aliases that they do not list
                if not isinstance(self.engine, RemoteEngine) and self.engine.wire.models_path:
                    listed = await target.sampler.models()
                    if model not in listed:
                        raise UnknownNameError("model", model, listed)
                yield target

    @contextmanager
    def _shared_weights(self) -> Iterator[None]:
        """Count a target; raise WeightsError if the weights are those of a checkpoint now."""
        if self._checkpoint is not None:
            raise WeightsError(
                f"the server answers with the weights in {self._checkpoint}",
                why="that checkpoint's target is open, and a server has one set of weights",
                fix="close it before another target is opened, or serve the checkpoint on a server "
                "of its own",
                kind="taken",
            )
        self._targets += 1
        try:
            yield
        finally:
            self._targets -= 1

    @abstractmethod
    def _open_base(self) -> AbstractAsyncContextManager[Target]:
        """The plan's model."""

    @abstractmethod
    def _open_adapter(self, folder: Path) -> AbstractAsyncContextManager[Target]:
        """The adapter in `folder`."""

    @abstractmethod
    def _open_checkpoint(self, folder: Path) -> AbstractAsyncContextManager[Target]:
        """The checkpoint in `folder`, while no other target is open."""

    @abstractmethod
    def _open_model(self, model: str) -> AbstractAsyncContextManager[Target]:
        """What the server calls `model`, which is not checked."""

    @property
    def sampler(self) -> HTTPSampler:
        """Asks what the plan names."""
        return self.default.sampler

    @property
    def provenance(self) -> Provenance:
        """Who answers `sampler`."""
        return self.default.provenance

    @property
    def weights_digest(self) -> str | None:
        """That of the weights which answer now; None if it is not known, or about to change."""
        if self.weights is not None:
            return self.weights.gate.digest
        return self.provenance.weights_digest

    @property
    def url(self) -> str:
        """The server's base URL, without /v1."""
        return self.server.base_url

    @property
    def models(self) -> tuple[str, ...]:
        """The names that requests may use; the first is the default."""
        return self.server.models
