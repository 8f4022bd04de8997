"""What SGLang's endpoints are sent, and what they answer, as sglang 0.5.23's sources have it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.errors import ConfigurationError, UnsupportedError
from enginehouse.core.messages import ChatPrompt, Message, TextPrompt, TokenPrompt
from enginehouse.core.sampler import Capabilities, Capability, SampleRequest, Timing
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.dialects import sglang

ALL = Capabilities(
    supports=frozenset(Capability) - {Capability.SEED, Capability.PROMPT_LOGPROBS},
    ignored={"guided_json": "StructuredOutput"},
)
CHAT = ChatPrompt((Message("user", "Hello"),))


def body_of(
    *, stream: bool = False, capabilities: Capabilities = ALL, chat: bool = False, **parameters: Any
) -> dict[str, Any]:
    """The JSON that is sent for these sampling parameters."""
    request = SampleRequest(
        prompt=CHAT if chat else TextPrompt("Hello"), parameters=SamplingParameters(**parameters)
    )
    dialect = sglang.chat if chat else sglang.completions
    encoded = dialect.encode(request, model="m", capabilities=capabilities, stream=stream)
    decoded: dict[str, Any] = json.loads(encoded)
    return decoded


@pytest.mark.parametrize("chat", [True, False])
def test_top_k_off_is_minus_one(chat: bool):  # noqa: FBT001
    """0 is off for us and an error for SGLang; any other value stays."""
    assert body_of(chat=chat)["top_k"] == -1
    assert body_of(chat=chat, top_k=40)["top_k"] == 40


@pytest.mark.parametrize(
    ("structured", "expected"),
    [
        (StructuredOutput(regex="[ab]+"), {"regex": "[ab]+"}),
        (StructuredOutput(grammar='root ::= "a"'), {"ebnf": 'root ::= "a"'}),
        (StructuredOutput(choice=("a.b", "c|(d)")), {"regex": r"a\.b|c\|\(d\)"}),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_constraints_have_sglangs_names(
    structured: StructuredOutput,
    expected: dict[str, str],
    chat: bool,  # noqa: FBT001
):
    """VLLM's field would be dropped without a word; a choice is a regex of its escaped texts."""
    body = body_of(chat=chat, structured=structured)
    assert expected.items() <= body.items()
    assert "structured_outputs" not in body


def test_a_json_schema_goes_where_openai_has_it():
    """response_format is understood by both endpoints."""
    body = body_of(structured=StructuredOutput(json_schema={"type": "object"}))
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_streamed_chat_asks_for_no_token_ids():
    """SGLang answers 400 to that; everywhere else they are asked for."""
    assert "return_token_ids" not in body_of(chat=True, stream=True)
    assert body_of(chat=True)["return_token_ids"] is True
    assert body_of(stream=True)["return_token_ids"] is True


def test_what_is_not_declared_is_refused():
    """A seed, log-probabilities of the prompt, or a constraint that a server lacks."""
    for parameters in ({"seed": 1}, {"prompt_logprobs": 0}, {"extra": {"guided_json": {}}}):
        with pytest.raises(UnsupportedError):
            body_of(**parameters)
    fewer = Capabilities(supports=ALL.supports - {Capability.CHOICE, Capability.TOP_K})
    with pytest.raises(UnsupportedError, match="choice"):
        body_of(capabilities=fewer, structured=StructuredOutput(choice=("a",)))
    with pytest.raises(UnsupportedError, match="top_k"):
        body_of(capabilities=fewer, top_k=3)
    assert "top_k" not in body_of(capabilities=fewer)


def test_fields_of_its_own_go_through_extra():
    """Whatever SGLang knows besides may be given, but not what is sent already."""
    assert body_of(extra={"min_tokens": 3})["min_tokens"] == 3
    with pytest.raises(ConfigurationError, match="top_k"):
        body_of(extra={"top_k": 3})


def test_token_ids_of_a_chat_are_found_under_their_names():
    """response_token_ids and the choice's prompt_token_ids, which vLLM has elsewhere."""
    reply = {
        "id": "r1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi!", "reasoning_content": None},
                "logprobs": {
                    "content": [
                        {"token": "Hi", "bytes": [72, 105], "logprob": -0.5, "top_logprobs": []},
                        {"token": "!", "bytes": [33], "logprob": -0.25, "top_logprobs": []},
                    ]
                },
                "finish_reason": "stop",
                "matched_stop": 2,
                "prompt_token_ids": [1, 9],
                "response_token_ids": [7, 8],
            }
        ],
        "usage": {"prompt_tokens": 2, "total_tokens": 4, "completion_tokens": 2},
        "metadata": {"weight_version": "default"},
    }
    response = sglang.chat.decode(
        json.dumps(reply).encode(),
        request=SampleRequest(prompt=CHAT, parameters=SamplingParameters(logprobs=0)),
        timing=Timing(started=0.0, elapsed=0.0),
    )
    (completion,) = response.completions
    assert (completion.token_ids, response.prompt_token_ids) == ((7, 8), (1, 9))
    assert [token.token_id for token in completion.logprobs or ()] == [7, 8]


def test_a_completion_of_token_ids():
    """Token prompts go to /v1/completions, and ids come back beside the text."""
    request = SampleRequest(prompt=TokenPrompt((5, 6)))
    sent = json.loads(sglang.completions.encode(request, model="m", capabilities=ALL, stream=False))
    assert sent["prompt"] == [5, 6]
    choice = {
        "index": 0,
        "text": " there",
        "logprobs": None,
        "finish_reason": "length",
        "matched_stop": None,
        "token_ids": [7],
        "prompt_token_ids": [5, 6],
    }
    usage = {"prompt_tokens": 2, "total_tokens": 3, "completion_tokens": 1, "reasoning_tokens": 0}
    reply = {"id": "r", "object": "text_completion", "model": "m", "usage": usage}
    response = sglang.completions.decode(
        json.dumps(reply | {"choices": [choice]}).encode(),
        request=request,
        timing=Timing(started=0.0, elapsed=0.0),
    )
    assert response.completions[0].token_ids == (7,)
    assert response.prompt_token_ids == (5, 6)


def test_streams_are_openais():
    """Pieces, the usage, an error, and the end."""
    piece = b'{"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": null}]}'
    assert sglang.chat.decode_chunk(piece)[0].text == "Hi"
    assert sglang.chat.is_end(b"[DONE]")
    assert not sglang.completions.is_end(piece)
