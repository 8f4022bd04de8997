"""What models, servers and file names say never reaches the terminal as commands to it."""

from __future__ import annotations

import json
import sys

import pytest
from tests.support.command_line import House
from tests.support.foreign_server import fake_engine
from tests.support.terminals import on_a_terminal

CLIPBOARD, CLEAR, TITLE = "\x1b]52;c;ZXZpbA==\x07", "\x1b[2J\x1b[1;1H", "\x1b]0;root@host\x1b\\"
LINK, C1, BIDI = "\x1b]8;;http://evil.example\x07", "\x9b2J\x9d0;x\x9c", "\u202efdp.exe\u2066"
HOSTILE = f"[red]It{CLIPBOARD} is{CLEAR}{TITLE}{LINK}{C1}{BIDI} 42\r."
# What a terminal would obey; our own colours and cursor movements are none of these.
OBEYED = ("\x1b]", "\x1b[2J", "\x1b[1;1H", "\x9b", "\x9d", "\x07", "\u202e", "\u2066")


def harmless(text: str) -> str:
    """`text`, which a terminal shows as it stands."""
    assert [sequence for sequence in OBEYED if sequence in text] == []
    return text


@pytest.fixture
def task(house: House) -> str:
    """A task with hostile questions, items and rejected prompts."""
    items = [
        {"ask": f"What is 6 x 7? {HOSTILE}", "right": "42", "id": f"one{TITLE}"},
        {"ask": f"refuse me {HOSTILE}", "right": "1", "id": "two"},
    ]
    return str(house.task(items, name="sums", max_tokens=400))


FAULTS = [{"fault": "status", "status": 400, "match": "refuse me", "message": f"no: {HOSTILE}"}]


@pytest.mark.slow
def test_of_a_run(house: House, call, task: str):
    """The report, a sample with prompt and answer, a failure, lists: on a terminal and off it."""
    answers = house.answers({"What is": HOSTILE})
    env = {"VLLM_FAKE_ANSWERS": answers.partition("=")[2], "VLLM_FAKE_FAULTS": json.dumps(FAULTS)}
    with fake_engine("--served-model-name", f"m{CLIPBOARD}{C1}{BIDI}", **env) as url:
        words = ("eval", "--url", url, "--task", task, "--max-failed", "0.9")
        code, screen = on_a_terminal(house, *words, LANG="C.UTF-8")
        assert code == 0, screen
        assert "\\x1b]52;c;" in harmless(screen)
        name = house.runs[0].name
        commands = [("show", name), ("runs",), ("resume", name)]
        commands += [("show", name, "--sample", number) for number in "12"]
        commands += [("check", url), ("top", "--url", url, "--once", "-i", "0.1")]
        for command in commands:
            plain = call(*command)
            assert plain.out
            harmless(plain.out + plain.err)
        for command in commands[3:5]:  # `call` has no terminal
            _, screen = on_a_terminal(house, *command)
            assert screen
            harmless(screen)
        shown = call("show", name, "--sample", "1").out
        assert "[red]It\\x1b]52;c;" in shown
        for command in (("show", name), ("show", name, "--sample", "1"), ("runs",)):
            exact = call(*command, "--json")
            harmless(exact.out)
            assert exact.report
        sample = call("show", name, "--sample", "1", "--json").report
        assert sample["responses"][0]["completions"][0]["text"] == HOSTILE


@pytest.mark.slow
def test_of_a_conversation(house: House):
    """Piece by piece on a terminal; a program gets the answer as it is."""
    answers = house.answers({"": HOSTILE})
    with fake_engine(VLLM_FAKE_ANSWERS=answers.partition("=")[2]) as url:
        chat = (sys.executable, "-m", "enginehouse", "chat", "--url", url)
        running = house.start_program(["/bin/sh", "-c", 'echo hello | "$@"', "sh", *chat])
        piped = running.end()
        assert piped.code == 0, piped.err
        assert running.out.read_bytes() == HOSTILE.encode() + b"\n"
        code, screen = on_a_terminal(house, "chat", "--url", url, typed="hello\n/exit\n")
        assert code == 0, screen
        assert "It\\x1b]52;c;ZXZpbA==\\x07 is" in harmless(screen.partition("> ")[2])


@pytest.mark.slow
def test_of_an_error_and_a_log(house: House, call):
    """A server's error text, and what an engine printed."""
    with fake_engine(VLLM_FAKE_FAULTS=json.dumps([{**FAULTS[0], "match": ""}])) as url:
        house.write("prompts.jsonl", json.dumps({"prompt": "refuse me"}) + "\n")
        words = ("sample", "--url", url, "--prompts", "prompts.jsonl", "--out", "out.jsonl")
        code, screen = on_a_terminal(house, *words)
        assert code == 6
        assert "\\x1b]52" in harmless(screen)
    house.write("evil.yaml", json.dumps({"tasks": [HOSTILE], HOSTILE: 1}))
    refused = call("eval", "--config", "evil.yaml")
    assert refused.code == 2
    harmless(refused.err)
