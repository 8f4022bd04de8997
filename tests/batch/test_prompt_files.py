"""Prompts as files have them, and what is wrong with those that are none."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginehouse.batch.prompt_files import PromptLine, read_prompts
from enginehouse.batch.settings import SampleSettings
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.messages import ChatPrompt, Message, TextPrompt, TokenPrompt
from enginehouse.core.sampling import StructuredOutput


def read(folder: Path, text: str | bytes, **given: Any) -> list[PromptLine]:
    """The prompts of a file with that content."""
    path = folder / "prompts.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_prompts(settings(path, **given))


def settings(path: Path | str, **given: Any) -> SampleSettings:
    """What `sample` would be given."""
    return SampleSettings.model_validate({"out": "out.jsonl", "prompts": str(path), **given})


def test_every_kind_of_prompt(tmp_path: Path):
    """Texts, conversations and token ids; without an id it is the line's number."""
    lines = (
        '{"prompt": "Once"}\n\n'
        '{"id": "b", "messages": [{"role": "user", "content": "Hi"}]}\n'
        '{"id": 7, "token_ids": [1, 2]}'
    )
    first, second, third = read(tmp_path, lines, temperature=0.5, seed=3)
    assert (first.id, first.request.prompt) == (1, TextPrompt("Once"))
    assert (second.id, second.request.prompt) == ("b", ChatPrompt((Message("user", "Hi"),)))
    assert (third.id, third.request.prompt) == (7, TokenPrompt((1, 2)))
    assert {p.request.parameters.temperature for p in (first, second, third)} == {0.5}
    assert {p.request.parameters.seed for p in (first, second, third)} == {3}


def test_a_line_goes_before_the_command(tmp_path: Path):
    """Its parameters, and its constraint instead of the command's."""
    line = (
        '{"prompt": "a", "max_tokens": 3, "n": 2, "temperature": 1, "stop": ".", "regex": "[ab]"}'
    )
    (found,) = read(tmp_path, line, max_tokens=99, choice="yes, no")
    parameters = found.request.parameters
    assert (parameters.max_tokens, parameters.n, parameters.stop) == (3, 2, (".",))
    assert parameters.structured == StructuredOutput(regex="[ab]")
    (plain,) = read(tmp_path, '{"prompt": "a"}', choice="yes, no")
    assert plain.request.parameters.structured == StructuredOutput(choice=("yes", "no"))


def test_plain_lines_and_users_messages(tmp_path: Path):
    """--plain takes JSON, too, as it stands; --chat makes a text a user's message."""
    found = read(tmp_path, ' {"prompt"\r\n\n  \nWhat?\n', plain=True)
    assert [(p.id, p.request.prompt) for p in found] == [
        (1, TextPrompt(' {"prompt"')),
        (4, TextPrompt("What?")),
    ]
    (asked,) = read(tmp_path, "What?", plain=True, chat=True)
    assert asked.request.prompt == ChatPrompt((Message("user", "What?"),))


def test_standard_input(monkeypatch: pytest.MonkeyPatch):
    """With - for a file."""
    data = io.BytesIO(b'{"prompt": "a"}\n')
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=data))
    assert [p.id for p in read_prompts(settings("-"))] == [1]


def test_the_digest_stands_for_prompt_and_parameters(tmp_path: Path):
    """Whatever changes an answer changes it, and nothing else does."""

    def digest(line: str, **given: Any) -> str:
        return read(tmp_path, line, **given)[0].digest

    first = digest('{"prompt": "a"}')
    assert first == digest('{"id": "other", "max_tokens": 512, "prompt": "a"}', concurrency=3)
    others = [
        digest('{"prompt": "b"}'),
        digest('{"prompt": "a", "max_tokens": 511}'),
        digest('{"prompt": "a"}', temperature=0.1),
        digest('{"prompt": "a"}', chat=True),
        digest('{"prompt": "a"}', choice="x,y"),
    ]
    assert len({first, *others}) == 6


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt: "c"}', "JSON object"),
        ("[1]", "JSON object"),
        (b"\xff", "JSON object"),
        ('{"prompt": "a", "temprature": 1}', "did you mean 'temperature'?"),
        ('{"prompt": "a", "logprobs": 1}', "unknown key 'logprobs'"),
        ('{"prompt": "a", "temperature": "hot"}', "Expected `float`, got `str`"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens must be at least 1"),
        ('{"prompt": "a", "n": 2}', "2 greedy answers would all be the same"),
        ('{"prompt": "a", "choice": ["a"], "regex": "b"}', "exactly one constraint"),
        ('{"prompt": "a", "messages": []}', "it has prompt and messages"),
        ('{"id": 3}', "it has no prompt"),
        ('{"prompt": ""}', "prompt is empty"),
        ('{"messages": []}', "messages is empty"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "Invalid enum value 'bot'"),
        ('{"messages": [{"role": "user", "content": "a", "nam": 1}]}', "unknown field 'nam'"),
        ('{"messages": 3}', "Expected `array`, got `int`"),
        ('{"prompt": "a", "id": 1.5}', "Expected `int | str`, got `float`"),
        ('{"prompt": "a", "id": 1}', "the id 1 "),
    ],
)
def test_an_invalid_prompt(tmp_path: Path, line: str | bytes, said: str):
    """File and line are named, and what is wrong with it."""
    data = line.encode() if isinstance(line, str) else line
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, b'{"prompt": "fine"}\n\n' + data + b"\n")
    assert "prompts.jsonl, line 3: " in str(raised.value)
    assert said in str(raised.value)


def test_no_prompts_at_all(tmp_path: Path):
    """No file, an empty one, and a schema that is none."""
    with pytest.raises(ConfigurationError, match="nowhere"):
        read_prompts(settings("nowhere"))
    with pytest.raises(ConfigurationError, match="no prompts"):
        read(tmp_path, "\n \n")
    schema = tmp_path / "schema.json"
    schema.write_text("[]")
    with pytest.raises(ConfigurationError, match="JSON schema"):
        read(tmp_path, '{"prompt": "a"}', json_schema=schema)
    schema.write_text(json.dumps({"type": "object"}))
    (found,) = read(tmp_path, '{"prompt": "a"}', json_schema=schema)
    wanted = StructuredOutput(json_schema={"type": "object"})
    assert found.request.parameters.structured == wanted
