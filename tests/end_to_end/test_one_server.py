"""One real vLLM, started detached by the command line, asked in every way."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from tests.support.command_line import House, SharedServer

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.engines.vllm.wire import VLLM
from enginehouse.evaluation.records import Record, SampleRecord
from enginehouse.store.journal import read_journal
from enginehouse.tasks.base import Choose
from enginehouse.tasks.registry import load_task
from enginehouse.testing.check_engine import CASES, check
from enginehouse.tools import CallOutcome, Ladder, Step, call_tools

pytestmark = pytest.mark.engine


@pytest.fixture
def served(plain_vllm: SharedServer) -> SharedServer:
    """The server that these tests share with others."""
    return plain_vllm


async def test_conformance(served: SharedServer):
    """Every promise that the fake engine keeps, the real one keeps."""
    capabilities = VllmEngine().capabilities(None)
    async with HTTPSampler(served.url, capabilities=capabilities, wire=VLLM) as sampler:
        results = await check(sampler)
    lacking = {r.name: r.detail for r in results if r.outcome != "passed"}
    assert lacking.keys() == {"adapter", "tool_call"}
    assert lacking["adapter"] == "no adapter was named"
    assert "--tool-call-parser" in lacking["tool_call"]  # no place for tools in the template
    assert len(results) == len(CASES)


async def test_calls_are_valid_without_native_tools(served: SharedServer):
    """The server refuses native calls, and constrained decoding gives valid ones in their place."""

    def book_table(people: int, place: Literal["garden", "hall"]) -> None:
        """Book a table in a restaurant."""

    def cancel(number: int) -> None:
        """Cancel a booking."""

    ladder = Ladder()
    asked = [Message("user", "Book a table in the garden for two people.")]
    parameters = SamplingParameters(max_tokens=64)
    capabilities = VllmEngine().capabilities(None)
    async with HTTPSampler(served.url, capabilities=capabilities, wire=VLLM) as sampler:
        for choice, names in (("required", {"book_table", "cancel"}), ("cancel", {"cancel"})):
            result = await call_tools(
                sampler,
                asked,
                [book_table, cancel],
                choice=choice,
                parameters=parameters,
                max_calls=1,
                ladder=ladder,
            )
            assert (result.outcome, result.step) == (CallOutcome.CALLED, Step.CONSTRAINED)
            assert {call.name for call in result.calls} <= names
            first = result.attempts[0]
            assert (first.step, first.response) == (Step.NATIVE, None)
            assert "--tool-call-parser" in (first.why or "")


async def test_constrained_strings_hold_quotes_and_no_space_is_forced(served: SharedServer):
    """JSON is written compactly, and strings with a pattern or a length have JSON's escapes."""
    words = {"type": "string", "pattern": '^say "hi"$', "maxLength": 20}
    pair = {"type": "array", "items": {"enum": [1]}, "minItems": 2, "maxItems": 2}
    schema = {
        "type": "object",
        "properties": {"s": words, "n": pair, "o": {"const": {"a": 1, "b": [1, '"']}}},
        "required": ["s", "n", "o"],
        "additionalProperties": False,
    }
    request = SampleRequest(
        prompt=ChatPrompt((Message("user", "Write JSON."),)),
        parameters=SamplingParameters(
            max_tokens=64, structured=StructuredOutput(json_schema=schema)
        ),
    )
    capabilities = VllmEngine().capabilities(None)
    async with HTTPSampler(served.url, capabilities=capabilities, wire=VLLM) as sampler:
        response = await sampler.sample(request)
    wanted = {"s": 'say "hi"', "n": [1, 1], "o": {"a": 1, "b": [1, '"']}}
    assert response.completions[0].text == json.dumps(wanted, separators=(",", ":"))


def test_the_curl_line_works(served: SharedServer):
    """What `serve` prints can be pasted into a shell."""
    line = re.findall(r"^try: +(.*)$", served.said, re.MULTILINE)[0]
    run = ["bash", "-c", line]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["text"].strip()


def test_three_tasks(house: House, served: SharedServer):
    """`eval --url`: gsm8k, hellaswag and instructions, whole and with their own kinds of score."""
    words = [word for task in ("gsm8k", "hellaswag", "instructions") for word in ("-t", task)]
    done = house.run(
        "eval", "--url", served.url, *words, "--limit", "3", "--max-tokens", "64", "--json"
    )
    assert done.code == 0, done.err
    report = done.report
    assert report["complete"]
    assert {task["task"]: task["samples"] for task in report["tasks"]} == {
        "gsm8k": 3,
        "hellaswag": 3,
        "instructions": 3,
    }
    for task in report["tasks"]:
        assert task["subset"]
        assert task["headline"] is not None
        assert task["outcomes"]["failed"] == 0
        assert sum(task["outcomes"].values()) == 3
    assert report["throughput"]["requests"] == 3 + 12 + 3
    (provenance,) = report["provenance"]
    assert provenance["engine_version"].startswith("0.")
    assert provenance["weights_digest"] is None
    samples = asked(Path(report["folder"]))
    for sample in samples["gsm8k"]:
        (completion,) = sample.responses[0].completions
        assert completion.token_ids is not None
        assert len(completion.token_ids) == sample.responses[0].completion_tokens
    check_loglikelihoods(served.url, samples["hellaswag"][0])


def asked(run: Path) -> dict[str, list[SampleRecord]]:
    """The journaled samples by task, in the order of their positions."""
    found: dict[str, list[SampleRecord]] = {}
    for entry in read_journal(run / "journal.jsonl", Record):
        if isinstance(entry.record, SampleRecord):
            found.setdefault(entry.record.task, []).append(entry.record)
    return {task: sorted(found[task], key=lambda sample: sample.position) for task in found}


def check_loglikelihoods(url: str, sample: SampleRecord) -> None:
    """They are those of a plain request with the text and `echo`, summed over the ending."""
    task = load_task("hellaswag")
    items = {item.id: item for item in task.load(data=None, seed=0).items}
    question = task.ask(items[sample.item])
    assert isinstance(question, Choose)
    assert sample.continuations is not None
    for ending, found in zip(question.continuations, sample.continuations, strict=True):
        body = {"prompt": question.context + ending, "echo": True, "logprobs": 0}
        body |= {"model": "smollm2", "max_tokens": 1, "temperature": 0}
        (choice,) = ask(f"{url}/v1/completions", body)["choices"]
        logprobs = choice["logprobs"]
        start = logprobs["text_offset"].index(len(question.context))
        own = logprobs["token_logprobs"][start:-1]  # the last one is generated
        assert len(own) == len(found.logprobs)
        assert sum(own) == pytest.approx(found.loglikelihood, rel=0.02)


def ask(url: str, body: dict[str, Any]) -> Any:
    """POST JSON, without the client."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, msgspec.json.encode(body), headers)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def test_hf_gives_hellaswag_the_same_loglikelihoods(house: House, served: SharedServer):
    """`eval --engine hf` asks the same items and scores their endings as vLLM does."""

    def endings(*words: str) -> dict[str, list[float]]:
        done = house.run("eval", *words, "-t", "hellaswag", "--limit", "3", "--json")
        assert done.code == 0, done.err
        samples = asked(Path(done.report["folder"]))["hellaswag"]
        return {s.item: [c.loglikelihood for c in s.continuations or ()] for s in samples}

    expected = endings("--url", served.url)
    found = endings("smollm2", "--engine", "hf", "--dtype", "float32")
    assert found.keys() == expected.keys()
    for item, values in expected.items():
        assert found[item] == pytest.approx(values, rel=0.02)


def test_greedy_answers_come_again(house: House, served: SharedServer):
    """The same seed asks the same items, and at temperature 0 gets the same answers."""

    def answers() -> list[tuple[str, str]]:
        words = ("-t", "instructions", "--limit", "2", "--seed", "5", "--concurrency", "1")
        done = house.run("eval", "--url", served.url, *words, "--max-tokens", "16", "--json")
        assert done.code == 0, done.err
        samples = asked(Path(done.report["folder"]))["instructions"]
        return [(sample.item, sample.responses[0].completions[0].text) for sample in samples]

    first = answers()
    assert len(first) == 2
    assert answers() == first


def test_bench_counts_are_the_servers(house: House, served: SharedServer):
    """Exact lengths, no help from the prefix cache on a second run, and its own counters agree."""
    words = ("--input-tokens", "48", "--output-tokens", "8", "--requests", "4")
    for concurrency in ("1,4", "4"):
        done = house.run("bench", served.url, *words, "--concurrency", concurrency, "--json")
        assert done.code == 0, done.err
        for load in done.report["loads"]:
            assert (load["failed"], load["notes"]) == (0, [])
            assert (load["prompt_tokens"], load["output_tokens"]) == (4 * 48, 4 * 8)
            assert load["server"]["prompt_tokens"] == 4 * 48
            assert load["server"]["output_tokens"] == 4 * 8
            assert load["server"]["prefix_cache_hits"] == 0
            latencies = load["latencies"]
            assert 0 < latencies["per_output_token"]["p50"] < latencies["end_to_end"]["p50"]


def test_top_shows_it(served: SharedServer):
    """Its queue, cache and processes."""
    done = served.house.run("top", "--once", "--interval", "0.5", "--json")
    (server,) = (one for one in done.report["servers"] if one["name"] == served.name)
    assert (server["state"], server["problem"]) == ("ready", None)
    assert (server["running"], server["waiting"]) == (0, 0)
    assert server["processes"] > 1
    assert server["rss_bytes"] > 1 << 30
    assert server["kv_cache_usage"] is not None
