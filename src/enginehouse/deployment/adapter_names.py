"""MODEL+FOLDER: an adapter that is named behind its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from enginehouse.engines.registry import ENGINES


def with_adapter_apart(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of a configuration, MODEL+FOLDER as `model` and `adapter`.

    A model that is there under the whole name, and an address, stay as they are. So does, where it
    is asked at a `url` or of a hosted `engine`, a name of which no part behind a plus is a folder:
    such names may have pluses. Blocking. Raises ValueError.
    """
    model = values.get("model")
    if not isinstance(model, str) or "+" not in model or "://" in model:
        return values
    if _path(model).exists():
        return values
    splits = list(_splits(model))
    found = [split for split in splits if split["adapter"].is_dir()]
    if not found and (values.get("url") or _is_hosted(values.get("engine"))):
        return values
    if values.get("adapter"):
        raise ValueError(f"the adapter is given twice: in {model!r}, and as adapter")
    if not splits:
        raise ValueError(f"{model!r} is not MODEL+FOLDER: one of them is missing")
    of_models = [split for split in splits if _path(split["model"]).exists()]
    return {**values, **[*found, *of_models, *splits][0]}


def _splits(name: str) -> Iterator[dict[str, Any]]:
    """Every way to split it, at its first plus first."""
    parts = name.split("+")
    for at in range(1, len(parts)):
        model, adapter = "+".join(parts[:at]), "+".join(parts[at:])
        if model and adapter:
            yield {"model": model, "adapter": _path(adapter)}


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # nobody of that name has a home
        return Path(text)


def _is_hosted(engine: Any) -> bool:
    from enginehouse.engines.base import ServedEngine

    return engine in ENGINES.names() and not isinstance(ENGINES.load(engine)(), ServedEngine)
