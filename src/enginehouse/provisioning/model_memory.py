"""How much memory a model takes, estimated without loading it or importing its libraries.

From a checkpoint folder, the hub's cache, or the hub's metadata; the hub's own client is not used,
since importing it takes longer than the question.
"""

from __future__ import annotations

import json
import os
import struct
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec

_HUB = "https://huggingface.co"
_SECONDS = 1.0  # for all requests to the hub together
_LARGEST_HEADER = 100_000_000  # bytes; that of safetensors itself
_LARGEST_REPLY = 10_000_000
_UNREADABLE = (OSError, HTTPException, ValueError, struct.error, LookupError, TypeError)
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float64": 8}


class ModelMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes, in bytes, and where that is from.

    `weights` are those of all files; on a GPU they may be converted to another type.
    `cache_per_token` is the KV cache of one token over all layers, 2 x layers x key-value heads x
    head dimension x bytes of a number (Kwon et al. 2023, section 3.1), or with multi-head latent
    attention layers x (latent rank + rotary dimension) x bytes; None if the configuration does
    not say. Layers without attention or with a sliding window take less.
    """

    weights: int
    cache_per_token: int | None
    source: str


def estimate_memory(model: str) -> ModelMemory | None:
    """The memory of a checkpoint folder or of a model of the hub; None if it is unknown.

    Blocks for a second if the hub has to be asked and does not answer. Never raises.
    """
    try:
        if Path(model).expanduser().is_dir():
            return checkpoint_memory(model)
        if (cached := _cached(model)) is not None:
            return _of_folder(cached, source="the hub's cache")
    except _UNREADABLE:
        return None
    return None if _is_offline() or model.count("/") != 1 else _of_hub_in_time(model)


def checkpoint_memory(folder: str) -> ModelMemory | None:
    """The memory of a checkpoint folder; None if it is not there or cannot be read."""
    path = Path(folder).expanduser()
    try:
        return _of_folder(path, source=str(path))
    except _UNREADABLE:
        return None


def cache_per_token(config: Mapping[str, Any]) -> int | None:
    """The KV cache of one token, in bytes, by a model's config.json: see ModelMemory."""
    text = config.get("text_config")
    values = {**config, **text} if isinstance(text, Mapping) else config
    size = _BYTES.get(str(values.get("torch_dtype") or values.get("dtype")), 2)
    layers = values.get("num_hidden_layers")
    if not isinstance(layers, int):
        return None
    latent, rotary = values.get("kv_lora_rank"), values.get("qk_rope_head_dim")
    if isinstance(latent, int) and isinstance(rotary, int):
        return layers * (latent + rotary) * size
    heads = values.get("num_attention_heads")
    dimension = values.get("head_dim")
    if not isinstance(dimension, int):
        hidden = values.get("hidden_size")
        if not isinstance(hidden, int) or not isinstance(heads, int):
            return None
        dimension = hidden // heads
    groups = values.get("num_key_value_heads") or heads
    return 2 * layers * groups * dimension * size if isinstance(groups, int) else None


def _of_folder(folder: Path, *, source: str) -> ModelMemory | None:
    weights = sum(_tensor_bytes(path) for path in sorted(folder.glob("*.safetensors")))
    weights = weights or sum(path.stat().st_size for path in folder.glob("*.bin"))
    if not weights:
        return None
    config = json.loads((folder / "config.json").read_bytes())
    return ModelMemory(weights=weights, cache_per_token=cache_per_token(config), source=source)


def _tensor_bytes(path: Path) -> int:
    """The size of the tensors that the header of a safetensors file lists."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LARGEST_HEADER:
            raise ValueError(path)
        header = json.loads(file.read(length))
    offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    return sum(end - begin for begin, end in offsets)


def _cached(model: str) -> Path | None:
    """The snapshot of a model's main branch in the hub's cache."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    folder = cache / f"models--{model.replace('/', '--')}"
    try:
        commit = (folder / "refs/main").read_text().strip()
    except OSError:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if (snapshot / "config.json").exists() else None


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _of_hub_in_time(model: str) -> ModelMemory | None:
    """What the hub says of a model; None if it has not said it in time.

    The time of looking up the hub's address, and of an answer that comes in drops, has no limit
    of its own. So another thread asks, and is not waited for any longer.
    """
    answers: list[ModelMemory | None] = []

    def ask() -> None:
        with suppress(*_UNREADABLE):
            answers.append(_of_hub(model))

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return answers[0] if answers else None


def _of_hub(model: str) -> ModelMemory | None:
    endpoint = os.environ.get("HF_ENDPOINT") or _HUB
    if not endpoint.startswith(("http://", "https://")):
        return None
    listing = _fetched(f"{endpoint}/api/models/{model}?blobs=true")
    names = {file["rfilename"]: file.get("size") or 0 for file in listing["siblings"]}
    tensors = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    usual = [name for name in tensors if not name.startswith("consolidated")] or tensors
    weights = sum(names[name] for name in usual)
    if not weights:
        return None
    config = _fetched(f"{endpoint}/{model}/resolve/main/config.json")
    return ModelMemory(weights=weights, cache_per_token=cache_per_token(config), source="the hub")


def _fetched(url: str) -> Any:
    request = urllib.request.Request(url)  # noqa: S310 - the scheme is checked
    if token := os.environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=_SECONDS) as reply:  # noqa: S310
        return json.loads(reply.read(_LARGEST_REPLY))
