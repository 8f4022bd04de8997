"""A checkpoint's weights in a running server, for as long as they are evaluated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.evaluate import Asking
from enginehouse.core.errors import ModelError, WeightsError, WireError
from enginehouse.deployment.asking import asking, attach
from enginehouse.deployment.configuration import AskConfig
from enginehouse.deployment.serving import Serving
from enginehouse.deployment.swapping import swapper_of
from enginehouse.runtime.context import Notify
from enginehouse.store.layout import Layout
from enginehouse.weights.swap import WeightSwapper


@asynccontextmanager
async def weights_swapped(
    config: EvaluationConfig,
    folder: Path,
    *,
    layout: Layout,
    notify: Notify,
    left_there: Callable[[], None],
) -> AsyncIterator[Asking]:
    """Swap a checkpoint into the vLLM at `config.url`, and its own weights in again at the end.

    Everybody who asks that server meanwhile is answered by the checkpoint; what is asked through
    what this yields says so. Raises what `deployment.swapping.swapper_of` and
    `WeightSwapper.swap` do. If the server has the checkpoint still when the block ends,
    `left_there` is called, and WeightsError raised, or noted on what ended the block.
    """
    assert config.url is not None
    server, _ = await attach(config, layout=layout)
    async with swapper_of(server.base_url, api_key=server.api_key, layout=layout) as swapper:
        own = _own(swapper, folder.parent)
        await swapper.swap(folder)
        notify(f"swapped {folder.name} into the server at {server.base_url}")
        digest = swapper.current.digest

        @asynccontextmanager
        async def ask(asked: AskConfig, **how: Any) -> AsyncIterator[Serving]:
            async with asking(asked, **how) as ready:
                unknown = dict(ready.provenance.unknown)
                unknown.pop("weights_digest", None)
                known = msgspec.structs.replace(
                    ready.provenance, model=str(folder), weights_digest=digest, unknown=unknown
                )
                yield replace(ready, provenance=known)

        try:
            yield ask
        except BaseException as error:
            if failure := await _swapped_back(swapper, own, folder):
                left_there()
                error.add_note(str(failure))
            raise
        if failure := await _swapped_back(swapper, own, folder):
            left_there()
            raise failure


def _own(swapper: WeightSwapper, ours: Path) -> Path:
    """The server's own weights: a checkpoint of this training was left there by an accident.

    Raises WeightsError where there is nothing to bring back afterwards.
    """
    current, started = swapper.current.path, swapper.started.path
    assert started is not None
    if current is None:
        raise WeightsError(
            "the weights of the server were sent to it, and are on no disk",
            why="they could not be brought back after the evaluation",
            fix="evaluate on a server of its own (without url), or ask this one as it is",
            kind="unsupported",
        )
    return started if current.is_relative_to(ours) and not started.is_relative_to(ours) else current


async def _swapped_back(swapper: WeightSwapper, own: Path, folder: Path) -> WeightsError | None:
    """What went wrong, if anything did."""
    try:
        await swapper.swap(own)
    except (WeightsError, ModelError, WireError) as error:
        return WeightsError(
            f"the server answers with {folder.name} still: {own} could not be swapped in again",
            why=error.message + (f" ({error.why})" if error.why else ""),
            fix=f"enginehouse weights swap SERVER {own}; or start the server again",
            restored=False,
        )
    return None
