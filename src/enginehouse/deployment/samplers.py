"""Samplers of one server, with the layers that they share."""

from __future__ import annotations

from collections.abc import Sequence

from enginehouse.client.exclusive import ExclusiveRequests, SeparatedScores
from enginehouse.client.open_files import open_file_limit
from enginehouse.client.retry import Retries
from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.spread import Instances
from enginehouse.client.stack import ServerLayers
from enginehouse.client.transport import Timeouts
from enginehouse.engines.base import Engine, Quirk
from enginehouse.runtime.context import Notify
from enginehouse.servers.endpoint import Server


def exclusive_requests(quirks: Sequence[Quirk]) -> ExclusiveRequests | None:
    """The layer that keeps apart what would kill the engine together; None where nothing would."""
    rules = [quirk.alone for quirk in quirks if quirk.alone]
    if not rules:
        return None
    return ExclusiveRequests(lambda request: any(rule(request) for rule in rules))


def separated_scores(quirks: Sequence[Quirk]) -> SeparatedScores | None:
    """The layer for an engine that mixes up what requests score; None for any other."""
    return SeparatedScores() if any(quirk.mixes_scores for quirk in quirks) else None


def say_bound(sampler: HTTPSampler, notify: Notify) -> None:
    """Report if this process may open too few files for the wanted concurrency."""
    if sampler.bounded_to is not None:
        notify(
            f"at most {sampler.bounded_to} requests at a time: this process may open "
            f"{open_file_limit()} files (ulimit -n)"
        )


def make_sampler(
    server: Server,
    engine: Engine,
    *,
    concurrency: int | None,
    model: str | None = None,
    shared: ServerLayers | None = None,
    instances: Instances | None = None,
    timeouts: Timeouts | None = None,
    retries: Retries | None = None,
) -> HTTPSampler:
    """A sampler of a server, or of all `instances` that answer as it does; not entered yet."""
    return HTTPSampler(
        server.base_url,
        model=model or server.models[0],
        capabilities=engine.capabilities(server.version),
        wire=engine.wire,
        api_key=server.api_key,
        admin_key=server.admin_key,
        concurrency=concurrency,
        load_signal=engine.load_signal,
        shared=shared,
        instances=instances,
        timeouts=timeouts,
        retries=retries,
    )
