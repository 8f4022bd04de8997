"""The real vLLM dies under work, of the crashes that requests can cause."""

from __future__ import annotations

import random

import pytest
from tests.support.command_line import House, journaled

pytestmark = pytest.mark.engine

WORDS = [
    "seven",
    "wise",
    "owls",
    "watch",
    "the",
    "quick",
    "brown",
    "fox",
    "jump",
    "over",
    "a",
    "dog",
]


def check(house: House, done, *, samples: int) -> list[dict[str, object]]:
    """Exit code 0, every sample there once and none failed, nothing left; gives the incidents."""
    assert done.code == 0, done.err
    (run,) = [run for run in house.runs if run.name == done.report["run"]]
    state = journaled(run)
    assert len(state.samples) == samples
    assert {*state.samples.values(), *state.scores.values()} == {1}
    assert "failed" not in state.counts()
    house.nothing_left()
    return done.report["incidents"]


def test_seeded_requests_with_chunked_prefill(house: House):
    """With the avoidance off they kill vLLM; the run completes, and its report names the crash.

    Each prompt fits into one step; in company they do not, and are computed in pieces.
    """
    rng = random.Random(0)
    long = [" ".join(rng.choice(WORDS) for _ in range(400)) for _ in range(4)]
    items = [{"ask": text + " And then?", "right": "1"} for text in (*long, *WORDS[:2])]
    task = house.task(items, name="long", max_tokens=8)
    words = ("--task", str(task), "--temperature", "0.8", "--no-avoid-quirks", "--json")
    chunks = ("--max-model-len", "1024", "--extra-args", "--max-num-batched-tokens 512")
    incidents = check(house, house.run("eval", "smollm2", *words, *chunks), samples=6)
    assert incidents
    assert {incident["kind"] for incident in incidents} == {"engine_died"}
    assert all("offset" in str(incident["evidence"]) for incident in incidents)


def test_prompt_logprobs_with_lora(house: House):
    """With the avoidance off they kill vLLM in company; the run completes and names the crash.

    With the avoidance on they do not, in a run of the same moment: each has a vLLM of its own.
    """
    words = ("eval", "smollm2", "--task", "hellaswag", "--limit", "2", "--enable-lora", "--json")
    words += ("--dtype", "float32")
    both = [house.start(*words, *more) for more in (("--no-avoid-quirks",), ())]
    done, avoided = [running.end() for running in both]
    incidents = check(house, done, samples=2)
    assert incidents
    assert {incident["kind"] for incident in incidents} == {"engine_died"}
    assert all("einsum" in str(incident["evidence"]) for incident in incidents)
    report = house.run("show", done.report["run"]).out
    assert "prompt log-probabilities" in report
    assert check(house, avoided, samples=2) == []
    assert avoided.report["complete"]
    assert avoided.report["tasks"][0]["metrics"] == done.report["tasks"][0]["metrics"]
