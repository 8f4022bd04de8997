"""What goes where: results, notes, JSON, colours; on a terminal and into a pipe."""

from __future__ import annotations

import re

import pytest
from tests.support.command_line import House, sums
from tests.support.terminals import on_a_terminal

ESCAPE, BOLD, FAILURE = "\x1b[", "\x1b[1m", "\x1b[1;31m"


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """An `eval` with a failed sample (shown in red) that has a score all the same."""
    house.model()
    items, canned = sums(right=5, failed=1)
    words = ("--task", str(house.task(items)), "--max-model-len", "512", "--max-failed", "0.5")
    return ("eval", "tiny", *words, "--env", house.answers(canned))


@pytest.mark.slow
def test_a_pipe_gets_plain_text(house: House, call, words: tuple[str, ...]):
    """No escape code on either stream; progress in lines."""
    done = call(*words)
    assert done.code == 0, done.err
    assert ESCAPE not in done.out + done.err
    assert "\r" not in done.out + done.err
    assert re.search("6/6 samples, .*1 failed", done.err)
    for command in (("runs",), ("show", house.runs[0].name), ("tasks",), ("ps",), ("envs",)):
        shown = call(*command)
        assert ESCAPE not in shown.out + shown.err


@pytest.mark.slow
def test_a_terminal_gets_colours_and_a_bar(house: House, words: tuple[str, ...]):
    """A bar that is redrawn in place, bold names, failures in red."""
    code, screen = on_a_terminal(house, *words)
    assert code == 0, screen
    assert BOLD in screen
    assert "━" in screen
    assert "\x1b[1A" in screen  # up: the bar is drawn over itself
    assert re.search("6/6 samples, .*1 failed", screen)
    assert FAILURE in screen


@pytest.mark.slow
def test_no_color_is_obeyed(house: House, call, words: tuple[str, ...]):
    """NO_COLOR takes the colours away, on a terminal too."""
    assert call(*words).code == 0
    code, screen = on_a_terminal(house, "show", house.runs[0].name, NO_COLOR="1")
    assert code == 0
    assert "sums" in screen
    assert FAILURE not in screen
    assert not [code for code in range(30, 48) if f"[{code}m" in screen or f";{code}m" in screen]


@pytest.mark.slow
def test_a_dumb_terminal_gets_lines(house: House, words: tuple[str, ...]):
    """Where the cursor cannot move there is no bar."""
    code, screen = on_a_terminal(house, *words, TERM="dumb")
    assert code == 0, screen
    assert "\x1b[1A" not in screen
    assert re.search("6/6 samples, .*1 failed", screen)


@pytest.mark.slow
def test_json_is_alone_on_standard_output(house: House, call, words: tuple[str, ...]):
    """Notes go elsewhere, so that a program can read every result."""
    assert call(*words, "--json").report["complete"]
    name = house.runs[0].name
    for command in (("runs",), ("show", name), ("show", name, "--sample", "1"), ("tasks",)):
        assert call(*command, "--json").report
    for command in (("ps",), ("envs",)):
        assert call(*command, "--json").report == []
    plan = call("install", "vllm", "--plan", "--variant", "cuda", "--json").report
    assert plan["variant"] == "cuda"
