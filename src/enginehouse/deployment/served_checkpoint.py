"""The checkpoint that a target serves: where it lies, and how long prompts may be."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import BadRequestError, MalformedResponseError, UnsupportedError
from enginehouse.deployment.base import Target
from enginehouse.engines.options import ServerOptions
from enginehouse.weights.served_models import ServedModel, decode_served_models


async def checkpoint_folder(target: Target) -> Path | None:
    """The folder of the checkpoint, without an adapter's; None if it is not on this machine.

    For a server that is not ours, it is the one that its list of models names by its whole path:
    a hub handle may also be a folder's name here. Raises WireError.
    """
    if (model := target.deployment.model) is not None:
        folder = Path(model.path)
    else:
        folder = Path((await _listed(target.sampler)).root or "")
        if not folder.is_absolute():
            return None
    return folder if await asyncio.to_thread(folder.is_dir) else None


async def context_length(target: Target, options: ServerOptions) -> int | None:
    """The longest prompt and answer together, in tokens; None if nothing says it.

    The server's own list of models comes first. For a server of our own that does not say it, the
    `options` that it was started with and then its checkpoint do. Raises WireError.
    """
    if (listed := (await _listed(target.sampler)).max_model_len) is not None:
        return listed
    if (model := target.deployment.model) is None:
        return None  # the options have no effect on a server that is not ours
    return options.max_model_len or _length_of(Path(model.path))


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
