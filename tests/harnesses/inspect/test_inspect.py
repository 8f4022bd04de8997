"""The real Inspect, against the fake engine, and once against vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support import command_line
from tests.support.deployments import opened
from tests.support.gated_hub import gated_hub
from tests.support.inspect_tasks import CAPITALS, answers, write_inspect_tasks
from tests.support.processes import command_of

from enginehouse.core.errors import ConfigurationError, HarnessError
from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.deployment.configuration import AskConfig, parse
from enginehouse.gateway.configuration import GatewayOptions, GatewaySettings
from enginehouse.gateway.service import Gateway, open_gateway
from enginehouse.harnesses.base import (
    HarnessEndpoint,
    HarnessProgress,
    HarnessResult,
    HarnessSettings,
)
from enginehouse.harnesses.registry import load_harness
from enginehouse.jobs.task_names import foreign_spellings, resolve_task
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.tasks.base import Outcome
from enginehouse.testing.check_harness import Subject, check_harness
from enginehouse.testing.fake_engine.process import running_fake_engine

pytestmark = pytest.mark.engine

HERMES = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


class Trial:
    """Runs of Inspect in a folder of the test's own."""

    def __init__(self, folder: Path, environment: EngineEnvironment) -> None:
        self.folder = folder
        self.environment = environment
        self.tasks = write_inspect_tasks(folder / "tasks")
        self.requests = folder / "requests.jsonl"
        self.supports = frozenset(Capability)
        self.chat = True
        self.model = "fake-model"
        self.heard: list[HarnessProgress] = []

    @property
    def context(self) -> Context:
        """Of which Inspect uses the caches."""
        places = {name: self.folder / name for name in ("cache", "state", "config")}
        return Context(layout=Layout(**places))

    def endpoint(self, url: str, *, api_key: str = "key") -> HarnessEndpoint:
        """The fake engine, or a gateway before it."""
        return HarnessEndpoint(
            url=url,
            api_key=api_key,
            model=self.model,
            tokenizer=None,
            chat=self.chat,
            capabilities=Capabilities(supports=self.supports),
            concurrency=4,
        )

    async def run(self, url: str, *tasks: str, **settings: Any) -> Sequence[HarnessResult]:
        """Run tasks of `write_inspect_tasks`."""
        return await load_harness("inspect").run(
            tasks,
            endpoint=self.endpoint(url),
            settings=HarnessSettings(include_path=self.tasks, **settings),
            environment=self.environment,
            folder=self.folder / "run",
            context=self.context,
            progress=self.heard.append,
        )

    async def refusal(self, *tasks: str, **settings: Any) -> HarnessError:
        """The error of a run that asks nothing: there is nobody to answer."""
        with pytest.raises(HarnessError) as raised:
            await self.run("http://127.0.0.1:9", *tasks, **settings)
        return raised.value

    def bodies(self) -> list[dict[str, Any]]:
        """What the engine was asked."""
        if not self.requests.exists():
            return []
        lines = self.requests.read_text().splitlines()
        return [line["body"] for line in map(json.loads, lines) if "messages" in line["body"]]

    @asynccontextmanager
    async def engine(self, *flags: str, latency: float = 0.0) -> AsyncIterator[str]:
        """The URL of an engine that looks up capitals, if it is started for tools."""
        async with running_fake_engine(
            *flags,
            answers=answers(),
            token_latency=latency,
            env={"VLLM_FAKE_REQUESTS": str(self.requests)},
        ) as engine:
            yield engine.url

    @asynccontextmanager
    async def gateway(self, url: str) -> AsyncIterator[Gateway]:
        """A gateway that answers the requests of an interrupted run from its journal."""
        plan = parse(AskConfig, {"url": url}, origin="test")
        options = GatewayOptions(
            settings=GatewaySettings(record=self.folder / "journal", resume=True)
        )
        async with (
            opened(plan) as deployment,
            open_gateway(deployment, options, self.context) as gateway,
        ):
            yield gateway


@pytest.fixture(scope="module")
def tool_vllm(real_house: command_line.House) -> Iterator[str]:
    """The URL of a vLLM with SmolLM2 that takes tools."""
    # With hermes, vLLM 0.32 makes a grammar of the tools that guidance refuses on this machine.
    tools = "--enable-auto-tool-choice --tool-call-parser pythonic"
    words = ("--max-model-len", "2048", "--dtype", "float32", "--extra-args", tools)
    begun = real_house.run("serve", "smollm2", "--detach", "--name", "tools", *words)
    assert begun.code == 0, begun.err
    yield re.findall(r"^url: +(http://\S+)/v1$", begun.out, re.MULTILINE)[0]
    assert real_house.run("stop", "tools").code == 0


@pytest.fixture
def trial(tmp_path: Path, inspect_environment: EngineEnvironment) -> Trial:
    """A folder to run Inspect in."""
    return Trial(tmp_path, inspect_environment)


async def test_a_task_with_tools_calls_them_and_is_read_whole(trial: Trial) -> None:
    """The dialogue with calls, both scorers, the task's version, and nothing in the home."""
    async with trial.engine(*HERMES) as url:
        (result,) = await trial.run(url, "capitals.py@capitals", max_tokens=99, temperature=0.0)
    assert (result.task, result.task_version) == ("capitals.py@capitals", "2-B")
    assert result.headline == "accuracy (includes)"
    figures = {metric.label: metric for metric in result.metrics}
    assert figures["accuracy (includes)"].value == pytest.approx(5 / 6)
    assert figures["accuracy (includes)"].standard_error == pytest.approx(1 / 6)
    assert set(figures) == {"accuracy (includes)", "mean (exact)"}
    assert [sample.item for sample in result.samples] == [name.lower() for name in CAPITALS]
    assert [s.outcome for s in result.samples] == [*[Outcome.CORRECT] * 5, Outcome.WRONG]
    first = result.samples[0]
    assert (first.prompt, first.target) == ("What is the capital of France?", "Paris")
    assert first.answer == (
        'assistant: [calls look_up({"country":"France"})]\n\n'
        "tool look_up: Paris\n\n"
        "user: Now in one word: What is the capital of France?\n\n"
        "assistant: Paris"
    )
    assert {label: measure.value for label, measure in first.measures.items()} == {
        "accuracy (includes)": 1.0,
        "mean (exact)": 1.0,
    }
    assert (result.full_size, result.source) == (6, "countries.jsonl")
    body = trial.bodies()[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("fake-model", 0.0, 99)
    assert body["tools"][0]["function"]["name"] == "look_up"
    assert trial.heard[0] == HarnessProgress(task=result.task, done=0, total=6)
    assert trial.heard[-1] == HarnessProgress(task=result.task, done=6, total=6)


async def test_settings_reach_the_requests_and_the_items(trial: Trial) -> None:
    """Repeats go without a seed, as all of one item would have the same answer."""
    async with trial.engine() as url:
        (once,) = await trial.run(
            url, "single.py", seed=5, top_p=0.9, top_k=7, system="Be brief.", temperature=0.5
        )
        (twice,) = await trial.run(url, "capitals.py@plain", seed=5, samples=2, limit=2)
    assert once.task == "single.py"
    first, *others = trial.bodies()
    assert (first["seed"], first["top_p"], first["top_k"]) == (5, 0.9, 7)
    assert [m["role"] for m in first["messages"]] == ["system", "user"]
    assert not any("seed" in body for body in others)
    places = [(sample.item, sample.position, sample.repeat) for sample in twice.samples]
    assert places == [("france", 0, 0), ("france", 0, 1), ("japan", 1, 0), ("japan", 1, 1)]
    assert (len(others), twice.full_size) == (4, 6)


async def test_an_unseeded_shuffle_takes_the_same_items_again(trial: Trial) -> None:
    """Or a run that is resumed would ask about others."""
    async with trial.engine() as url:
        (first,) = await trial.run(url, "capitals.py@shuffled", limit=3)
        (second,) = await trial.run(url, "capitals.py@shuffled", limit=3)
    items = [sample.item for sample in first.samples]
    assert items == [sample.item for sample in second.samples]
    assert items != [name.lower() for name in CAPITALS][:3]
    assert first.configuration_digest == second.configuration_digest


async def test_a_model_without_a_chat_template_is_asked_in_plain_text(trial: Trial) -> None:
    """Conversations are beyond it."""
    trial.chat = False
    async with trial.engine() as url:
        (result,) = await trial.run(url, "capitals.py@plain", limit=2)
        assert all(sample.answer for sample in result.samples)
        assert trial.bodies() == []
        with pytest.raises(HarnessError) as raised:
            await trial.run(url, "capitals.py@conversation")
    assert raised.value.kind == "needs_chat"


@pytest.mark.parametrize("known", ["beforehand", "from the engine"])
async def test_tools_need_an_engine_that_has_them(trial: Trial, known: str) -> None:
    """Whether that is known beforehand or the engine refuses them, the task ends at once."""
    if known == "beforehand":
        trial.supports -= {Capability.TOOLS}
    async with trial.engine() as url:
        with pytest.raises(HarnessError) as raised:
            await trial.run(url, "capitals.py@capitals")
    assert raised.value.kind == "needs_tools"
    if known == "beforehand":
        assert trial.bodies() == []


@pytest.mark.parametrize(
    ("task", "kind", "words"),
    [
        ("capitals.py@capital", "unknown_task", "did you mean capitals.py@capitals?"),
        ("capitals.py", "unknown_task", "capitals.py@broken, capitals.py@capitals"),
        ("capital.py", "unknown_task", "did you mean capitals.py?"),
        ("gsm8k", "unknown_task", "did you mean inspect_evals/gsm8k"),
        ("capitals.py@on_the_hub", "data_unreachable", "HF_HOME"),
        ("capitals.py@contained", "needs_sandbox", "Docker"),
        ("capitals.py@in_need", "needs_package", "package_of_nobody"),
        ("capitals.py@broken", "task_failed", "the task is broken"),
    ],
)
async def test_a_task_that_cannot_run_says_why(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, task: str, kind: str, words: str
) -> None:
    """Each in its own words, before anything is asked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    error = await trial.refusal(task)
    assert error.kind == kind
    assert words in str(error)


@pytest.mark.parametrize("token", [None, "hf_of_somebody_else"])
async def test_gated_data(trial: Trial, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    """What the libraries of the hub raise is understood."""
    monkeypatch.setenv("HF_HOME", str(trial.folder / "hub"))
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    async with gated_hub() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        error = await trial.refusal("capitals.py@on_the_hub")
    assert error.kind == "gated_data"
    assert "HF_TOKEN" in str(error)


async def test_settings_that_it_does_not_have_are_refused(trial: Trial) -> None:
    """Few-shot examples are arguments of tasks; a wrong argument is not merely warned of."""
    with pytest.raises(ConfigurationError, match="few-shot"):
        load_harness("inspect").check(HarnessSettings(few_shot=3))
    error = await trial.refusal("capitals.py@capitals", arguments={"greetings": "Hello"})
    assert (error.kind, error.fix) == ("unknown_argument", "its arguments: greeting")


async def test_killed_and_run_again_it_asks_nothing_twice(trial: Trial) -> None:
    """Behind the gateway that its first try was recorded by, down to the turns of a sample."""
    task = "capitals.py@capitals"
    async with trial.engine(*HERMES, latency=0.05) as url:
        async with trial.gateway(url) as gateway:
            running = asyncio.create_task(trial.run(gateway.url, task))
            while len(trial.bodies()) < 7 and not running.done():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            (inspect,) = [
                child
                for child in psutil.Process().children(recursive=True)
                if any("inspect_eval.py" in word for word in command_of(child))
            ]
            os.kill(inspect.pid, signal.SIGKILL)
            with pytest.raises(HarnessError) as raised:
                await running
            assert raised.value.kind == "ended"
        async with trial.gateway(url) as gateway:
            (result,) = await trial.run(gateway.url, task)
            assert gateway.figures().replayed > 0
    assert [s.outcome for s in result.samples] == [*[Outcome.CORRECT] * 5, Outcome.WRONG]
    asked = Counter(json.dumps(body["messages"]) for body in trial.bodies())
    # Those in flight when it was killed may have reached the engine without an answer.
    assert sum(asked.values()) - len(asked) <= 4
    assert len(asked) == 12


async def test_it_keeps_to_its_folders(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs and everything else are in the run's folder and our cache, none in the home."""
    home = trial.folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    async with trial.engine() as url:
        await trial.run(url, "single.py")
    assert list(home.rglob("*")) == []
    run = trial.folder / "run"
    assert len(list((run / "logs").glob("*.eval"))) == 1
    assert "\x1b" not in (run / "inspect.log").read_text()
    assert b"key" not in (run / "request.json").read_bytes().replace(b'"api_key', b"")


async def test_the_tasks_of_packages_and_of_a_folder_are_listed(trial: Trial) -> None:
    """With what they are about, where the package says so."""
    tasks = await load_harness("inspect").list_tasks(
        trial.environment, include_path=trial.tasks, context=trial.context
    )
    by_name = {task.name: task for task in tasks}
    assert {"inspect_evals/gsm8k", "capitals.py@plain", "single.py@single"} <= set(by_name)
    assert "Grade School" in by_name["inspect_evals/gsm8k"].description
    assert len(tasks) > 200


async def test_it_has_the_benchmarks_of_launch_files(trial: Trial) -> None:
    """Every name of the launcher's that stands for one of inspect_evals."""
    tasks = await load_harness("inspect").list_tasks(
        trial.environment, include_path=None, context=trial.context
    )
    known = {f"inspect:{task.name}" for task in tasks}
    meant = {resolve_task(name, base=trial.folder).name for name in foreign_spellings()}
    assert meant
    assert meant <= known


async def test_conformance(trial: Trial) -> None:
    """The suite of all harnesses."""
    async with trial.engine() as url:
        subject = Subject(
            harness=load_harness("inspect"),
            environment=trial.environment,
            endpoint=trial.endpoint(url),
            task="capitals.py@plain",
            folder=trial.folder / "cases",
            include_path=trial.tasks,
            context=trial.context,
        )
        assert await check_harness(subject) == []


async def test_a_tool_is_called_by_a_real_engine(trial: Trial, tool_vllm: str) -> None:
    """The task names the tool, so the engine has to call it; the result is in the next request."""
    trial.model = "smollm2"
    async with trial.gateway(tool_vllm) as gateway:
        (result,) = await trial.run(
            gateway.url, "capitals.py@made_to_call", limit=3, max_tokens=48, temperature=0.0
        )
    results = []
    for sample in result.samples:
        assert sample.failure is None
        call = re.search(
            r'calls look_up_one_of_three\({"country":"(\w+)"}\)\]\n\n'
            r"tool look_up_one_of_three: (\w+)\n\nuser: Now in one word",
            sample.answer or "",
        )
        assert call is not None, sample.answer
        assert CAPITALS[call[1]] == call[2]
        results.append(call[2])
    lines = (trial.folder / "journal" / "answers.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "request" in record]
    asked = [json.loads(record["request"])["messages"] for record in records]
    heard = [[m["content"] for m in messages if m["role"] == "tool"] for messages in asked]
    assert sorted(map(str, heard)) == sorted(map(str, [[], [], [], *([r] for r in results)]))


async def test_tools_with_a_real_engine(trial: Trial, tool_vllm: str) -> None:
    """SmolLM2 is too weak for right answers; each item is asked, answered and scored."""
    trial.model = "smollm2"
    async with trial.gateway(tool_vllm) as gateway:
        (result,) = await trial.run(
            gateway.url, "capitals.py@capitals", limit=3, max_tokens=24, temperature=0.0
        )
        asked = gateway.figures().requests
    assert {sample.item: sample.failure for sample in result.samples} == dict.fromkeys(
        ("france", "japan", "kenya")
    )
    assert asked >= 6
    for sample in result.samples:
        assert "user: Now in one word" in (sample.answer or "")
        assert sample.outcome in {Outcome.CORRECT, Outcome.WRONG, Outcome.TRUNCATED}
    assert {metric.label for metric in result.metrics} == {"accuracy (includes)", "mean (exact)"}
