"""What is sent for a request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.errors import ConfigurationError, UnsupportedError
from enginehouse.core.messages import ChatPrompt, Message, Prompt, TextPrompt, TokenPrompt
from enginehouse.core.sampler import Capabilities, Capability, SampleRequest
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.dialects import openai_chat, openai_completions

EVERYTHING = frozenset(Capability)
CHAT = ChatPrompt((Message("system", "Be brief."), Message("user", "Hi")))
SCHEMA = {"type": "object"}


def sent(
    prompt: Prompt = CHAT,
    *,
    supports: frozenset[Capability] = EVERYTHING,
    stream: bool = False,
    **parameters: Any,
) -> dict[str, Any]:
    """The body that is sent, decoded."""
    dialect = openai_chat if isinstance(prompt, ChatPrompt) else openai_completions
    body = dialect.encode(
        SampleRequest(prompt=prompt, parameters=SamplingParameters(**parameters)),
        model="m",
        capabilities=Capabilities(supports=supports, ignored={"guided_json": "structured.json"}),
        stream=stream,
    )
    decoded: dict[str, Any] = json.loads(body)
    return decoded


def test_every_known_field_is_sent_whatever_its_value():
    """The model's generation_config.json never gets to fill in a sampling field."""
    assert sent() == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ],
        "max_tokens": 512,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "n": 1,
        "seed": None,
        "stop": [],
        "ignore_eos": False,
        "logprobs": False,
        "prompt_logprobs": None,
        "return_token_ids": True,
        "stream": False,
    }


def test_fields_that_the_engine_lacks_are_left_out():
    """A strict OpenAI server is not sent vLLM's additions."""
    body = sent(supports=frozenset({Capability.CHAT}))
    assert set(body) == {
        "model",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "stop",
        "stream",
    }


@pytest.mark.parametrize(
    ("lacking", "parameters"),
    [
        (Capability.N, {"n": 2}),
        (Capability.SEED, {"seed": 0}),
        (Capability.TOP_K, {"top_k": 5}),
        (Capability.MIN_P, {"min_p": 0.1}),
        (Capability.REPETITION_PENALTY, {"repetition_penalty": 1.1}),
        (Capability.IGNORE_EOS, {"ignore_eos": True}),
        (Capability.LOGPROBS, {"logprobs": 0}),
        (Capability.PROMPT_LOGPROBS, {"prompt_logprobs": 0}),
        (Capability.JSON_SCHEMA, {"structured": StructuredOutput(json_schema=SCHEMA)}),
        (Capability.CHOICE, {"structured": StructuredOutput(choice=("a",))}),
        (Capability.REGEX, {"structured": StructuredOutput(regex="a")}),
        (Capability.GRAMMAR, {"structured": StructuredOutput(grammar="a")}),
    ],
)
def test_what_the_engine_lacks_is_refused(lacking: Capability, parameters: dict[str, Any]):
    """A value that would be silently dropped is refused, and the same value is fine elsewhere."""
    with pytest.raises(UnsupportedError, match=lacking.value):
        sent(supports=EVERYTHING - {lacking}, **parameters)
    assert sent(**parameters)


@pytest.mark.parametrize(
    ("lacking", "prompt"),
    [
        (Capability.CHAT, CHAT),
        (Capability.TEXT, TextPrompt("a")),
        (Capability.TOKENS, TokenPrompt((1,))),
    ],
)
def test_a_prompt_of_an_unsupported_kind_is_refused(lacking: Capability, prompt: Prompt):
    """An engine without a chat template is not sent conversations, and so on."""
    with pytest.raises(UnsupportedError, match=lacking.value):
        sent(prompt, supports=EVERYTHING - {lacking})


def test_prompts_of_text_and_tokens():
    """Both go to the completions endpoint as they are."""
    assert sent(TextPrompt("Once"))["prompt"] == "Once"
    assert sent(TokenPrompt((5, 6)))["prompt"] == [5, 6]


def test_logprobs_in_both_dialects():
    """Chat takes a switch and a number, completions the number alone."""
    chat = sent(logprobs=0)
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 0)
    assert sent(TextPrompt("a"), logprobs=0)["logprobs"] == 0
    assert sent(TextPrompt("a"))["logprobs"] is None


@pytest.mark.parametrize(
    ("structured", "field", "value"),
    [
        (
            StructuredOutput(json_schema=SCHEMA),
            "response_format",
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
            },
        ),
        (StructuredOutput(choice=("a", "b")), "structured_outputs", {"choice": ["a", "b"]}),
        (StructuredOutput(regex="a+"), "structured_outputs", {"regex": "a+"}),
        (StructuredOutput(grammar="g"), "structured_outputs", {"grammar": "g"}),
    ],
)
def test_structured_output(structured: StructuredOutput, field: str, value: object):
    """A schema goes by OpenAI's field, the rest by vLLM's."""
    assert sent(structured=structured)[field] == value


def test_a_silently_ignored_field_is_refused_with_its_replacement():
    """The engine answers 200 to guided_json and does not constrain; we do not let it."""
    with pytest.raises(UnsupportedError) as caught:
        sent(extra={"guided_json": SCHEMA})
    assert "guided_json" in str(caught.value)
    assert "structured.json" in str(caught.value)


def test_extra_fields_are_sent_and_cannot_replace_others():
    """`extra` adds; what has its own place is set there."""
    assert sent(extra={"priority": 3})["priority"] == 3
    with pytest.raises(ConfigurationError, match="temperature"):
        sent(extra={"temperature": 1.0})


def test_streaming_refuses_log_probabilities():
    """A stream's pieces carry none, and vLLM would leave prompt_logprobs out without a word."""
    assert sent(stream=True)["stream"] is True
    for parameters in ({"logprobs": 1}, {"prompt_logprobs": 0}):
        with pytest.raises(UnsupportedError, match="log-probabilities"):
            sent(stream=True, **parameters)
    with pytest.raises(UnsupportedError, match="stream"):
        sent(stream=True, supports=EVERYTHING - {Capability.STREAM})
