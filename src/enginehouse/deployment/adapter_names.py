"""MODEL+FOLDER: an adapter that is named after its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from enginehouse.engines.registry import ENGINES


def with_adapter_apart(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a configuration, with MODEL+FOLDER split into `model` and `adapter`.

    Left alone are a model that exists under the whole name, an address, and, at a `url` or of a
    hosted `engine`, whose names may contain pluses, a name in which no part after a plus is a
    folder. Blocking. Raises ValueError.
    """
    model = values.get("model")
    if not isinstance(model, str) or "+" not in model or "://" in model:
        return values
    if _path(model).exists():
        return values
    splits = list(_splits(model))
    existing = [split for split in splits if split["adapter"].is_dir()]
    if not existing and (values.get("url") or _is_hosted(values.get("engine"))):
        return values
    if values.get("adapter"):
        raise ValueError(f"the adapter is given twice: in {model!r}, and as adapter")
    if not splits:
        raise ValueError(f"{model!r} is not MODEL+FOLDER: one of the two is missing")
    of_models = [split for split in splits if _path(split["model"]).exists()]
    return {**values, **[*existing, *of_models, *splits][0]}


def _splits(name: str) -> Iterator[dict[str, Any]]:
    """Every way to split the name, at its first plus first."""
    parts = name.split("+")
    for at in range(1, len(parts)):
        model, adapter = "+".join(parts[:at]), "+".join(parts[at:])
        if model and adapter:
            yield {"model": model, "adapter": _path(adapter)}


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~USER of an unknown user
        return Path(text)


def _is_hosted(engine: Any) -> bool:
    from enginehouse.engines.base import ServedEngine

    return engine in ENGINES.names() and not isinstance(ENGINES.load(engine)(), ServedEngine)
