"""The call at a server's start that shows whether its tool parser is the right one."""

from __future__ import annotations

import pytest

from enginehouse.diagnosis import FailureKind
from enginehouse.servers.tool_canary import check_tool_parser, tool_parser
from enginehouse.testing.fake_engine import running_fake_engine


def _check(url: str, parser: str):
    return check_tool_parser(url, parser=parser, model="fake-model", api_key=None)


async def _diagnosed(parser: str, *flags: str, answers=None):
    arguments = ("--tool-call-parser", parser, *flags)
    async with running_fake_engine(*arguments, answers=answers) as engine:
        return await _check(engine.url, parser)


async def test_a_parser_that_reads_the_calls_is_fine():
    """So is a model that answers in words: that tells nothing of the parser."""
    assert await _diagnosed("hermes", "--enable-auto-tool-choice") is None
    words = await _diagnosed("mistral", "--enable-auto-tool-choice", answers={"Paris": "Sunny."})
    assert words is None


async def test_a_parser_that_leaves_markup_is_named():
    """The evidence is the text, and the way out is another parser or none."""
    found = await _diagnosed("mistral", "--enable-auto-tool-choice")
    assert found is not None
    assert found.kind is FailureKind.TOOL_PARSER
    assert "'mistral'" in found.cause
    assert "<tool_call>" in found.evidence
    assert "--tool-call-parser" in found.fix


async def test_a_refusal_is_named_too():
    """Here the user forgot --enable-auto-tool-choice; the server's words say so."""
    found = await _diagnosed("hermes")
    assert found is not None
    assert "400" in found.cause
    assert "--enable-auto-tool-choice" in found.evidence


async def test_what_is_not_the_parser_s_fault_is_not_told_as_its():
    """A model with a short context cannot even be asked."""
    flags = ("--enable-auto-tool-choice", "--max-model-len", "64")
    assert await _diagnosed("hermes", *flags) is None


async def test_a_server_that_is_gone_tells_nothing():
    """The check only informs: it raises nothing."""
    assert await _check("http://127.0.0.1:1", "hermes") is None


@pytest.mark.slow
async def test_the_start_goes_on_and_says_what_is_wrong(start):
    """A model that works but for its tools is served; the diagnosis is among the notices."""
    extra = "--enable-auto-tool-choice --tool-call-parser mistral"
    async with start(extra_args=extra) as server:
        assert server.models
    assert any("'mistral' leaves calls as markup" in note for note in start.said)
    start.said.clear()
    async with start():
        pass
    assert not any("tool calls" in note for note in start.said)


@pytest.mark.parametrize(
    ("command", "parser"),
    [
        (("--tool-call-parser", "hermes", "--port", "1"), "hermes"),
        (("--tool-call-parser=hermes",), "hermes"),
        (("--port", "1"), None),
        (("--tool-call-parser",), None),
    ],
)
def test_the_parser_is_read_off_the_command_line(command, parser):
    """In either spelling."""
    assert tool_parser(command) == parser
