"""asample: its JSON request and its protobuf answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.sampling.base import Sampled, TokenPrompt, TopK
from enginehouse.tinker.wire.schema import messages
from enginehouse.tinker.wire.tensors import (
    dense_from_csr,
    dtype_code,
    encode_tensor,
    reshape,
)

_STOPPED, _CUT_OFF = 0, 1  # the enum StopReason
_SEEDS = 2**63 - 1
_TARGETS = "target_prompt_logprobs"


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A JSON object; a field that is not declared is refused by name."""


class _ModelInput(_Strict, frozen=True, kw_only=True):
    chunks: list[dict[str, Any]]


class _SamplingParams(_Strict, frozen=True, kw_only=True):
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[Any] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class _Tensor(_Strict, frozen=True, kw_only=True):
    data: list[Any]
    dtype: Literal["int64"]
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class _SampleRequest(_Strict, frozen=True, kw_only=True):
    """The SDK's SampleRequest. Who answers is for the service to find out, not for this module.

    `record_stability_info` needs nothing from us: a datum of stable_reinforce brings the
    log-probabilities of its sampled tokens.
    """

    prompt: _ModelInput
    sampling_params: _SamplingParams
    num_samples: int = 1
    base_model: str | None = None
    model_path: str | None = None
    sampling_session_id: str | None = None
    seq_id: int | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: _Tensor | None = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool | None = None
    type: Literal["sample"] = "sample"


@dataclass(frozen=True, eq=False, kw_only=True)
class _Cells:
    """The cells of a matrix that a sparse request lists: `row_ends` and `columns` as in CSR."""

    row_ends: NDArray[np.int64]
    columns: NDArray[np.int64]


def decode_sample_request(body: Mapping[str, Any]) -> TokenPrompt:
    """The prompt and how to continue it. Raises TinkerError that names the field and its value."""
    request = _request(body)
    tokens = _tokens(request.prompt)
    parameters = request.sampling_params
    _require_valid_counts(request, len(tokens))
    _require_valid_parameters(parameters)
    first_scored = None
    if request.prompt_logprobs or request.prompt_logprobs_last_n is not None:
        last = request.prompt_logprobs_last_n
        first_scored = 1 if last is None else len(tokens) - last
    targets = request.target_prompt_logprobs
    return TokenPrompt(
        tokens=tokens,
        samples=request.num_samples,
        max_tokens=parameters.max_tokens,
        temperature=parameters.temperature,
        top_k=max(parameters.top_k, 0),
        top_p=parameters.top_p,
        seed=None if parameters.seed is None else parameters.seed % _SEEDS,
        stop=_stop(parameters.stop),
        prompt_logprobs_from=first_scored,
        prompt_top_k=request.topk_prompt_logprobs,
        sample_top_k=request.topk_sample_logprobs,
        targets=None if targets is None else _targets(targets, len(tokens)),
        alternatives=request.prompt_alt_tokens_k,
    )


def encode_sampled(sampled: Sampled, *, body: Mapping[str, Any]) -> bytes:
    """A SampleResponse to the request `body`.

    The log-probabilities of its target_prompt_logprobs are sent dense or sparse as those were, with
    0.0 where nothing was asked. Raises TypeError for arrays that are not int32 ids and float32.
    """
    message = messages().SampleResponse(prompt_cache_hit_tokens=sampled.cached_tokens)
    for sequence in sampled.sequences:
        encoded = message.sequences.add(
            stop_reason=_STOPPED if sequence.stopped else _CUT_OFF,
            tokens=_bytes(sequence.tokens, np.int32),
            logprobs=_bytes(sequence.logprobs, np.float32),
        )
        if sequence.top is not None:
            encoded.topk_sampled_logprobs.CopyFrom(_topk(sequence.top))
    if sampled.prompt_logprobs is not None:
        message.prompt_logprobs = _bytes(sampled.prompt_logprobs, np.float32)
    if sampled.prompt_top is not None:
        message.topk_prompt_logprobs.CopyFrom(_topk(sampled.prompt_top))
    if sampled.target_logprobs is not None:
        answer = _target_logprobs(sampled.target_logprobs, _request(body))
        message.target_prompt_logprobs.CopyFrom(answer)
    if sampled.alternatives is not None:
        message.prompt_alt_tokens.tokens.CopyFrom(encode_tensor(sampled.alternatives.token_ids))
        message.prompt_alt_tokens.logprobs.CopyFrom(encode_tensor(sampled.alternatives.logprobs))
    encoded_message: bytes = message.SerializeToString()
    return encoded_message


def _request(body: Mapping[str, Any]) -> _SampleRequest:
    try:
        return msgspec.convert(body, _SampleRequest)
    except msgspec.ValidationError as error:
        raise TinkerError(
            f"the sample request is not valid: {error}",
            fix="use the tinker SDK 0.38.0; other fields are not supported",
        ) from error


def _tokens(prompt: _ModelInput) -> NDArray[np.int32]:
    parts: list[NDArray[np.int64]] = []
    for index, chunk in enumerate(prompt.chunks):
        kind = chunk.get("type", "encoded_text")
        if kind != "encoded_text":
            raise TinkerError(
                f"prompt chunk {index}: {kind} chunks are not supported",
                fix="this service samples from text; send token ids only",
            )
        unknown = sorted(set(chunk) - {"type", "tokens"})
        if unknown or not isinstance(chunk.get("tokens"), list):
            raise TinkerError(
                f"prompt chunk {index} has "
                + (f"unknown fields: {', '.join(unknown)}" if unknown else "no list of tokens")
            )
        parts.append(_integers(chunk["tokens"], f"prompt chunk {index}: tokens"))
    tokens = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    if not len(tokens):
        raise TinkerError("the prompt is empty", fix="send at least one token")
    wrong = (tokens < 0) | (tokens > np.iinfo(np.int32).max)
    if wrong.any():
        position = int(wrong.argmax())
        raise TinkerError(f"prompt token {position} is {tokens[position]}, which is not a token id")
    return tokens.astype(np.int32)


def _integers(values: Sequence[Any], where: str) -> NDArray[np.int64]:
    """JSON numbers as int64. Raises TinkerError if any is not an integer of 64 bits."""
    if not values:
        return np.empty(0, dtype=np.int64)
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        array = np.empty(0)
    if array.dtype != np.int64 or array.ndim != 1:
        raise TinkerError(f"{where} must be a flat list of 64-bit integers")
    return array


def _require_valid_counts(request: _SampleRequest, length: int) -> None:
    if request.num_samples < 1:
        raise TinkerError(f"num_samples is {request.num_samples}; ask for at least one")
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        if getattr(request, name) < 0:
            raise TinkerError(f"{name} is {getattr(request, name)}; it must be 0 or greater")
    last = request.prompt_logprobs_last_n
    if last is None:
        return
    if not request.prompt_logprobs:
        raise TinkerError("prompt_logprobs_last_n needs prompt_logprobs, which is not set")
    if not 1 <= last < length:
        raise TinkerError(
            f"prompt_logprobs_last_n is {last}; for a prompt of {length} tokens it must be between "
            f"1 and {length - 1}"
        )


def _require_valid_parameters(parameters: _SamplingParams) -> None:
    if parameters.max_tokens is not None and parameters.max_tokens < 0:
        raise TinkerError(f"max_tokens is {parameters.max_tokens}; it must be 0 or greater")
    if not (math.isfinite(parameters.temperature) and parameters.temperature >= 0):
        raise TinkerError(f"temperature is {parameters.temperature}; it must be 0 or greater")
    if not 0 < parameters.top_p <= 1:
        raise TinkerError(f"top_p is {parameters.top_p}; it must be above 0 and at most 1")
    if parameters.top_k < -1:
        raise TinkerError(f"top_k is {parameters.top_k}; it must be -1 (no limit) or greater")


def _stop(stop: str | list[Any] | None) -> tuple[str, ...] | tuple[int, ...] | None:
    if stop is None:
        return None
    if isinstance(stop, str):
        stop = [stop]
    if not all(type(s) is str for s in stop) and not all(type(s) is int for s in stop):
        raise TinkerError("stop must be a text, a list of texts, or a list of token ids")
    if "" in stop:
        raise TinkerError("stop contains an empty text, at which nothing can stop")
    return tuple(stop)


def _targets(tensor: _Tensor, prompt_length: int) -> NDArray[np.int64]:
    """(prompt_length - 1, K) ids, -1 where nothing is asked."""
    shape = tuple(tensor.shape or ())
    data = _integers(tensor.data, f"{_TARGETS}.data")
    if len(shape) != 2 or shape[0] != prompt_length - 1:
        raise TinkerError(
            f"{_TARGETS} has the shape {list(shape)}; for a prompt of {prompt_length} tokens it "
            f"must be [{prompt_length - 1}, K]"
        )
    cells = _cells(tensor)
    if cells is None:
        targets = reshape(data, shape, _TARGETS)
    else:
        targets = dense_from_csr(
            data, cells.row_ends, cells.columns, shape=shape, where=_TARGETS, fill=-1
        )
    if targets.size == 0 or targets.max() < 0 or targets.min() < -1:
        raise TinkerError(f"{_TARGETS} must name at least one token id, and use -1 for no id")
    return targets


def _cells(tensor: _Tensor) -> _Cells | None:
    """The cells of a sparse tensor, None for a dense one."""
    rows, columns = tensor.sparse_crow_indices, tensor.sparse_col_indices
    if rows is None and columns is None:
        return None
    if rows is None or columns is None:
        raise TinkerError(f"{_TARGETS} has only one of sparse_crow_indices and sparse_col_indices")
    return _Cells(
        row_ends=_integers(rows, f"{_TARGETS}.sparse_crow_indices"),
        columns=_integers(columns, f"{_TARGETS}.sparse_col_indices"),
    )


def _target_logprobs(logprobs: NDArray[np.float32], request: _SampleRequest) -> Any:
    """A Tensor message with the layout of the request's target_prompt_logprobs."""
    tensor = request.target_prompt_logprobs
    if tensor is None:
        raise TypeError(f"the request did not ask for {_TARGETS}")
    targets = _targets(tensor, len(logprobs) + 1)
    answer = np.where(targets < 0, np.float32(0), logprobs)
    cells = _cells(tensor)
    if cells is None:
        return encode_tensor(answer)
    message = messages().Tensor(dtype=dtype_code(answer), shape=list(answer.shape))
    rows = np.repeat(np.arange(len(answer)), np.diff(cells.row_ends))
    message.sparse_csr.values = answer[rows, cells.columns].tobytes()
    message.sparse_csr.crow_indices = cells.row_ends.tobytes()
    message.sparse_csr.col_indices = cells.columns.tobytes()
    return message


def _topk(top: TopK) -> Any:
    length, k = top.token_ids.shape
    return messages().TopkLogprobs(
        token_ids=_bytes(top.token_ids, np.int32),
        logprobs=_bytes(top.logprobs, np.float32),
        length=length,
        k=k,
    )


def _bytes(array: NDArray[Any], dtype: type[np.generic]) -> bytes:
    if array.dtype != dtype:
        raise TypeError(
            f"an array of {array.dtype} cannot be sent as {np.dtype(dtype)} without loss"
        )
    return array.tobytes()
