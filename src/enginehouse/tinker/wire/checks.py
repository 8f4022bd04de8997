"""What a loss needs, and whether a request's numbers make sense to a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import TinkerError, nearest
from enginehouse.tinker.data import Datum, LossRequest

_TARGETS: Final = "target_tokens"


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """The tensors a loss takes beside target_tokens, all float32, and its numeric parameters.

    `matrix`: the tensors may be [N, K], with K targets per position. `provenance`: every datum must
    say which of its targets were sampled.
    """

    required: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    matrix: bool = False
    provenance: bool = False


_POLICY: Final = frozenset({"logprobs", "advantages"})
_CLIPS: Final = frozenset({"clip_low_threshold", "clip_high_threshold"})

LOSSES: Final[Mapping[str, LossInputs]] = {
    "cross_entropy": LossInputs(required=frozenset({"weights"}), matrix=True),
    "importance_sampling": LossInputs(required=_POLICY),
    "ppo": LossInputs(required=_POLICY, parameters=_CLIPS),
    "cispo": LossInputs(required=_POLICY, parameters=_CLIPS),
    "dro": LossInputs(required=_POLICY, parameters=frozenset({"beta"})),
    "gspo": LossInputs(required=_POLICY | {"sequence_ratio_mask"}, parameters=_CLIPS),
    "stable_reinforce": LossInputs(
        required=_POLICY, parameters=frozenset({"kl_coeff"}), provenance=True
    ),
}
"""Every loss of the API that runs in the service."""


def require_valid_data(
    request: LossRequest,
    *,
    vocabulary_size: int,
    max_length: int,
    losses: Collection[str] = tuple(LOSSES),
) -> None:
    """Raise TinkerError, category user, for a request that the model cannot compute.

    The message names the first datum, tensor, position and value that is wrong. `losses` are those
    that the trainer knows.
    """
    needs = _loss(request.loss, losses)
    _require_valid_parameters(request, needs)
    if not request.data:
        raise TinkerError("the request has no data", fix="send at least one datum")
    for index, datum in enumerate(request.data):
        _require_valid_datum(
            datum,
            needs,
            where=f"datum {index}",
            loss=request.loss,
            vocabulary_size=vocabulary_size,
            max_length=max_length,
        )


def _loss(name: str, losses: Collection[str]) -> LossInputs:
    known = sorted(set(LOSSES).intersection(losses))
    if name not in known:
        if name == "custom":
            raise TinkerError(
                "custom losses do not run in this service",
                fix="pass the function itself to forward_backward_custom; it runs in the client",
            )
        close = nearest(name, known)
        raise TinkerError(
            f"there is no loss called {name!r}",
            fix=(f"did you mean {close!r}? " if close else "") + f"known: {', '.join(known)}",
        )
    return LOSSES[name]


def _require_valid_parameters(request: LossRequest, needs: LossInputs) -> None:
    for name, value in request.config.items():
        if name not in needs.parameters:
            known = ", ".join(sorted(needs.parameters)) or "it has none"
            raise TinkerError(
                f"{request.loss} has no parameter {name!r}", fix=f"its parameters: {known}"
            )
        if isinstance(value, str) or not math.isfinite(value):
            raise TinkerError(f"{request.loss}: {name} must be a finite number, not {value!r}")


def _require_valid_datum(
    datum: Datum,
    needs: LossInputs,
    *,
    where: str,
    loss: str,
    vocabulary_size: int,
    max_length: int,
) -> None:
    length = len(datum.tokens)
    if length == 0:
        raise TinkerError(f"{where} is empty", fix="send at least one token per datum")
    if length > max_length:
        raise TinkerError(
            f"{where} has {length} tokens, but the longest sequence here is {max_length}",
            fix="shorten the sequence",
        )
    _require_token_ids(datum.tokens, vocabulary_size, f"{where}: model_input")
    _require_inputs(datum, needs, where=where, loss=loss)
    targets = datum.inputs[_TARGETS]
    if targets.dtype != np.int64:
        raise TinkerError(f"{where}: {_TARGETS} must be integers, not {targets.dtype}")
    _require_shape(targets, length, needs, f"{where}: {_TARGETS}")
    _require_token_ids(targets, vocabulary_size, f"{where}: {_TARGETS}")
    for name, values in datum.inputs.items():
        if name == _TARGETS:
            continue
        if values.dtype != np.float32:
            raise TinkerError(f"{where}: {name} must be float32, not {values.dtype}")
        if values.shape != targets.shape:
            raise TinkerError(
                f"{where}: {name} has the shape {list(values.shape)}, "
                f"but {_TARGETS} has {list(targets.shape)}"
            )
        _require_finite(values, f"{where}: {name}")


def _require_inputs(datum: Datum, needs: LossInputs, *, where: str, loss: str) -> None:
    required = {_TARGETS, *needs.required}
    missing = sorted(required - set(datum.inputs))
    if missing:
        raise TinkerError(f"{where}: {loss} needs {', '.join(missing)} in loss_fn_inputs")
    unknown = sorted(set(datum.inputs) - required)
    if unknown:
        raise TinkerError(
            f"{where}: {loss} does not take {', '.join(unknown)}",
            fix=f"its loss_fn_inputs: {', '.join(sorted(required))}",
        )
    if needs.provenance and datum.sampled is None:
        raise TinkerError(
            f"{where}: {loss} needs to know which tokens were sampled",
            fix="attach the spans with Datum.with_provenance",
        )


def _require_shape(targets: NDArray[Any], length: int, needs: LossInputs, where: str) -> None:
    if targets.ndim not in ((1, 2) if needs.matrix else (1,)) or targets.shape[0] != length:
        wanted = f"[{length}] or [{length}, K]" if needs.matrix else f"[{length}]"
        raise TinkerError(
            f"{where} has the shape {list(targets.shape)}, but the datum's {length} tokens "
            f"need {wanted}"
        )
    if targets.size == 0:
        raise TinkerError(f"{where} has the shape {list(targets.shape)}, and so no targets")


def _require_token_ids(ids: NDArray[Any], vocabulary_size: int, where: str) -> None:
    wrong = (ids < 0) | (ids >= vocabulary_size)
    if wrong.any():
        position = _first(wrong)
        raise TinkerError(
            f"{where}{list(position)} is {ids[position]}, which is not one of the model's "
            f"{vocabulary_size} token ids",
            fix="tokenize with the base model's own tokenizer",
        )


def _require_finite(values: NDArray[Any], where: str) -> None:
    wrong = ~np.isfinite(values)
    if wrong.any():
        position = _first(wrong)
        raise TinkerError(f"{where}{list(position)} is {values[position]}, not a finite number")


def _first(wrong: NDArray[np.bool_]) -> tuple[int, ...]:
    """The indices of the first True."""
    return tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
