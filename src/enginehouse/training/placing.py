"""Who answers for a checkpoint: a server of its own, or a running one that takes it in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from enginehouse.core.errors import WeightsError, WireError
from enginehouse.launch.asking import attach
from enginehouse.launch.configuration import EvaluationConfig
from enginehouse.launch.serving import Notify, make_sampler
from enginehouse.launch.swapping import swapper_of
from enginehouse.provisioning.digests import weights_digest
from enginehouse.store.layout import Layout
from enginehouse.weights.peft_folder import read_peft_folder


@asynccontextmanager
async def to_be_served(
    config: EvaluationConfig,
    folder: Path,
    *,
    layout: Layout,  # noqa: ARG001 - the others need it
    notify: Notify,  # noqa: ARG001
) -> AsyncIterator[EvaluationConfig]:
    """Have the evaluation serve the checkpoint itself."""
    yield config.model_copy(update={"model": str(folder)})


@asynccontextmanager
async def weights_swapped(
    config: EvaluationConfig, folder: Path, *, layout: Layout, notify: Notify
) -> AsyncIterator[EvaluationConfig]:
    """Swap a checkpoint into the vLLM at `config.url`, and its own weights in again at the end.

    Everybody who asks that server meanwhile is answered by the checkpoint. Raises what
    `launch.swapping.swapper_of` and `WeightSwapper.swap` do.
    """
    assert config.url is not None
    async with swapper_of(config.url, layout=layout) as swapper:
        own = swapper.current.path
        if own is None:
            raise WeightsError(
                f"the weights of the server at {config.url} were sent to it, and are on no disk",
                why="they could not be brought back after the evaluation",
                fix="evaluate on a server of its own (without url), or ask this one as it is",
                kind="unsupported",
            )
        await swapper.swap(folder)
        notify(f"swapped {folder.name} into the server at {config.url}")
        try:
            yield config
        finally:
            try:
                await swapper.swap(own)
            except WeightsError as error:  # what happened within the block is what matters
                notify(f"{own} could not be swapped in again: {error.message}")


@asynccontextmanager
async def adapter_loaded(
    config: EvaluationConfig, folder: Path, *, layout: Layout, notify: Notify
) -> AsyncIterator[EvaluationConfig]:
    """Load an adapter into the server at `config.url`; unloaded when the block ends.

    Yields the configuration that asks for it. Its name there is unique to its content, so that
    nothing the server remembers of another can answer for it. The server must see `folder` under
    the same path. Raises AdapterError, ConfigurationError and WireError.
    """
    digest = await asyncio.to_thread(_checked_digest, folder, layout)
    server, engine = await attach(config)
    async with make_sampler(server, engine, concurrency=1, model=config.model) as sampler:
        name = f"{folder.name}@{digest[:12]}"
        model = await sampler.load_adapter(name, path=str(folder))
        notify(f"loaded {name} into the server at {server.base_url}")
        try:
            yield config.model_copy(update={"model": model})
        finally:
            try:
                await sampler.unload_adapter(name)
            except WireError as error:  # what happened within the block is what matters
                notify(f"{name} could not be unloaded: {error.message}")


def _checked_digest(folder: Path, layout: Layout) -> str:
    read_peft_folder(folder)
    return weights_digest(folder.glob("adapter_*"), layout=layout)
