"""Replies of /v1/chat/completions, as vLLM 0.32.0 really sent them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.errors import ContextOverflowError, MalformedResponseError, ServerFaultError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import (
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
    TokenLogprob,
    Usage,
)
from enginehouse.core.sampling import SamplingParameters
from enginehouse.dialects import openai_chat

TIMING = Timing(started=1.0, elapsed=0.5)


def reply(**changes: Any) -> dict[str, Any]:
    """A reply to a request for log-probabilities, cut down to two tokens."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "The capital", "refusal": None},
        "logprobs": {
            "content": [
                {
                    "token": "The",
                    "logprob": -1.8,
                    "bytes": [84, 104, 101],
                    "top_logprobs": [{"token": "The", "logprob": -1.8, "bytes": [84, 104, 101]}],
                },
                {"token": " capital", "logprob": -0.02, "bytes": [32], "top_logprobs": []},
            ]
        },
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": [504, 3575],
        "routed_experts": None,
    }
    return {
        "id": "chatcmpl-bd8b",
        "object": "chat.completion",
        "created": 1795233672,
        "model": "smollm2",
        "choices": [choice],
        "service_tier": None,
        "usage": {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2},
        "prompt_logprobs": [
            None,
            {"9690": {"logprob": -7.86, "rank": 143, "decoded_token": "system"}},
            {
                "198": {"logprob": -2.5, "rank": 2, "decoded_token": "\n"},
                "29": {"logprob": -0.9, "rank": 1, "decoded_token": "-"},
            },
        ],
        "prompt_token_ids": [1, 9690, 198],
        **changes,
    }


def decode(body: dict[str, Any], **parameters: Any) -> SampleResponse:
    """What becomes of a reply to a request with these parameters."""
    prompt = ChatPrompt((Message("user", "Hi"),))
    request = SampleRequest(prompt=prompt, parameters=SamplingParameters(**parameters))
    return openai_chat.decode(json.dumps(body).encode(), request=request, timing=TIMING)


def test_a_whole_reply():
    """Text, ids, log-probabilities, counts and timing all arrive in their places."""
    response = decode(reply(), logprobs=1)
    (completion,) = response.completions
    assert completion.text == "The capital"
    assert completion.finish_reason == "length"
    assert completion.token_ids == (504, 3575)
    assert completion.logprobs == (
        TokenLogprob(
            logprob=-1.8, text="The", token_id=504, top=(TokenLogprob(logprob=-1.8, text="The"),)
        ),
        TokenLogprob(logprob=-0.02, text=" capital", token_id=3575),
    )
    assert (response.prompt_tokens, response.completion_tokens) == (3, 2)
    assert (response.model, response.request_id) == ("smollm2", "chatcmpl-bd8b")
    assert response.prompt_token_ids == (1, 9690, 198)
    assert response.timing == TIMING


def test_prompt_logprobs_are_those_of_the_prompts_own_tokens():
    """Among several candidates the prompt's token is found by its id, not by its place."""
    response = decode(reply(), prompt_logprobs=1)
    assert response.prompt_logprobs is not None
    first, second, third = response.prompt_logprobs
    assert first is None
    assert second == TokenLogprob(
        logprob=-7.86,
        text="system",
        token_id=9690,
        rank=143,
        top=(TokenLogprob(logprob=-7.86, text="system", token_id=9690, rank=143),),
    )
    assert third is not None
    assert (third.token_id, third.logprob, third.rank) == (198, -2.5, 2)
    assert third.top == (TokenLogprob(logprob=-0.9, text="-", token_id=29, rank=1),)


def test_content_may_be_null_and_reasoning_has_two_names():
    """A reasoning model that was cut off while thinking has no content."""
    for name in ("reasoning", "reasoning_content"):
        body = reply()
        body["choices"][0]["message"] = {"role": "assistant", "content": None, name: "Hm."}
        (completion,) = decode(body).completions
        assert (completion.text, completion.reasoning) == ("", "Hm.")


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({}, (0, 0)),
        ({"usage": None}, (0, 0)),
        ({"usage": {}}, (0, 0)),
        ({"usage": {"total_tokens": 5, "completion_tokens": None}}, (0, 0)),
        ({"usage": {"prompt_tokens": 3}}, (3, 0)),
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 2}}, (3, 2)),
    ],
)
def test_tokens_that_the_server_does_not_count_are_none(usage: dict[str, Any], counts: tuple):
    """Compatible servers leave out what they like; the answer is an answer all the same."""
    body = reply()
    del body["usage"]
    response = decode(body | usage)
    assert (response.prompt_tokens, response.completion_tokens) == counts
    assert response.completions[0].text == "The capital"
    chunk = json.dumps({"choices": []} | usage).encode()
    deltas = openai_chat.decode_chunk(chunk)
    assert deltas == (
        (Delta(text="", usage=Usage(*counts)),) if usage.get("usage") is not None else ()
    )


def test_content_may_come_in_parts():
    """Their texts are the answer; what was thought is none of it."""
    parts: list[Any] = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "text", "text": "The "},
        {"type": "output_text", "text": "capital", "annotations": []},
        "!",
    ]
    body = reply()
    body["choices"][0]["message"]["content"] = parts
    assert decode(body).completions[0].text == "The capital!"
    chunk = json.dumps({"choices": [{"delta": {"content": parts}}]}).encode()
    assert openai_chat.decode_chunk(chunk) == (Delta(text="The capital!"),)


@pytest.mark.parametrize("depth", [900, 100_000])
def test_a_reply_that_is_nested_too_deeply_is_malformed(depth: int):
    """Wherever it is: in a field that we read, and in one that nobody does."""
    deep = "[" * depth + "]" * depth
    request = SampleRequest(prompt=ChatPrompt((Message("user", "Hi"),)))
    for field in ("choices", "content"):
        body = f'{{"{field}": {deep}}}'.encode()
        with pytest.raises(MalformedResponseError):
            openai_chat.decode(body, request=request, timing=TIMING)
        with pytest.raises(MalformedResponseError):
            openai_chat.decode_chunk(b'{"choices": 1, ' + body[1:])


def test_choices_are_put_in_order():
    """Completion i is choice i, however the server ordered them."""
    body = reply()
    first, second = dict(body["choices"][0]), dict(body["choices"][0])
    second["index"] = 1
    second["message"] = {"content": "second"}
    body["choices"] = [second, first]
    assert [c.text for c in decode(body, n=2).completions] == ["The capital", "second"]


@pytest.mark.parametrize(
    ("changes", "parameters", "complaint"),
    [
        ({"choices": None}, {}, "choices"),
        ({"choices": []}, {}, "0 choices instead of 1"),
        ({"choices": [{"index": 0}]}, {}, "message"),
        ({"prompt_logprobs": None}, {"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"prompt_token_ids": None}, {"prompt_logprobs": 0}, "do not match"),
        ({"prompt_token_ids": [1, 2, 198]}, {"prompt_logprobs": 0}, "own token 2"),
        ({}, {"n": 2}, "1 choices instead of 2"),
    ],
)
def test_a_reply_that_lacks_something_is_malformed(
    changes: dict[str, Any], parameters: dict[str, Any], complaint: str
):
    """It is an error that says what is missing and shows the reply, never a guess."""
    with pytest.raises(MalformedResponseError) as caught:
        decode(reply(**changes), **parameters)
    assert complaint in str(caught.value)
    assert "chatcmpl-bd8b" in str(caught.value)


def test_logprobs_that_did_not_come_are_noticed():
    """A server that ignores `logprobs` is not taken at its word."""
    body = reply()
    body["choices"][0]["logprobs"] = None
    with pytest.raises(MalformedResponseError) as caught:
        decode(body, logprobs=0)
    assert "logprobs" in str(caught.value)


def test_a_page_that_is_no_json_is_malformed():
    """A proxy's HTML page is quoted, cut short."""
    request = SampleRequest(prompt=ChatPrompt((Message("user", "Hi"),)))
    page = b"<html>" + b"x" * 5000
    with pytest.raises(MalformedResponseError) as caught:
        openai_chat.decode(page, request=request, timing=TIMING)
    assert "<html>" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_chunks_of_a_stream():
    """The opening chunk is empty, a token's chunk has its id; the usage is a piece of its own."""
    opening = b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}'
    middle = b'{"choices":[{"index":0,"delta":{"content":"The"},"token_ids":[504]}]}'
    last = b'{"choices":[{"index":1,"delta":{"content":"."},"finish_reason":"stop"}]}'
    usage = b'{"choices":[],"usage":{"prompt_tokens":1}}'
    continuous = b'{"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":1}}'
    assert openai_chat.decode_chunk(opening) == (Delta(text=""),)
    assert openai_chat.decode_chunk(middle) == (Delta(text="The", token_ids=(504,)),)
    assert openai_chat.decode_chunk(last) == (Delta(text=".", index=1, finish_reason="stop"),)
    assert openai_chat.decode_chunk(usage) == (Delta(text="", usage=Usage(1, 0)),)
    assert openai_chat.decode_chunk(continuous) == (Delta(text="x"),)


def test_errors_inside_a_stream():
    """The server reports what goes wrong after the head as an event; its code says what it is."""
    overflow = b'{"error":{"message":"maximum context length is 9","type":"x","code":400}}'
    with pytest.raises(ContextOverflowError):
        openai_chat.decode_chunk(overflow)
    with pytest.raises(ServerFaultError, match="EngineCore"):
        openai_chat.decode_chunk(b'{"error":{"message":"EngineCore died","code":500}}')
    with pytest.raises(MalformedResponseError):
        openai_chat.decode_chunk(b'{"choices":[{"ind')


def test_a_text_about_errors_is_no_error():
    """An answer that holds the word is still an answer."""
    chunk = json.dumps({"choices": [{"delta": {"content": 'an "error" it is'}}]}).encode()
    assert openai_chat.decode_chunk(chunk) == (Delta(text='an "error" it is'),)
