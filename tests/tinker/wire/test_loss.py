from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tinker_requests import bits, floats, integers

from enginehouse.core.errors import ConfigurationError, TinkerError
from enginehouse.tinker.data import LossResult
from enginehouse.tinker.wire import (
    decode_loss_request,
    encode_loss_result,
    identify_loss_request,
    schema,
)
from enginehouse.tinker.wire.schema import messages, same_content


@pytest.fixture(scope="module")
def sdk() -> SimpleNamespace:
    """The real SDK: its types, and how it encodes requests and decodes answers."""
    from tinker.proto import request_conv, response_conv

    from tinker import types

    return SimpleNamespace(types=types, requests=request_conv, responses=response_conv)


def encoded(sdk: SimpleNamespace, data: list[Any], **changes: Any) -> bytes:
    """A request as the SDK sends it."""
    config = changes.pop("config", None)
    loss = changes.pop("loss", "cross_entropy")
    request = sdk.types.ForwardBackwardRequest(
        forward_backward_input=sdk.types.ForwardBackwardInput(
            data=data, loss_fn=loss, loss_fn_config=config
        ),
        model_id="s:train:0",
        seq_id=changes.pop("seq_id", 1),
    )
    message = sdk.requests.forward_backward_request_to_proto(request)
    message.forward_only = changes.pop("forward_only", False)
    return message.SerializeToString()


def datum(sdk: SimpleNamespace, tokens: list[int], **inputs: Any) -> Any:
    """One datum of the SDK."""
    return sdk.types.Datum(
        model_input=sdk.types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs
    )


def tensor(sdk: SimpleNamespace, array: np.ndarray) -> Any:
    """A dense tensor of the SDK."""
    dtype = "int64" if array.dtype == np.int64 else "float32"
    return sdk.types.TensorData(data=array, dtype=dtype, shape=list(array.shape))


def refusal(change: Any) -> str:
    """What is said to a request of one good datum after `change` of its message."""
    message = messages().ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn="cross_entropy")
    one = message.data.add()
    one.model_input.add().encoded_text.tokens = np.arange(3, dtype=np.int32).tobytes()
    target = one.loss_fn_inputs["target_tokens"]
    target.dtype, target.dense = 2, np.arange(3, dtype=np.int64).tobytes()
    change(message)
    with pytest.raises(TinkerError) as refused:
        decode_loss_request(message.SerializeToString())
    assert (refused.value.status, refused.value.category) == (400, "user")
    return refused.value.message


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_the_sdk_sends_is_read_bit_for_bit(sdk, data):
    """Tensors of any bits and tokens of any int32, in any number of chunks."""
    count = data.draw(st.integers(0, 3))
    chunks = [
        data.draw(st.lists(st.lists(st.integers(0, 2**31 - 1)), max_size=3)) for _ in range(count)
    ]
    arrays = []
    for parts in chunks:
        length = sum(map(len, parts))
        width = data.draw(st.integers(1, 3))
        flat = data.draw(floats(length * width))
        arrays.append(
            {"weights": flat.reshape(length, width), "target_tokens": data.draw(integers(length))}
        )
    sent = [
        sdk.types.Datum(
            model_input=sdk.types.ModelInput(
                chunks=[sdk.types.EncodedTextChunk(tokens=part) for part in parts]
            ),
            loss_fn_inputs={name: tensor(sdk, array) for name, array in inputs.items()},
        )
        for parts, inputs in zip(chunks, arrays, strict=True)
    ]
    request = decode_loss_request(encoded(sdk, sent))
    assert len(request.data) == count
    for read, parts, inputs in zip(request.data, chunks, arrays, strict=True):
        assert read.tokens.dtype == np.int32
        assert read.tokens.tolist() == [token for part in parts for token in part]
        assert {name: bits(a) for name, a in read.inputs.items()} == {
            name: bits(a) for name, a in inputs.items()
        }


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_sdk_reads_results_bit_for_bit(sdk, data):
    """Vectors and matrices, also where their widths differ from datum to datum."""
    lengths = data.draw(st.lists(st.integers(0, 4), max_size=5))
    widths = [data.draw(st.sampled_from([None, 1, 2])) for _ in lengths]
    outputs = []
    for length, width in zip(lengths, widths, strict=True):
        shape = (length,) if width is None else (length, width)
        array = data.draw(floats(int(np.prod(shape))))
        outputs.append({"logprobs": array.reshape(shape), "elementwise_loss": array.reshape(shape)})
    metrics = data.draw(st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False)))
    body = encode_loss_result(LossResult(outputs=tuple(outputs), metrics=metrics))
    read = sdk.responses.deserialize_forward_backward_output(body)
    assert read.metrics == metrics
    assert [
        {name: bits(value.to_numpy()) for name, value in output.items()}
        for output in read.loss_fn_outputs
    ] == [{name: bits(array) for name, array in output.items()} for output in outputs]


def test_a_result_without_tensors_still_says_how_many_datums(sdk):
    """The SDK counts num_datums where no field is left to count."""
    body = encode_loss_result(LossResult(outputs=({}, {}), metrics={"loss:sum": 1.0}))
    assert sdk.responses.deserialize_forward_backward_output(body).loss_fn_outputs == [{}, {}]


def test_a_result_that_would_lose_bits_is_not_sent():
    """float64 has no place on the wire."""
    with pytest.raises(TypeError, match="float64"):
        encode_loss_result(LossResult(outputs=({"logprobs": np.zeros(2)},), metrics={}))


def test_sparse_tensors_become_dense(sdk):
    """Unlisted cells are zero, rows may be empty, and large ids keep their value."""
    matrix = np.array([[0, 2**60 + 1, 0], [0, 0, 0], [5, 0, -(2**63)]], dtype=np.int64)
    rows, columns = matrix.nonzero()
    sparse = sdk.types.TensorData(
        data=matrix[rows, columns],
        dtype="int64",
        shape=[3, 3],
        sparse_crow_indices=[0, 1, 1, 3],
        sparse_col_indices=columns.tolist(),
    )
    request = decode_loss_request(encoded(sdk, [datum(sdk, [1, 2, 3], target_tokens=sparse)]))
    assert bits(request.data[0].inputs["target_tokens"]) == bits(matrix)


def test_many_sparse_tensors_together_do_not_fill_the_memory():
    """A body of a few kilobytes that would take 50 GB."""
    message = messages().ForwardBackwardRequest(model_id="m", seq_id=1)
    for shape in [(8192, 8192)] * 100 + [(-8192, 8192)] * 100:
        sparse = message.data.add().loss_fn_inputs["target_tokens"]
        sparse.dtype = 2
        sparse.shape.extend(shape)
        sparse.sparse_csr.values = b""
    with pytest.raises(TinkerError, match="13,421,772,800"):
        decode_loss_request(message.SerializeToString())


def test_narrow_types_are_widened_exactly():
    """int32 to int64, and bfloat16 to float32 with its NaN's payload."""
    message = messages().ForwardBackwardRequest(model_id="m", seq_id=1)
    inputs = message.data.add().loss_fn_inputs
    inputs["a"].dtype, inputs["a"].dense = 3, np.array([-(2**31), 7], dtype=np.int32).tobytes()
    inputs["b"].dtype, inputs["b"].dense = (
        4,
        np.array([0x3F80, 0x8000, 0x7FC1], np.uint16).tobytes(),
    )
    read = decode_loss_request(message.SerializeToString()).data[0].inputs
    assert bits(read["a"]) == bits(np.array([-(2**31), 7], dtype=np.int64))
    wide = np.array([0x3F800000, 0x80000000, 0x7FC10000], dtype=np.uint32).view(np.float32)
    assert bits(read["b"]) == bits(wide)


def test_parameters_come_from_the_newer_map(sdk):
    """Texts exist there only; the older map counts for older clients."""
    sent = encoded(sdk, [], loss="ppo", config={"clip_low_threshold": 0.1, "loss_id": "x"})
    assert decode_loss_request(sent).config == {"clip_low_threshold": 0.1, "loss_id": "x"}
    old = messages().ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn_config={"beta": 0.3})
    assert decode_loss_request(old.SerializeToString()).config == {"beta": 0.3}


def test_spans_mark_what_was_sampled(sdk):
    """By the spans of the targets, which are one position ahead of the inputs."""
    prompt = sdk.types.PromptProvenanceSpan
    sampled = sdk.types.SampledProvenanceSpan
    one = datum(sdk, [1, 2, 3], target_tokens=np.array([2, 3, 4])).with_provenance(
        [prompt(sequence_id="q", length=2), sampled(sequence_id="q", length=1)],
        [prompt(sequence_id="q", offset=1, length=1), sampled(sequence_id="q", length=2)],
    )
    read = decode_loss_request(encoded(sdk, [one, datum(sdk, [1])])).data
    assert read[0].sampled is not None
    assert read[0].sampled.tolist() == [False, True, True]
    assert read[1].sampled is None


def test_a_job_is_known_before_its_data_is_read(sdk):
    """An image would fail the job in its turn; that it is job 7 of its model is still known."""
    image = sdk.types.ImageChunk(data=b"x", format="png")
    one = sdk.types.Datum(model_input=sdk.types.ModelInput(chunks=[image]))
    body = encoded(sdk, [one], seq_id=7, forward_only=True)
    identity = identify_loss_request(body)
    assert (identity.model_id, identity.seq_id, identity.forward_only) == ("s:train:0", 7, True)
    with pytest.raises(TinkerError, match=r"datum 0, chunk 0.* image"):
        decode_loss_request(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"not protobuf", "is not a protobuf ForwardBackwardRequest"),
        (b"\x0a\xff\xff\xff\xff\x0f", "is not a protobuf"),
        (b"", "names no model_id"),
        (b"\x0a\x01m", "seq_id is 0"),
    ],
)
def test_a_body_that_names_no_job_is_refused(body, message):
    """Before it is accepted, with 400."""
    with pytest.raises(TinkerError, match=message) as refused:
        identify_loss_request(body)
    assert refused.value.status == 400


def set_tensor(**changes: Any) -> Any:
    """A change of the good datum's tensor."""

    def change(message: Any) -> None:
        target = message.data[0].loss_fn_inputs["target_tokens"]
        sparse = changes.get("sparse")
        if sparse is not None:
            values, rows, columns = sparse
            target.sparse_csr.values = np.array(values, dtype=np.int64).tobytes()
            target.sparse_csr.crow_indices = np.array(rows, dtype=np.int64).tobytes()
            target.sparse_csr.col_indices = np.array(columns, dtype=np.int64).tobytes()
        if "dense" in changes:
            target.dense = changes["dense"]
        if "dtype" in changes:
            target.dtype = changes["dtype"]
        if "shape" in changes:
            target.shape.extend(changes["shape"])

    return change


def unknown_field(message: Any) -> None:
    """Field 15 of a datum, a varint, as a newer SDK might send."""
    message.data[0].MergeFromString(b"\x78\x01")


def add_chunk(message: Any) -> None:
    """A chunk of audio."""
    message.data[0].model_input.add().dmel.dmel = b"x"


def add_spans(**spans: list[tuple[str, int]]) -> Any:
    """A change that adds spans, each an arm and a length."""

    def change(message: Any) -> None:
        for field, runs in spans.items():
            for arm, length in runs:
                span = getattr(getattr(message.data[0], field).add(), arm)
                span.sequence_id, span.length = "q", length

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_tensor(dense=b"123"), "datum 0: target_tokens: 3 bytes are not a whole number"),
        (set_tensor(shape=[4]), "datum 0: target_tokens: 3 values do not fill the shape [4]"),
        (set_tensor(shape=[-1, -3]), "do not fill the shape [-1, -3]"),
        (set_tensor(dtype=9), "target_tokens: the element type 9 is unknown"),
        (set_tensor(dtype=0), "target_tokens: the element type 0 is unknown"),
        (
            set_tensor(sparse=([1], [0, 1], [0]), shape=[1 << 40, 1 << 40]),
            "more than 67,108,864 are not accepted at once",
        ),
        (set_tensor(sparse=([1], [0, 1], [0])), "two dimensions, not the shape []"),
        (set_tensor(sparse=([1], [0, 2], [0]), shape=[1, 3]), "row indices of the sparse tensor"),
        (set_tensor(sparse=([1], [], [0]), shape=[1, 3]), "row indices of the sparse tensor"),
        (set_tensor(sparse=([1, 1], [0, 3, 2], [0, 1]), shape=[2, 3]), "row indices of the sparse"),
        (
            set_tensor(sparse=([1], [0, 1], [3]), shape=[1, 3]),
            "a column index of the sparse tensor",
        ),
        (set_tensor(sparse=([1, 2], [0, 2], [1, 1]), shape=[1, 3]), "lists a cell twice"),
        (unknown_field, "datum 0: Datum has fields this service does not know: number 15"),
        (add_chunk, "datum 0, chunk 1: dmel chunks are not supported"),
        (
            add_spans(loss_fn_input_spans=[("sampled_tokens", 3)]),
            "model_input_spans cover 0 positions of 3",
        ),
        (
            add_spans(
                model_input_spans=[("prompt_tokens", 3)],
                loss_fn_input_spans=[("prompt_tokens", 1), ("sampled_tokens", 3)],
            ),
            "datum 0: loss_fn_input_spans cover 4 positions of 3",
        ),
        (
            add_spans(model_input_spans=[("prompt_tokens", 4), ("prompt_tokens", -1)]),
            "model_input_spans[1] needs a sequence_id, and an offset and a length from 0",
        ),
    ],
)
def test_what_cannot_be_read_is_named(change, said):
    """Each names the datum and the field."""
    assert said in refusal(change)


def test_bodies_are_the_same_whatever_the_order_of_their_maps():
    """Protobuf does not fix it; JSON neither."""
    one, other = b"\x2a\x0c\x0a\x01a\x11" + b"\0" * 8, b"\x2a\x0c\x0a\x01b\x11" + b"\0" * 8
    kind = schema.PROTOBUF
    assert same_content(one + other, other + one, content_type=kind)
    assert not same_content(one, other, content_type=kind)
    assert not same_content(b"\xff", b"\xff\xff", content_type=kind)
    assert same_content(b'{"a":1,"b":2}', b'{"b": 2, "a": 1}', content_type="application/json")
    assert not same_content(b'{"a":1}', b'{"a":2}', content_type="application/json")


def test_the_messages_are_loaded_without_the_sdk():
    """Importing the SDK takes a second, and starts threads."""
    program = (
        "import sys; from enginehouse.tinker.wire.schema import messages; messages();"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in {'tinker', 'httpx', 'torch'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_without_the_extra_the_user_learns_what_to_install(monkeypatch):
    """Not an ImportError from deep inside."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="not installed") as missing:
        messages.__wrapped__()
    assert "enginehouse[tinker]" in str(missing.value.fix)
