"""forward_backward: its protobuf request and answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.data import Datum, LossRequest, LossResult
from enginehouse.tinker.wire.schema import messages, parse, require_known_fields
from enginehouse.tinker.wire.tensors import LARGEST, decode_tensor, dtype_code

_TEXT_ONLY = "this service trains on text; send token ids only"


@dataclass(frozen=True, kw_only=True)
class LossIdentity:
    """Which job a request is: enough to accept it before its data is looked at."""

    model_id: str
    seq_id: int
    forward_only: bool


def identify_loss_request(body: bytes) -> LossIdentity:
    """Which job it is. Raises TinkerError (400) if the body does not say so.

    Whatever else is wrong with the request must fail the job in its turn, not its acceptance: the
    model's later jobs wait for this seq_id.
    """
    message = parse(messages().ForwardBackwardRequest, body)
    if not message.model_id:
        raise TinkerError("the request names no model_id")
    if message.seq_id < 1:
        raise TinkerError(
            f"seq_id is {message.seq_id}, but the jobs of a model are numbered from 1",
            fix="use the tinker SDK's TrainingClient, which numbers them",
        )
    return LossIdentity(
        model_id=message.model_id, seq_id=message.seq_id, forward_only=message.forward_only
    )


def decode_loss_request(body: bytes) -> LossRequest:
    """The request. Raises TinkerError naming the datum and the field that cannot be read.

    Whether its numbers make sense is for `require_valid_data` to say. Takes some 50 µs per datum,
    which blocks.
    """
    message = parse(messages().ForwardBackwardRequest, body)
    require_known_fields(message, "the request")
    _require_small_tensors(message)
    return LossRequest(
        model_id=message.model_id,
        loss=message.loss_fn,
        data=tuple(_datum(datum, f"datum {index}") for index, datum in enumerate(message.data)),
        config=_config(message),
        backward=not message.forward_only,
    )


def encode_loss_result(result: LossResult) -> bytes:
    """A ForwardBackwardOutput, with one record per run of datums whose tensors can be stacked.

    Raises TypeError for a tensor that is not float32, int64 or int32.
    """
    message = messages().ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord", metrics=dict(result.metrics)
    )
    for _, run in groupby(result.outputs, key=_layout):
        message.loss_fn_outputs.append(_record(list(run)))
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded


def _config(message: Any) -> Mapping[str, float | str]:
    """The loss's parameters; the older map, which has no texts, counts only without the newer."""
    if not message.loss_fn_config_v2:
        return dict(message.loss_fn_config)
    config: dict[str, float | str] = {}
    for name, value in message.loss_fn_config_v2.items():
        require_known_fields(value, f"loss_fn_config_v2[{name!r}]")
        kind = value.WhichOneof("value")
        if kind is None:
            raise TinkerError(f"loss_fn_config_v2[{name!r}] has no value")
        config[name] = getattr(value, kind)
    return config


def _require_small_tensors(message: Any) -> None:
    """Refuse a small body that would fill the memory once its sparse tensors are dense."""
    cells = sum(
        abs(math.prod(tensor.shape))
        for datum in message.data
        for tensor in datum.loss_fn_inputs.values()
        if tensor.HasField("sparse_csr")
    )
    if cells > LARGEST:
        raise TinkerError(
            f"the request's sparse tensors have {cells:,} cells, and more than {LARGEST:,} are "
            "not accepted at once",
            fix="send fewer datums per request, or fewer columns",
        )


def _datum(message: Any, where: str) -> Datum:
    require_known_fields(message, where)
    tokens = _tokens(message.model_input, where)
    inputs = {
        name: decode_tensor(tensor, f"{where}: {name}")
        for name, tensor in message.loss_fn_inputs.items()
    }
    return Datum(tokens=tokens, inputs=inputs, sampled=_sampled(message, tokens, inputs, where))


def _tokens(chunks: Iterable[Any], where: str) -> NDArray[np.int32]:
    parts: list[NDArray[np.int32]] = []
    for index, chunk in enumerate(chunks):
        kind = chunk.WhichOneof("chunk")
        if kind != "encoded_text":
            require_known_fields(chunk, f"{where}, chunk {index}")
            raise TinkerError(
                f"{where}, chunk {index}: {kind or 'empty'} chunks are not supported",
                fix=_TEXT_ONLY,
            )
        require_known_fields(chunk.encoded_text, f"{where}, chunk {index}")
        data = chunk.encoded_text.tokens
        if len(data) % 4:
            raise TinkerError(f"{where}, chunk {index}: the tokens are not int32 values")
        parts.append(np.frombuffer(data, dtype=np.int32))
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)


def _sampled(
    message: Any, tokens: NDArray[np.int32], inputs: Mapping[str, NDArray[Any]], where: str
) -> NDArray[np.bool_] | None:
    """Which targets were sampled, by the spans that attribute them; None without spans."""
    if not message.model_input_spans and not message.loss_fn_input_spans:
        return None
    _spans(message.model_input_spans, len(tokens), f"{where}: model_input_spans")
    targets = inputs.get("target_tokens")
    if targets is None or targets.ndim == 0:
        raise TinkerError(
            f"{where}: loss_fn_input_spans attribute target_tokens, which are missing"
        )
    return _spans(message.loss_fn_input_spans, len(targets), f"{where}: loss_fn_input_spans")


def _spans(spans: Sequence[Any], length: int, where: str) -> NDArray[np.bool_]:
    """(length,): which positions a sampled span covers. The spans must tile them."""
    lengths: list[int] = []
    flags: list[bool] = []
    for index, span in enumerate(spans):
        kind = span.WhichOneof("span")
        if kind is None:
            require_known_fields(span, f"{where}[{index}]")
            raise TinkerError(f"{where}[{index}] covers neither prompt tokens nor sampled tokens")
        source = getattr(span, kind)
        require_known_fields(source, f"{where}[{index}]")
        if not source.sequence_id or source.offset < 0 or source.length < 0:
            raise TinkerError(
                f"{where}[{index}] needs a sequence_id, and an offset and a length from 0, but has "
                f"{source.sequence_id!r}, {source.offset} and {source.length}"
            )
        lengths.append(source.length)
        flags.append(kind == "sampled_tokens")
    if sum(lengths) != length:
        raise TinkerError(
            f"{where} cover {sum(lengths)} positions of {length}; they must cover each exactly once"
        )
    return np.repeat(np.array(flags, dtype=np.bool_), lengths)


def _layout(output: Mapping[str, NDArray[Any]]) -> Sequence[tuple[str, str, tuple[int, ...]]]:
    return [(name, output[name].dtype.str, output[name].shape[1:]) for name in sorted(output)]


def _record(outputs: Sequence[Mapping[str, NDArray[Any]]]) -> Any:
    """An ArrayRecord: per field the tensors of all datums end to end, and where each begins."""
    record = messages().ArrayRecord(num_datums=len(outputs))
    for name in outputs[0]:
        arrays = [output[name] for output in outputs]
        offsets = np.cumsum([0, *(array.nbytes for array in arrays)], dtype=np.int64)
        field = record.fields[name]
        field.data = b"".join(array.tobytes() for array in arrays)
        field.offsets = offsets.tobytes()
        field.dtype = dtype_code(arrays[0])
        field.trailing_shape.extend(arrays[0].shape[1:])
    return record
