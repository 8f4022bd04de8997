"""The checkpoint that a target serves: where it lies, and how long prompts may be."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import BadRequestError, MalformedResponseError, UnsupportedError
from enginehouse.deployment.base import Target
from enginehouse.engines.options import ServerOptions
from enginehouse.weights.served_models import ServedModel, decode_served_models


class ServedCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a target serves, without an adapter.

    `folder` is None if the checkpoint is not on this machine. `max_model_len` is the longest prompt
    and answer together, in tokens; None if nothing says it.
    """

    folder: Path | None
    max_model_len: int | None


async def served_checkpoint(target: Target, options: ServerOptions) -> ServedCheckpoint:
    """What a target serves, by the server's own list of models, which is read once.

    The folder of a server that is not ours is the one that the list names by its whole path: a hub
    handle may also be a folder's name here. Where the list of a server of our own does not say how
    long prompts may be, the `options` that it was started with and then its checkpoint do. Raises
    WireError.
    """
    listed = await _listed(target.sampler)
    if (model := target.deployment.model) is not None:
        folder = Path(model.path)
        length = listed.max_model_len or options.max_model_len or _length_of(folder)
    else:
        folder = Path(listed.root or "")
        length = listed.max_model_len  # the options have no effect on a server that is not ours
        if not folder.is_absolute():
            return ServedCheckpoint(folder=None, max_model_len=length)
    is_here = await asyncio.to_thread(folder.is_dir)
    return ServedCheckpoint(folder=folder if is_here else None, max_model_len=length)


async def _listed(sampler: HTTPSampler) -> ServedModel:
    """The sampler's model as the server lists it; an adapter's is the model that it belongs to."""
    try:
        models = await sampler.read_models(decode_served_models)
    except (BadRequestError, MalformedResponseError, UnsupportedError):
        return ServedModel(id=sampler.model)  # there is no list, or it has another form
    named = {model.id: model for model in models}
    model = named.get(sampler.model, models[0])
    return named.get(model.parent or "", model)


def _length_of(checkpoint: Path) -> int | None:
    """The longest sequence that a checkpoint was made for, by its config.json."""
    try:
        config: Any = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config") or config
        length = text.get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return length if isinstance(length, int) and length > 0 else None
