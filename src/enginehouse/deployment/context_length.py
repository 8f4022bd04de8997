"""How many tokens a prompt and its answer may have together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import BadRequestError, MalformedResponseError, UnsupportedError
from enginehouse.deployment.base import Target
from enginehouse.engines.options import ServerOptions
from enginehouse.weights.served_models import decode_served_models


async def context_length(target: Target, options: ServerOptions) -> int | None:
    """The longest prompt and answer together, in tokens; None if nothing says it.

    The server's own list of models comes first. For a server of our own that does not say it, the
    `options` that it was started with and then its checkpoint do. Raises WireError.
    """
    if (listed := await _listed_length(target.sampler)) is not None:
        return listed
    if (model := target.deployment.model) is None:
        return None  # the options have no effect on a server that is not ours
    return options.max_model_len or _length_of(Path(model.path))


async def _listed_length(sampler: HTTPSampler) -> int | None:
    """That of the sampler's model; an adapter has that of its model."""
    try:
        models = await sampler.read_models(decode_served_models)
    except (BadRequestError, MalformedResponseError, UnsupportedError):
        return None  # there is no list, or it has another form
    lengths = {model.id: model.max_model_len for model in models}
    named = next((model for model in models if model.id == sampler.model), models[0])
    return named.max_model_len or lengths.get(named.parent or "")


def _length_of(checkpoint: Path) -> int | None:
    """The longest sequence that a checkpoint was made for, by its config.json."""
    try:
        config: Any = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config") or config
        length = text.get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return length if isinstance(length, int) and length > 0 else None
