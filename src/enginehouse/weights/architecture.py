"""Whether a checkpoint's configuration describes the same computation as the served one's.

Engines keep the configuration and the chat template that they were started with. Differences that
show in the tensors' names and shapes, such as a bias, are left to `checkpoint`. Blocking.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from enginehouse.core.errors import ModelError
from enginehouse.core.system_errors import advice
from enginehouse.provisioning.checkpoints import Checkpoint
from enginehouse.provisioning.digests import chat_template

# What trainers and versions of transformers change without changing the computation.
_FREE = {
    "_attn_implementation",
    "_name_or_path",
    "attn_implementation",
    "bos_token_id",
    "dtype",
    "eos_token_id",  # compared separately
    "gradient_checkpointing",
    "initializer_range",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_TRAINING_ONLY = ("dropout", "_pdrop")
# What changes the computation but no tensor; off if it is missing.
_SILENT = {
    "alibi",
    "attention_multiplier",
    "attn_logit_softcapping",
    "embedding_multiplier",
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "quantization_config",
    "residual_multiplier",
    "scale_attn_by_inverse_layer_idx",
    "sliding_window",
}
_OFF = (None, False, 1.0)
_ROPE = {"rope_local_base_freq", "rope_parameters", "rope_scaling", "rope_theta"}
# If missing, the model's class in transformers decides.
_CLASS_DECIDES = {"original_max_position_embeddings", "partial_rotary_factor", "rope_theta"}

_Difference = tuple[str, Any, Any]


def require_same_architecture(new: Checkpoint, old: Checkpoint) -> None:
    """Raise ModelError, naming the differences, if `new` cannot replace `old` on a server."""
    if differing := list(_differences(new.config, old.config)):
        here = [f"{name} is {_short(mine)}" for name, mine, _ in differing[:3]]
        there = [_short(served) for _, _, served in differing[:3]]
        raise ModelError(
            f"{new.folder} has a different architecture from the served model",
            why=f"{', '.join(here)}, and {', '.join(there)} in the served model's config.json",
            fix="start a separate server for it: a swap changes weights only",
        )
    ends, served = _ends(new.config), _ends(old.config)
    if served and not ends <= served | _ends(_generation(old)):
        raise ModelError(
            f"{new.folder} ends its answers with a different token from the served model",
            why=f"its eos_token_id is {new.config['eos_token_id']}, and "
            f"{old.config['eos_token_id']} in the served model's config.json",
            fix="start a separate server for it: on this one its answers would never end",
        )


def require_same_template(new: Checkpoint, old: Checkpoint) -> None:
    """Raise ModelError if the checkpoint has a chat template other than the served one's."""
    try:
        there, here = chat_template(new.folder), chat_template(old.folder)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the chat template of {new.folder} cannot be read",
            why=str(error),
            fix=advice(error, otherwise="save it again"),
        ) from error
    if there is not None and (here is None or there.rstrip("\n") != here.rstrip("\n")):
        raise ModelError(
            f"{new.folder} has a different chat template from the served model",
            why="a server renders conversations with the template that it was started with",
            fix="start a separate server for it, or remove the template from the checkpoint's "
            "folder to use the served one's",
        )


def _differences(
    new: Mapping[str, Any], old: Mapping[str, Any], inside: str = ""
) -> Iterator[_Difference]:
    for key in sorted((new.keys() | old.keys()) - _FREE - _ROPE):
        there, here = _value(new, key), _value(old, key)
        if key.endswith("_config") and isinstance(there, dict) and isinstance(here, dict):
            yield from _differences(there, here, f"{inside}{key}.")
        elif there != here and not any(mark in key for mark in _TRAINING_ONLY):
            is_in_both = key in new and key in old
            if is_in_both or (key in _SILENT and not (there in _OFF and here in _OFF)):
                yield inside + key, there, here
    there, here = _rope(new), _rope(old)
    for layers in sorted(there.keys() | here.keys()):
        one, other = (side.get(layers, side.get("", {})) for side in (there, here))
        if layers or there.keys() == here.keys():
            yield from _rope_differences(one, other, f"{inside}rope_parameters")


def _rope_differences(
    one: Mapping[str, Any], other: Mapping[str, Any], name: str
) -> Iterator[_Difference]:
    for key in sorted(one.keys() | other.keys()):
        there, here = one.get(key), other.get(key)
        unsaid = key in _CLASS_DECIDES and None in (there, here)
        if there != here and not unsaid:
            yield f"{name}.{key}", there, here


def _value(config: Mapping[str, Any], key: str) -> Any:
    if key == "sliding_window" and config.get("use_sliding_window") is False:
        return None  # Qwen2 names a width even so, until it is saved again
    return config.get(key)


def _rope(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters of rotary position embeddings by kind of layer; "" stands for every kind.

    transformers 4 writes rope_theta, rope_scaling and rope_local_base_freq, 5 rope_parameters.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling")
    given = given if isinstance(given, dict) else {}
    common = {key: config[key] for key in _CLASS_DECIDES if config.get(key) is not None}
    layers = {name: part for name, part in given.items() if isinstance(part, dict)} or {"": given}
    local = config.get("rope_local_base_freq")
    if local is not None and "" in layers:
        layers = {"full_attention": given, "sliding_attention": {"rope_theta": local}}
    return {name: common | _plain_rope(part) for name, part in layers.items()}


def _plain_rope(given: Mapping[str, Any]) -> dict[str, Any]:
    kind = given.get("rope_type") or given.get("type") or "default"
    values = {key: value for key, value in given.items() if value is not None and key != "type"}
    return values | {"rope_type": "default" if kind == "mrope" else kind}


def _ends(config: Mapping[str, Any]) -> set[int]:
    ends = config.get("eos_token_id")
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, list) else {ends}


def _generation(checkpoint: Checkpoint) -> dict[str, Any]:
    """Its generation_config.json, whose end tokens engines use as well."""
    try:
        content = json.loads((checkpoint.folder / "generation_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
