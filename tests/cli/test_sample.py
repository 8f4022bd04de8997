"""`enginehouse sample`: no sample lost, none asked twice, whatever happens in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.command_line import House, until
from tests.support.foreign_server import fake_engine, fake_engine_process


@pytest.fixture
def url(house: House) -> Iterator[str]:
    """A server that somebody else runs."""
    with fake_engine() as url:
        yield url


def prompts(house: House, count: int, **common: Any) -> Path:
    """A file of prompts, all different."""
    lines = ({"prompt": f"Number {n}", "max_tokens": 8, **common} for n in range(count))
    return house.write("prompts.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def samples(house: House, name: str = "out.jsonl") -> list[Any]:
    """The results."""
    return [json.loads(line) for line in (house.work / name).read_text().splitlines()]


FILES = ("--prompts", "prompts.jsonl", "--out", "out.jsonl")


def test_a_line_for_every_prompt(house: House, call, url: str):
    """With its id, texts, ends, tokens and who answered; a table of one line besides."""
    prompts(house, 2, n=2, temperature=1.0)
    done = call("sample", url, *FILES)
    assert done.code == 0, done.err
    assert "2 of 2 prompts answered" in done.out
    first, second = sorted(samples(house), key=lambda line: line["id"])
    assert (first["id"], second["id"]) == (1, 2)
    assert len(first["texts"]) == len(first["finish_reasons"]) == 2
    assert first["prompt_tokens"] > 0
    assert first["completion_tokens"] > 0
    assert (first["model"], first["engine"], first["error"]) == ("theirs", "vllm", None)
    assert first["digest"] != second["digest"]


def test_again_asks_nothing(house: House, call, url: str):
    """Nor does it need the server then."""
    prompts(house, 3)
    assert call("sample", url, *FILES).code == 0
    before = (house.work / "out.jsonl").read_bytes()
    again = call("sample", "http://127.0.0.1:1", *FILES, "--json")
    assert (again.code, again.report["asked"], again.report["answered"]) == (0, 0, 3)
    assert (house.work / "out.jsonl").read_bytes() == before


def test_more_prompts_are_asked_and_changed_ones_refused(house: House, call, url: str):
    """Prompts may be added; a changed prompt or parameter is status 2, and changes nothing."""
    prompts(house, 3)
    assert call("sample", url, *FILES).code == 0
    prompts(house, 5)
    more = call("sample", url, *FILES, "--json")
    assert (more.code, more.report["asked"], more.report["answered"]) == (0, 2, 5)
    before = (house.work / "out.jsonl").read_bytes()
    for words in ((*FILES, "--temperature", "1"), (*FILES, "--seed", "3"), (*FILES, "--chat")):
        changed = call("sample", url, *words)
        assert changed.code == 2
    with fake_engine("--served-model-name", "another") as other:
        assert call("sample", other, *FILES).code == 0
        prompts(house, 6)
        changed = call("sample", other, *FILES)
        assert changed.code == 2
        assert "theirs" in changed.err
    assert (house.work / "out.jsonl").read_bytes() == before


@pytest.mark.slow
def test_failures_are_lines_and_are_asked_again(house: House, call):
    """Status 6 and the first failure in words; once it is fixed, each prompt has one line."""
    prompts(house, 6)
    faults = '[{"fault": "status", "status": 500, "match": "Number 4"}]'
    with fake_engine(VLLM_FAKE_FAULTS=faults) as url:
        done = call("sample", url, *FILES)
    assert done.code == 6
    assert "5 of 6 prompts answered, 1 failed" in done.out
    (failed,) = [line for line in samples(house) if line["error"]]
    assert (failed["id"], failed["texts"]) == (5, [])
    assert failed["error"].startswith("ServerFaultError: ")
    with fake_engine() as url:
        done = call("sample", url, *FILES, "--json")
    assert (done.code, done.report["asked"], done.report["answered"]) == (0, 1, 6)
    assert sorted(line["id"] for line in samples(house)) == [1, 2, 3, 4, 5, 6]
    assert not any(line["error"] for line in samples(house))


def test_a_constraint_that_the_server_refuses(house: House, call):
    """Is an error of its own line, too."""
    prompts(house, 4)
    message = "Unsupported JSON schema: minimum"
    faults = [{"fault": "status", "status": 400, "match": "Number 2", "message": message}]
    with fake_engine(VLLM_FAKE_FAULTS=json.dumps(faults)) as url:
        done = call("sample", url, *FILES)
    assert done.code == 6
    assert "3 of 4 prompts answered, 1 failed" in done.out
    (failed,) = [line for line in samples(house) if line["error"]]
    assert failed["error"].startswith("UnsupportedError: ")


def test_a_prompt_that_does_not_fit(house: House, call):
    """Is an error of its own line, at once; the others are answered."""
    prompts(house, 2)
    with (house.work / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"id": "long", "prompt": "again " * 999, "max_tokens": 8}) + "\n")
    with fake_engine("--max-model-len", "64") as url:
        assert call("sample", url, *FILES).code == 6
    errors = {line["id"]: line["error"] for line in samples(house)}
    assert errors[1] is None
    assert errors["long"].startswith("ContextOverflowError: ")


@pytest.mark.slow
def test_a_server_that_goes_loses_nothing(house: House, call):
    """Status 5; no prompt counts as failed for it, and the same command continues elsewhere."""
    prompts(house, 40)
    faults = '[{"fault": "die", "match": "Number 30", "signal": 9}]'
    with fake_engine_process(house, VLLM_FAKE_FAULTS=faults) as (url, _):
        done = call("sample", url, *FILES, "--concurrency", "2")
    assert done.code == 5, done.err
    answered = samples(house)
    assert 0 < len(answered) < 40
    assert not any(line["error"] for line in answered)
    with fake_engine() as url:
        done = call("sample", url, *FILES, "--json")
    assert (done.code, done.report["asked"]) == (0, 40 - len(answered))
    assert sorted(line["id"] for line in samples(house)) == list(range(1, 41))


@pytest.mark.slow
def test_kill_9_again_and_again(house: House):
    """At any moment: what was written stays as it is, and in the end every prompt has one line."""
    prompts(house, 120)
    out = house.work / "out.jsonl"
    with fake_engine(VLLM_FAKE_TOKEN_LATENCY="0.01") as url:
        for enough in (10, 35, 60):
            running = house.start("sample", url, *FILES, "--concurrency", "4")
            until(lambda: out.exists() and out.read_bytes().count(b"\n") >= enough, "no samples")  # noqa: B023
            running.kill()
            whole = out.read_bytes()
            with out.open("ab") as file:  # as if the kill had come within a write
                file.write(whole[: 40 + enough])
        done = house.run("sample", url, *FILES, "--json")
    assert done.code == 0, done.err
    assert 0 < done.report["asked"] <= 60
    assert out.read_bytes().startswith(whole)
    assert [line["error"] for line in samples(house)] == [None] * 120
    assert sorted(line["id"] for line in samples(house)) == list(range(1, 121))


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(house: House):
    """Status 130; a model that was served for it is stopped."""
    house.model()
    prompts(house, 500)
    running = house.start(
        "sample", "tiny", *FILES, "--concurrency", "2", "--env", "VLLM_FAKE_TOKEN_LATENCY=0.01"
    )
    out = house.work / "out.jsonl"
    until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 3, "no samples")
    running.interrupt()
    done = running.end()
    assert done.code == 130
    assert "out.jsonl" in done.err
    house.nothing_left()
    assert samples(house)[0]["weights"]


def test_printed_samples(house: House, call, url: str):
    """--out - prints them and nothing else on standard output; prompts may come from -."""
    prompts(house, 3)
    done = call("sample", url, "--prompts", "prompts.jsonl", "--out", "-")
    assert done.code == 0
    assert sorted(json.loads(line)["id"] for line in done.out.splitlines()) == [1, 2, 3]
    assert "-: 3 of 3 prompts answered" in done.err
    refused = call("sample", url, "--prompts", "prompts.jsonl", "--out", "-", "--json")
    assert (refused.code, refused.out) == (2, "")


def test_constraints(house: House, call, url: str):
    """--choice, --schema."""
    prompts(house, 2)
    assert call("sample", url, *FILES, "--choice", "zebra,otter").code == 0
    assert {line["texts"][0] for line in samples(house)} <= {"zebra", "otter"}
    house.write("schema.json", '{"type": "object", "properties": {"a": {"const": 1}}}')
    words = ("--prompts", "prompts.jsonl", "--out", "json.jsonl", "--schema", "schema.json")
    assert call("sample", url, *words, "--max-tokens", "64").code == 0
    assert call("sample", url, *words, "--choice", "a").code == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--out", "o"), 2, "'prompts'"),
        (("--prompts", "nowhere", "--out", "o"), 2, "nowhere"),
        (("--prompts", "empty", "--out", "o"), 2, "empty"),
        (("--prompts", "broken", "--out", "o"), 2, "broken, line 3"),
        (("--prompts", "prompts.jsonl", "--out", "prompts.jsonl"), 2, "--out"),
        (("--prompts", "prompts.jsonl", "--out", "diary"), 8, "diary, line 1"),
        (("--prompts", "prompts.jsonl", "--out", "/dev/full"), 8, "/dev/full"),
        ((*FILES, "--n", "2"), 2, "greedy"),
        ((*FILES, "--engine", "vlm"), 2, "'vllm'?"),
        (FILES, 6, "http://127.0.0.1:1"),
    ],
)
def test_wrong_usage(house: House, call, words: tuple[str, ...], code: int, said: str):
    """What is wrong, and nothing that was there is changed."""
    before = prompts(house, 2).read_bytes()
    house.write("empty", "\n")
    house.write("broken", '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt: "c"}\n')
    house.write("diary", "Dear diary,\n")
    done = call("sample", "http://127.0.0.1:1", *words)
    assert done.code == code, done.err
    assert said in done.err
    assert (house.work / "prompts.jsonl").read_bytes() == before
    assert (house.work / "diary").read_text() == "Dear diary,\n"


def test_what_the_engine_lacks_is_refused_before_anything_is_sent(house: House, call, url: str):
    """By the prompt's id, with the way out."""
    house.write("prompts.jsonl", '{"id": "x", "messages": [{"role": "user", "content": "a"}]}\n')
    done = call("sample", "theirs", "--url", url, "--engine", "megatron", *FILES)
    assert done.code == 6
    assert "prompt 'x': megatron" in done.err
    assert (house.work / "out.jsonl").read_bytes() == b""
