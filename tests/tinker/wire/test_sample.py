from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tinker_requests import BITS, EXTREMES, bits, floats

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.sampling.base import Sampled, Sequence, TopK
from enginehouse.tinker.wire import decode_sample_request, encode_sampled


@pytest.fixture(scope="module")
def sdk() -> SimpleNamespace:
    """The real SDK: its types, and how it decodes answers."""
    from tinker._compat import model_dump
    from tinker.lib.public_interfaces.sampling_client import _tensor_data_to_model
    from tinker.proto import response_conv

    from tinker import types

    return SimpleNamespace(
        types=types,
        dump=model_dump,
        tensor_model=_tensor_data_to_model,
        read=response_conv.deserialize_sample_response,
    )


def sent(sdk: SimpleNamespace, tokens: list[int], **changes: Any) -> dict[str, Any]:
    """The JSON of a request as the SDK sends it."""
    target = changes.pop("target_prompt_logprobs", None)
    parameters = changes.pop("sampling_params", {})
    request = sdk.types.SampleRequest(
        prompt=sdk.types.ModelInput.from_ints(tokens),
        sampling_params=sdk.types.SamplingParams(**parameters),
        sampling_session_id="s",
        seq_id=5,
        target_prompt_logprobs=None if target is None else sdk.tensor_model(target),
        **changes,
    )
    dumped = sdk.dump(request, exclude_unset=False, exclude_none=True, mode="json")
    decoded: dict[str, Any] = json.loads(json.dumps(dumped))
    return decoded


def body(**changes: Any) -> dict[str, Any]:
    """A small request, with other top-level fields."""
    chunk = {"type": "encoded_text", "tokens": [1, 2, 3]}
    return {"prompt": {"chunks": [chunk]}, "sampling_params": {"max_tokens": 4}} | changes


def test_every_field_of_the_sdk_is_read(sdk):
    """With all fields set, and -1 and 0 where those mean off."""
    target = sdk.types.TensorData(data=[7, -1, 9, 8], dtype="int64", shape=[2, 2])
    request = sent(
        sdk,
        [4, 5, 6],
        num_samples=3,
        sampling_params={
            "max_tokens": 9,
            "seed": 11,
            "stop": ["a", "b"],
            "temperature": 0.5,
            "top_k": 20,
            "top_p": 0.9,
        },
        prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=3,
        target_prompt_logprobs=target,
        prompt_alt_tokens_k=4,
        prompt_logprobs_last_n=1,
        record_stability_info=True,
    )
    prompt = decode_sample_request(request)
    assert bits(prompt.tokens) == bits(np.array([4, 5, 6], dtype=np.int32))
    assert prompt.targets is not None
    assert bits(prompt.targets) == bits(np.array([[7, -1], [9, 8]]))
    assert (prompt.samples, prompt.max_tokens, prompt.seed) == (3, 9, 11)
    assert (prompt.temperature, prompt.top_k, prompt.top_p) == (0.5, 20, 0.9)
    assert prompt.stop == ("a", "b")
    assert prompt.prompt_logprobs_from == 2
    assert (prompt.prompt_top_k, prompt.sample_top_k, prompt.alternatives) == (2, 3, 4)


def test_the_defaults_are_those_of_the_sdk(sdk):
    """Off is 0 for top_k, and None where nothing is asked."""
    prompt = decode_sample_request(sent(sdk, [1, 2]))
    assert (prompt.samples, prompt.max_tokens, prompt.seed, prompt.stop) == (1, None, None, None)
    assert (prompt.temperature, prompt.top_k, prompt.top_p) == (1.0, 0, 1.0)
    assert prompt.prompt_logprobs_from is None
    assert prompt.targets is None
    assert (prompt.prompt_top_k, prompt.sample_top_k, prompt.alternatives) == (0, 0, 0)


@pytest.mark.parametrize(
    ("stop", "read"),
    [(None, None), ("end", ("end",)), ([], ()), ([3, 4], (3, 4)), (["a"], ("a",))],
)
def test_where_to_stop(stop, read):
    """An empty list disables the end token too, unlike none."""
    request = body(sampling_params={"max_tokens": 1, "stop": stop})
    assert decode_sample_request(request).stop == read


@pytest.mark.parametrize(
    ("seed", "read"), [(0, 0), (2**63 - 2, 2**63 - 2), (2**63 - 1, 0), (-1, 2**63 - 2)]
)
def test_any_seed_becomes_one_that_engines_take(seed, read):
    """Folded into 0..2^63 - 2, as the SDK says its own service does."""
    assert decode_sample_request(body(sampling_params={"seed": seed})).seed == read


def test_the_whole_prompt_is_scored_from_its_second_token():
    """The first has nothing before it."""
    assert decode_sample_request(body(prompt_logprobs=True)).prompt_logprobs_from == 1


def test_chunks_are_joined():
    """A prompt of several turns."""
    chunks = [{"tokens": [1]}, {"type": "encoded_text", "tokens": []}, {"tokens": [2, 2**31 - 1]}]
    request = body(prompt={"chunks": chunks})
    assert decode_sample_request(request).tokens.tolist() == [1, 2, 2**31 - 1]


def target(data: list[Any], shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    """A request whose target_prompt_logprobs is that tensor."""
    tensor = {"data": data, "dtype": "int64", "shape": shape, **more}
    return body(target_prompt_logprobs=tensor)


@pytest.mark.parametrize(
    ("request_body", "said"),
    [
        (body(beam_width=3), "unknown field `beam_width`"),
        (body(sampling_params={"min_p": 0.1}), "unknown field `min_p` - at `$.sampling_params`"),
        (
            body(prompt={"chunks": [{"type": "image", "data": ""}]}),
            "image chunks are not supported",
        ),
        (
            body(prompt={"chunks": [{"type": "image_asset_pointer", "location": "x"}]}),
            "chunk 0: image_asset_pointer chunks are not supported",
        ),
        (body(prompt={"chunks": [{"tokens": [1], "mask": []}]}), "unknown fields: mask"),
        (body(prompt={"chunks": [{"type": "encoded_text"}]}), "no list of tokens"),
        (body(prompt={"chunks": []}), "the prompt is empty"),
        (body(prompt={"chunks": [{"tokens": [1, -5]}]}), "prompt token 1 is -5"),
        (body(prompt={"chunks": [{"tokens": [2**31]}]}), "prompt token 0 is 2147483648"),
        (body(prompt={"chunks": [{"tokens": [1.0]}]}), "tokens must be a flat list of 64-bit int"),
        (body(prompt={"chunks": [{"tokens": [2**64]}]}), "flat list of 64-bit integers"),
        (body(prompt={"chunks": [{"tokens": [[1]]}]}), "flat list of 64-bit integers"),
        (body(prompt={"chunks": [{"tokens": [[1], 2]}]}), "flat list of 64-bit integers"),
        (body(prompt={"chunks": [{"tokens": ["1"]}]}), "flat list of 64-bit integers"),
        (body(num_samples=0), "num_samples is 0"),
        (body(topk_prompt_logprobs=-1), "topk_prompt_logprobs is -1"),
        (body(sampling_params={"max_tokens": -1}), "max_tokens is -1"),
        (body(sampling_params={"temperature": -1.0}), "temperature is -1.0"),
        (body(sampling_params={"temperature": float("nan")}), "temperature is nan"),
        (body(sampling_params={"top_p": 0.0}), "top_p is 0.0"),
        (body(sampling_params={"top_p": float("nan")}), "top_p is nan"),
        (body(sampling_params={"top_k": -2}), "top_k is -2"),
        (body(sampling_params={"stop": ["a", 1]}), "stop must be"),
        (body(sampling_params={"stop": ""}), "stop contains an empty text"),
        (body(prompt_logprobs_last_n=1), "needs prompt_logprobs"),
        (body(prompt_logprobs=True, prompt_logprobs_last_n=3), "between 1 and 2"),
        (body(prompt_logprobs=True, prompt_logprobs_last_n=0), "between 1 and 2"),
        (target([1, 2], [2]), "has the shape [2]; for a prompt of 3 tokens it must be [2, K]"),
        (target([1, 2, 3], [3, 1]), "has the shape [3, 1]"),
        (target([1], [2, 1]), "1 values do not fill the shape [2, 1]"),
        (target([-1, -1], [2, 1]), "at least one token id"),
        (target([], [2, 0]), "at least one token id"),
        (target([-2, 1], [2, 1]), "use -1 for no id"),
        (target([1.5, 1], [2, 1]), "flat list of 64-bit integers"),
        (target([1], [2, 1], sparse_crow_indices=[0, 1, 1]), "only one of"),
        (
            target([1], [2, 1], sparse_crow_indices=[0, 1], sparse_col_indices=[0]),
            "row indices of the sparse tensor do not fit",
        ),
    ],
)
def test_what_cannot_be_sampled_is_named(request_body, said):
    """The field and its value, with 400 and as the user's mistake."""
    with pytest.raises(TinkerError) as refused:
        decode_sample_request(request_body)
    assert said in refused.value.message
    assert (refused.value.status, refused.value.category) == (400, "user")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_sdk_reads_answers_bit_for_bit(sdk, data):
    """Sequences of any length, and all that can be asked about prompt and samples."""
    int32 = st.integers(-(2**31), 2**31 - 1)

    def ids(*shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        values = data.draw(st.lists(int32, min_size=size, max_size=size))
        return np.array(values, dtype=np.int32).reshape(shape)

    def logprobs(*shape: int) -> np.ndarray:
        array: np.ndarray = data.draw(floats(int(np.prod(shape)))).reshape(shape)
        return array

    k = data.draw(st.integers(1, 3))
    length = data.draw(st.integers(2, 4))
    asked = data.draw(st.booleans())
    sequences = []
    for size in data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)):
        top = TopK(token_ids=ids(size, k), logprobs=logprobs(size, k)) if asked else None
        stopped = data.draw(st.booleans())
        sequences.append(
            Sequence(tokens=ids(size), logprobs=logprobs(size), stopped=stopped, top=top)
        )
    alternatives = TopK(token_ids=ids(length - 1, k), logprobs=logprobs(length - 1, k))
    sampled = Sampled(
        sequences=tuple(sequences),
        prompt_logprobs=logprobs(length) if asked else None,
        prompt_top=TopK(token_ids=ids(length, k), logprobs=logprobs(length, k)) if asked else None,
        alternatives=alternatives if asked else None,
        cached_tokens=7,
    )
    answer = sdk.read(encode_sampled(sampled, body=body()))
    assert answer.prompt_cache_hit_tokens == 7
    for read, sequence in zip(answer.sequences, sequences, strict=True):
        assert read.stop_reason == ("stop" if sequence.stopped else "length")
        assert bits(read.tokens_np) == bits(sequence.tokens)
        assert bits(read.logprobs_np) == bits(sequence.logprobs)
        assert (read.topk_logprobs_np is not None) == asked
    if not asked:
        assert answer.prompt_logprobs_np is None
        assert answer.topk_prompt_logprobs_np is None
        assert answer.prompt_alt_tokens is None
        return
    assert sampled.prompt_logprobs is not None
    assert sampled.prompt_top is not None
    assert bits(answer.prompt_logprobs_np) == bits(sampled.prompt_logprobs)
    assert bits(answer.topk_prompt_logprobs_np.token_ids) == bits(sampled.prompt_top.token_ids)
    assert bits(answer.topk_prompt_logprobs_np.logprobs) == bits(sampled.prompt_top.logprobs)
    assert answer.prompt_alt_tokens.tokens.tolist() == alternatives.token_ids.tolist()
    assert bits(answer.prompt_alt_tokens.logprobs.to_numpy()) == bits(alternatives.logprobs)
    first = sequences[0].top
    assert first is not None
    assert bits(answer.sequences[0].topk_logprobs_np.logprobs) == bits(first.logprobs)


def test_target_logprobs_come_back_as_they_were_asked(sdk):
    """Dense or sparse, with the same cells, and 0.0 in those that asked for nothing."""
    logprobs = np.array([[-1, -2, -3], [np.nan, -5, -6]], dtype=np.float32)
    sampled = Sampled(sequences=(), target_logprobs=logprobs)
    dense = sdk.types.TensorData(data=[7, -1, 3, -1, 5, 5], dtype="int64", shape=[2, 3])
    read = sdk.read(
        encode_sampled(sampled, body=sent(sdk, [1, 2, 3], target_prompt_logprobs=dense))
    ).target_prompt_logprobs
    assert read.tolist() == [[-1, 0, -3], [0, -5, -6]]
    sparse = sdk.types.TensorData(
        data=[7, -1, 5],
        dtype="int64",
        shape=[2, 3],
        sparse_crow_indices=[0, 2, 3],
        sparse_col_indices=[0, 2, 1],
    )
    request = sent(sdk, [1, 2, 3], target_prompt_logprobs=sparse)
    targets = decode_sample_request(request).targets
    assert targets is not None
    assert targets.tolist() == [[7, -1, -1], [-1, 5, -1]]
    read = sdk.read(encode_sampled(sampled, body=request)).target_prompt_logprobs
    assert read.shape == [2, 3]
    assert (read.sparse_crow_indices, read.sparse_col_indices) == ([0, 2, 3], [0, 2, 1])
    assert read.data == [-1, 0, -5]


def test_arrays_that_would_lose_bits_are_not_sent():
    """float64 log-probabilities, int64 ids."""
    good = {"tokens": np.zeros(1, np.int32), "logprobs": np.zeros(1, np.float32), "stopped": True}
    for change in ({"tokens": np.zeros(1, np.int64)}, {"logprobs": np.zeros(1)}):
        sequence = Sequence(**(good | change))
        with pytest.raises(TypeError, match="without loss"):
            encode_sampled(Sampled(sequences=(sequence,)), body=body())


@settings(max_examples=30, deadline=None)
@given(value=BITS | EXTREMES)
def test_a_number_keeps_its_bits(sdk, value):
    """One logprob: each NaN, denormal and zero."""
    logprobs = np.array([value], dtype=np.uint32).view(np.float32)
    sequence = Sequence(tokens=np.zeros(1, np.int32), logprobs=logprobs, stopped=False)
    answer = sdk.read(encode_sampled(Sampled(sequences=(sequence,)), body=body()))
    assert bits(answer.sequences[0].logprobs_np) == bits(logprobs)
