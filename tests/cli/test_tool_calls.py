"""`enginehouse eval` of a task that asks for tool calls."""

from __future__ import annotations

import json

import yaml
from tests.support.command_line import House
from tests.support.foreign_server import fake_engine

FUNCTION = {
    "name": "go.to",
    "description": "Go there.",
    "parameters": {
        "type": "dict",
        "properties": {"place": {"type": "string", "enum": ["sea"]}},
        "required": ["place"],
    },
}


def _configured(house: House, **settings: object) -> str:
    folder = house.folder / "bfcl"
    (folder / "possible_answer").mkdir(parents=True, exist_ok=True)
    with (
        (folder / "questions.json").open("w") as questions,
        (folder / "possible_answer/questions.json").open("w") as answers,
    ):
        for place in range(6):
            asked = [[{"role": "user", "content": f"Go to the sea, part {place}."}]]
            question = {"id": f"q{place}", "question": asked, "function": [FUNCTION]}
            right = "sea" if place < 4 else "lake"
            answer = {"id": f"q{place}", "ground_truth": [{"go.to": {"place": [right]}}]}
            questions.write(json.dumps(question) + "\n")
            answers.write(json.dumps(answer) + "\n")
    task = {"name": "bfcl/simple_python", "data": str(folder / "questions.json")}
    file = house.folder / "tools.yaml"
    file.write_text(yaml.safe_dump({"tasks": [task], **settings}))
    return str(file)


def test_the_ladder_native_only_and_their_comparison(house: House, call):
    """Without a parser every call comes from constrained decoding, and none from native calls."""
    with fake_engine() as url:
        config = _configured(house, url=url)
        ladder = call("eval", "--config", config, "--json")
        assert ladder.code == 0, ladder.err
        (task,) = ladder.report["tasks"]
        assert (task["outcomes"]["correct"], task["outcomes"]["wrong"]) == (4, 2)
        assert task["metrics"]["schema_valid"]["value"] == 1.0
        shown = call("show", ladder.report["run"], "--sample", "1")
        assert "native: not supported" in shown.out
        assert 'call call_0: go_to {"place":"sea"}' in shown.out
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "mistral")
    with fake_engine(*flags) as url:
        config = _configured(house, url=url)
        native = call("eval", "--config", config, "--json", "--tool-steps", "native")
        assert native.code == 0, native.err
        (task,) = native.report["tasks"]
        assert task["outcomes"]["unparsable"] == 6, task["outcomes"]
        shown = call("show", native.report["run"], "--sample", "1")
        assert "wrong tool parser" in shown.out
    compared = call("compare", native.report["run"], ladder.report["run"])
    assert "A native; B native, constrained, prompted" in compared.out


def test_steps_that_do_not_exist_are_refused(house: House, call):
    """Nothing is started; the known ones are named."""
    config = _configured(house, url="http://127.0.0.1:1")
    for steps in ("natve", "native,native"):
        done = call("eval", "--config", config, "--tool-steps", steps)
        assert done.code == 2, done.err
        assert "tool_steps" in done.err
