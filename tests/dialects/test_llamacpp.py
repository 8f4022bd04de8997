"""What llama-server is sent, and what it answers: replies of build 11434, shortened."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.errors import (
    BadRequestError,
    ConfigurationError,
    ContextOverflowError,
    MalformedResponseError,
    UnsupportedError,
)
from enginehouse.core.messages import ChatPrompt, Message, TextPrompt, TokenPrompt
from enginehouse.core.sampler import Delta, SampleRequest, SampleResponse, Timing, Usage
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.dialects import llamacpp
from enginehouse.dialects.openai_errors import error_reply
from enginehouse.engines.llamacpp.engine import LlamaCppEngine

CAPABILITIES = LlamaCppEngine().capabilities(None)
CHAT = ChatPrompt((Message("user", "Hello"),))
TIMING = Timing(started=0, elapsed=0)
LOGPROBS = [
    {
        "id": 260,
        "token": " the",
        "bytes": [32, 116, 104, 101],
        "logprob": -1.5,
        "top_logprobs": [{"id": 260, "token": " the", "bytes": [], "logprob": -1.5}],
    }
]


def request_of(*, chat: bool, **parameters: Any) -> SampleRequest:
    """A request with these sampling parameters."""
    prompt = CHAT if chat else TextPrompt("Hello")
    return SampleRequest(prompt=prompt, parameters=SamplingParameters(**parameters))


def body_of(*, chat: bool = False, stream: bool = False, **parameters: Any) -> dict[str, Any]:
    """The JSON that is sent for these sampling parameters."""
    dialect = llamacpp.chat if chat else llamacpp.completions
    request = request_of(chat=chat, **parameters)
    encoded = dialect.encode(request, model="m", capabilities=CAPABILITIES, stream=stream)
    decoded: dict[str, Any] = json.loads(encoded)
    return decoded


def decoded(
    *,
    chat: bool = False,
    finish: str = "length",
    made: int = 1,
    prompt_tokens: int = 2,
    scores: list[Any] | None = None,
    **parameters: Any,
) -> SampleResponse:
    """A reply of one token, decoded as that to a request with these parameters."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice |= {"message": {"role": "assistant", "content": " the"}} if chat else {"text": " the"}
    choice["logprobs"] = None if scores is None else {"content": scores}
    usage = {"completion_tokens": made, "prompt_tokens": prompt_tokens, "total_tokens": 9}
    body = {"choices": [choice], "model": "m", "id": "cmpl-1", "usage": usage}
    dialect = llamacpp.chat if chat else llamacpp.completions
    request = request_of(chat=chat, **{"max_tokens": 1} | parameters)
    return dialect.decode(json.dumps(body).encode(), request=request, timing=TIMING)


BOTH = pytest.mark.parametrize("chat", [True, False])


@BOTH
def test_the_samplers_are_those_of_the_parameters_in_vllms_order(chat: bool):  # noqa: FBT001
    """Its own order has the temperature last, and its defaults are top_k 40 and min_p 0.05."""
    body = body_of(chat=chat, temperature=0.7)
    assert body["samplers"] == ["penalties", "temperature", "min_p", "top_k", "top_p"]
    assert (body["top_k"], body["top_p"], body["min_p"], body["mirostat"]) == (0, 1.0, 0.0, 0)
    assert body["temperature"] == 0.7


@BOTH
def test_penalties_have_its_names_and_look_back_on_everything(chat: bool):  # noqa: FBT001
    """Without one the window is left alone."""
    body = body_of(chat=chat, repetition_penalty=1.2)
    assert body["repeat_penalty"] == 1.2
    assert body["repeat_last_n"] > 100_000
    assert "repetition_penalty" not in body
    assert body_of(chat=chat, presence_penalty=0.5)["repeat_last_n"] > 100_000
    assert "repeat_last_n" not in body_of(chat=chat)


@BOTH
@pytest.mark.parametrize(
    ("structured", "expected"),
    [
        (StructuredOutput(json_schema={"type": "object"}), {"json_schema": {"type": "object"}}),
        (StructuredOutput(grammar='root ::= "a"'), {"grammar": 'root ::= "a"'}),
        (StructuredOutput(choice=("yes", "no")), {"grammar": 'root ::= "yes" | "no"'}),
    ],
)
def test_constraints_have_its_names(
    chat: bool,  # noqa: FBT001
    structured: StructuredOutput,
    expected: dict[str, Any],
):
    """Other engines' fields would be dropped without a word."""
    body = body_of(chat=chat, structured=structured)
    assert expected.items() <= body.items()
    assert not {"structured_outputs", "response_format"} & body.keys()


def test_a_choice_is_escaped_for_the_grammar():
    """Quotes, backslashes, new lines and what cannot be printed; other letters stay."""
    assert llamacpp.choice_grammar(('a"b\\c', "d\ne\t\x00", "é")) == (
        r'root ::= "a\"b\\c" | "d\ne\t\U00000000" | "é"'
    )


@BOTH
def test_a_regular_expression_is_refused(chat: bool):  # noqa: FBT001
    """It has none."""
    with pytest.raises(UnsupportedError, match="regex"):
        body_of(chat=chat, structured=StructuredOutput(regex="a+"))


@BOTH
def test_fields_that_are_always_sent_cannot_be_set_twice(chat: bool):  # noqa: FBT001
    """Nor those that it would ignore; its own others go through."""
    with pytest.raises(ConfigurationError, match="samplers"):
        body_of(chat=chat, extra={"samplers": ["top_k"]})
    with pytest.raises(UnsupportedError, match="structured_outputs"):
        body_of(chat=chat, extra={"structured_outputs": {}})
    lora = [{"id": 0, "scale": 1.0}]
    assert body_of(chat=chat, extra={"lora": lora})["lora"] == lora


def test_logprobs_without_candidates_ask_for_one():
    """To ask for 0 is to ask for none at all."""
    assert body_of(logprobs=0)["logprobs"] == 1
    assert body_of(logprobs=3)["logprobs"] == 3
    assert body_of()["logprobs"] is None
    asked = body_of(chat=True, logprobs=0)
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 1)


@BOTH
def test_logprobs_come_with_ids_and_only_the_candidates_asked_for(chat: bool):  # noqa: FBT001
    """Both endpoints give the chat's form."""
    (asked,) = decoded(chat=chat, scores=LOGPROBS, logprobs=1).completions
    (bare,) = decoded(chat=chat, scores=LOGPROBS, logprobs=0).completions
    assert asked.logprobs is not None
    assert bare.logprobs is not None
    assert (asked.logprobs[0].token_id, asked.logprobs[0].logprob) == (260, -1.5)
    assert [top.text for top in asked.logprobs[0].top] == [" the"]
    assert bare.logprobs[0].top == ()


@BOTH
def test_tokens_without_a_log_probability_are_no_answer(chat: bool):  # noqa: FBT001
    """It leaves them out inside a character of several tokens: the rest would be misaligned."""
    with pytest.raises(MalformedResponseError, match="1 of 2 tokens"):
        decoded(chat=chat, scores=LOGPROBS, logprobs=1, made=2, max_tokens=2)


def test_token_prompts_are_sent_as_they_are():
    """The ids, in `prompt`."""
    request = SampleRequest(prompt=TokenPrompt((5, 6)), parameters=SamplingParameters())
    body = llamacpp.completions.encode(request, model="m", capabilities=CAPABILITIES, stream=False)
    assert json.loads(body)["prompt"] == [5, 6]


@BOTH
def test_an_answer_that_the_context_cut_off_is_an_overflow(chat: bool):  # noqa: FBT001
    """It says "length" as for max_tokens, and only the count tells them apart."""
    with pytest.raises(ContextOverflowError, match="1 of max_tokens 5"):
        decoded(chat=chat, max_tokens=5)
    assert decoded(chat=chat, max_tokens=5, finish="stop").completions[0].text == " the"
    assert decoded(chat=chat, max_tokens=1).completions[0].finish_reason == "length"


def test_an_empty_prompt_is_refused():
    """The server answers 200 with nothing."""
    with pytest.raises(BadRequestError, match="empty prompt"):
        decoded(made=0, prompt_tokens=0)


def test_a_context_overflow_of_the_prompt_is_recognised():
    """By its words, for the status is that of any bad request."""
    message = "request (20031 tokens) exceeds the available context size (2048 tokens)"
    body = {"error": {"code": 400, "message": message, "type": "exceed_context_size_error"}}
    assert isinstance(error_reply(400, json.dumps(body).encode()), ContextOverflowError)


def test_the_context_is_read_from_the_list_of_models():
    """That of one sequence; old builds leave it out."""
    body = {"data": [{"id": "m", "meta": {"n_ctx": 2048, "n_ctx_train": 8192}}]}
    assert llamacpp.decode_context(json.dumps(body).encode()) == 2048
    assert llamacpp.decode_context(b'{"data": [{"id": "m", "meta": null}]}') is None


def test_a_streams_usage_comes_with_its_last_text():
    """Where it is a piece of its own, as in a chat, it stays one."""
    usage = {"completion_tokens": 3, "prompt_tokens": 2, "total_tokens": 5}
    choice = {"text": "", "index": 0, "finish_reason": "length"}
    last = json.dumps({"choices": [choice], "usage": usage}).encode()
    assert llamacpp.completions.decode_chunk(last) == (
        Delta(text="", finish_reason="length"),
        Delta(text="", usage=Usage(prompt_tokens=2, completion_tokens=3)),
    )
    alone = json.dumps({"choices": [], "usage": usage}).encode()
    assert llamacpp.chat.decode_chunk(alone) == (
        Delta(text="", usage=Usage(prompt_tokens=2, completion_tokens=3)),
    )


def test_tokenize_has_its_own_words():
    """`content`, and whether special tokens are added."""
    body = llamacpp.encode_tokenize("Hi", model="m", add_special_tokens=False)
    assert json.loads(body) == {"content": "Hi", "add_special": False}
