"""The real lm-eval, against an endpoint that remembers what it was asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.support.gated_hub import GATED, gated_hub
from tests.support.lm_eval_tasks import CAPITALS, COUNTRIES, write_tasks
from tests.support.openai_endpoint import (
    BOS,
    UNLIKELY,
    OpenAIEndpoint,
    openai_endpoint,
    write_byte_tokenizer,
)
from tests.support.processes import command_of

from enginehouse.core.errors import HarnessError
from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.harnesses.base import (
    HarnessEndpoint,
    HarnessProgress,
    HarnessResult,
    HarnessSettings,
)
from enginehouse.harnesses.contents import contents_of
from enginehouse.harnesses.registry import load_harness
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.tasks.base import Outcome
from enginehouse.testing.check_harness import CASES, Subject, check_harness

pytestmark = pytest.mark.engine

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
# All but two of the capitals are right.
KNOWN = tuple(
    f"The capital of {country} is {capital}"
    for country, capital in list(zip(COUNTRIES, CAPITALS, strict=True))[:4]
)


def answer_sum(question: str) -> str:
    """The sum, in words if it is 4, and wrong if it is more than 6."""
    total = 2 * int(question.split(maxsplit=1)[0])
    return "It is 4." if total == 4 else str(min(total, 6))


class Trial:
    """Runs of lm-eval in a folder of the test's own."""

    def __init__(self, folder: Path, environment: EngineEnvironment) -> None:
        self.folder = folder
        self.environment = environment
        self.tasks = write_tasks(folder / "tasks")
        self.tokenizer: Path | None = write_byte_tokenizer(folder / "tokenizer")
        self.supports = frozenset(Capability)
        self.concurrency = 8
        self.chat = True
        self.max_model_len: int | None = None
        self.heard: list[HarnessProgress] = []

    def endpoint(self, endpoint: OpenAIEndpoint) -> HarnessEndpoint:
        """As a run describes it."""
        return HarnessEndpoint(
            url=endpoint.url,
            api_key="key",
            model="served",
            tokenizer=self.tokenizer,
            chat=self.chat,
            capabilities=Capabilities(supports=self.supports),
            concurrency=self.concurrency,
            max_model_len=self.max_model_len,
        )

    async def run(
        self, endpoint: OpenAIEndpoint, *tasks: str, **settings: Any
    ) -> Sequence[HarnessResult]:
        """Run tasks of `write_tasks`."""
        return await load_harness("lm-eval").run(
            tasks,
            endpoint=self.endpoint(endpoint),
            settings=HarnessSettings(include_path=self.tasks, **settings),
            environment=self.environment,
            folder=self.folder / "run",
            context=Context(),
            progress=self.heard.append,
        )

    async def refusal(self, endpoint: OpenAIEndpoint, *tasks: str, **settings: Any) -> HarnessError:
        """The error with which tasks end."""
        with pytest.raises(HarnessError) as raised:
            await self.run(endpoint, *tasks, **settings)
        return raised.value


@pytest.fixture
def trial(tmp_path: Path, lm_eval_environment: EngineEnvironment) -> Trial:
    """A folder to run lm-eval in."""
    return Trial(tmp_path, lm_eval_environment)


async def test_it_keeps_the_promises_of_every_harness(trial: Trial) -> None:
    """But for the list of its tasks, which takes long and is read in a test of its own."""
    async with openai_endpoint(answer=answer_sum) as endpoint:
        subject = Subject(
            harness=load_harness("lm-eval"),
            environment=trial.environment,
            endpoint=trial.endpoint(endpoint),
            task="sums",
            folder=trial.folder / "cases",
            include_path=trial.tasks,
        )
        cases = CASES.keys() - {"lists_its_tasks", "unknown_task"}
        assert await check_harness(subject, only=cases) == []


async def test_a_mixed_group_asks_each_kind_in_its_own_way(trial: Trial) -> None:
    """Chats for written answers; tokens with their BOS for choices; as many as may be in flight."""
    async with openai_endpoint(answer=answer_sum, likely=KNOWN) as endpoint:
        endpoint.at_once = 6
        results = await trial.run(endpoint, "mixed", system="Be brief.", seed=5)

    group, capitals, sums = sorted(results, key=lambda result: (not result.subtasks, result.task))
    assert group.subtasks == ("sums", "capitals")
    assert group.headline == "acc"
    assert group.metrics[0].value == pytest.approx(4 / 6)
    assert capitals.metrics[0].value == pytest.approx(4 / 6)
    assert [s.outcome for s in capitals.samples][:4] == [Outcome.CORRECT] * 4
    assert capitals.samples[0].answer == capitals.samples[0].target == " Paris"
    assert [s.outcome for s in sums.samples] == [
        *[Outcome.CORRECT] * 2,
        Outcome.UNPARSABLE,
        Outcome.CORRECT,
        *[Outcome.WRONG] * 2,
    ]
    assert {m.label: m.value for m in sums.metrics}["exact_match (flexible)"] == pytest.approx(
        4 / 6
    )

    chat = endpoint.bodies(CHAT)[0]
    assert chat["model"] == "served"
    assert chat["seed"] == 5
    assert [message["role"] for message in chat["messages"]] == ["system", "user"]
    (tokens,) = endpoint.bodies(TEXT)[0]["prompt"]
    assert tokens.count(BOS) == 1
    assert tokens[0] == BOS
    assert len(endpoint.bodies(CHAT)) == 6
    assert len(endpoint.bodies(TEXT)) == 24
    assert trial.heard[-1] == HarnessProgress(task="mixed", done=12, total=12)


async def test_limits_examples_and_generation_are_passed_on(trial: Trial) -> None:
    """The examples of a chat are turns of it; choices are asked without a chat unless told to."""
    text = yaml.safe_load((trial.tasks / "sums.yaml").read_text())
    text |= {"fewshot_split": "test", "fewshot_config": {"sampler": "first_n"}}
    (trial.tasks / "sums.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    async with openai_endpoint(answer=lambda _: "0") as endpoint:
        (sums, letters) = await trial.run(
            endpoint, "sums", "letters", limit=2, few_shot=1, temperature=0.5, max_tokens=9
        )
    assert len(sums.samples) == 2
    assert sums.full_size == 6
    chat = endpoint.bodies(CHAT)[0]
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant", "user"]
    assert (chat["temperature"], chat["max_tokens"]) == (0.5, 9)
    # Rolling windows begin with one BOS, which is not scored.
    assert [body["prompt"][0][:2] for body in endpoint.bodies(TEXT)] == [[BOS, ord("T")]] * 2
    assert letters.metrics[0].name == "bits_per_byte"
    assert [sample.outcome for sample in letters.samples] == [None, None]


async def test_rolling_log_likelihoods_have_the_whole_concurrency(trial: Trial) -> None:
    """All windows of all documents are asked at once, and each document has the sum of its own."""
    write_tasks(trial.tasks, items=40)
    trial.concurrency = 40
    async with openai_endpoint(answer=str) as endpoint:
        endpoint.at_once = 40
        (letters,) = await trial.run(endpoint, "letters")
    texts = [f"Text {n}: a b c d e f g." for n in range(40)]
    bits = sum(map(len, texts)) * -UNLIKELY / log(2)
    assert letters.metrics[0].value == pytest.approx(bits / sum(map(len, texts)))
    assert len(endpoint.bodies(TEXT)) == 40


@pytest.mark.parametrize("lacking", ["capability", "tokenizer", "echo"])
async def test_log_likelihoods_need_an_engine_that_has_them(trial: Trial, lacking: str) -> None:
    """Where that is known, nothing is asked, not even of the task before."""
    if lacking == "capability":
        trial.supports -= {Capability.PROMPT_LOGPROBS}
    if lacking == "tokenizer":
        trial.tokenizer = None
    async with openai_endpoint(answer=answer_sum) as endpoint:
        endpoint.echoes = lacking != "echo"
        with pytest.raises(HarnessError) as raised:
            await trial.run(endpoint, "sums", "capitals", max_retries=0)
    kinds = {"tokenizer": "needs_tokenizer"}
    assert raised.value.kind == kinds.get(lacking, "needs_logprobs")
    assert bool(endpoint.requests) == (lacking == "echo")


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("asked", ["chat", "tokens", "choices"])
async def test_a_request_that_is_refused_ends_it_with_the_servers_words(
    trial: Trial, asked: str, concurrency: int
) -> None:
    """lm-eval has no samples that failed. Which one it was is said."""
    trial.chat, trial.concurrency = asked == "chat", concurrency
    task, field = ("capitals", "country") if asked == "choices" else ("sums", "question")
    file = trial.tasks / f"{task}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2][field] = "REFUSE"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with openai_endpoint(answer=answer_sum) as endpoint:
        error = await trial.refusal(endpoint, task, max_retries=0)
    assert error.kind == "request_failed"
    assert f"item 2 of {task}" in str(error)
    assert error.why == "too long by 7 tokens"


@pytest.mark.parametrize("asked", ["chat", "tokens"])
async def test_answers_that_end_at_the_token_limit_are_marked(trial: Trial, asked: str) -> None:
    """Of those that are wrong it is the outcome; lm-eval's figures are what they were."""
    trial.chat = asked == "chat"
    async with openai_endpoint(answer=answer_sum) as endpoint:
        (before,) = await trial.run(endpoint, "sums")
        endpoint.cut_off = ("0", "It is 4.")
        (sums,) = await trial.run(endpoint, "sums")
    assert [s.truncated for s in sums.samples] == [True, False, True, False, False, False]
    assert [s.outcome for s in sums.samples][:3] == [
        Outcome.CORRECT,
        Outcome.CORRECT,
        Outcome.TRUNCATED,
    ]
    assert before.samples[2].outcome is Outcome.UNPARSABLE
    assert sums.metrics == before.metrics


async def test_prompts_of_which_the_beginning_is_cut_off_are_marked(trial: Trial) -> None:
    """Of written answers without a chat, and of choices; lm-eval says it in its log at most."""
    trial.chat = False
    trial.max_model_len = 16 + 32  # 16 tokens of an answer, and tokens that are bytes
    file = trial.tasks / "sums.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3]["question"] = "3 + 3 = 6, as everybody knows, and so 3 + 3 ="
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with openai_endpoint(answer=lambda _: "6") as endpoint:
        (sums, capitals) = await trial.run(endpoint, "sums", "capitals")
    assert [sample.item for sample in sums.samples if sample.shortened] == ["3"]
    prompts = [len(body["prompt"][0]) for body in endpoint.bodies(TEXT) if not body.get("echo")]
    assert max(prompts) == 31
    lengths = [len(f"Question 1. The capital of {country} is") for country in COUNTRIES]
    longest = max(len(f" {capital}") for capital in CAPITALS)
    assert [s.shortened for s in capitals.samples] == [1 + n + longest > 47 for n in lengths]


async def test_data_that_cannot_be_had_is_said_in_words(trial: Trial) -> None:
    """The hub is not reached: no address of it is tried, as it is offline."""
    use_data_set(trial, "enginehouse/there-is-none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        async with openai_endpoint(answer=answer_sum) as endpoint:
            with pytest.raises(HarnessError, match="hub") as raised:
                await trial.run(endpoint, "capitals", "sums")
    assert raised.value.kind == "data_unreachable"
    assert endpoint.requests == []


def use_data_set(trial: Trial, name: str) -> None:
    """Have the sums from the hub."""
    text = yaml.safe_load((trial.tasks / "sums.yaml").read_text())
    text |= {"dataset_path": name, "dataset_kwargs": {}}
    (trial.tasks / "sums.yaml").write_text(yaml.safe_dump(text, sort_keys=False))


@pytest.mark.parametrize("token", [None, "hf_of_somebody_else"])
@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [(GATED, "gated_data", "HF_TOKEN"), ("someone/nothing", "data_not_found", "was not found")],
)
async def test_a_hub_that_refuses(
    trial: Trial,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
    words: str,
    token: str | None,
) -> None:
    """What the libraries of the hub raise is understood; nothing is asked before."""
    use_data_set(trial, name)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HOME", str(trial.folder / "hub"))
    async with openai_endpoint(answer=answer_sum) as endpoint, gated_hub() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        error = await trial.refusal(endpoint, "capitals", "sums")
    assert error.kind == kind
    assert words in str(error)
    assert endpoint.requests == []


async def test_one_that_is_killed_ends_with_its_log(trial: Trial) -> None:
    """Kill -9 of lm-eval in the middle."""
    async with openai_endpoint(answer=answer_sum) as endpoint:
        endpoint.at_once = 10**6

        def kill(_: HarnessProgress) -> None:
            for child in psutil.Process().children():
                if any("run_lm_eval" in word for word in command_of(child)):
                    child.kill()

        trial.heard = type("Kill", (), {"append": staticmethod(kill)})()  # type: ignore[assignment]
        with pytest.raises(HarnessError, match="SIGKILL") as raised:
            await trial.run(endpoint, "sums")
    assert raised.value.kind == "ended"
    assert raised.value.log is not None
    assert raised.value.log.is_file()


async def test_its_thousands_of_tasks_are_read_once(
    trial: Trial, lm_eval_environment: EngineEnvironment
) -> None:
    """The list has the user's own among them, and later runs go to the folder of their task."""
    tasks = await load_harness("lm-eval").list_tasks(
        lm_eval_environment, include_path=trial.tasks, context=Context()
    )
    known = {task.name: task for task in tasks}
    assert len(known) > 10_000
    assert known["hellaswag"].kind == "choose"
    assert known["gsm8k"].description == "openai/gsm8k main"
    assert {known["mmlu"].kind, known["mixed"].kind} == {"group"}
    assert known["sums"].kind == "generate"
    assert known["mixed"].parts == ("sums", "capitals")
    subjects = contents_of("mmlu", known)
    assert {"mmlu_stem", "mmlu_anatomy", "mmlu_world_religions"} <= subjects.names
    assert not subjects.changed
    assert {"gsm8k", "mmlu_anatomy"} <= contents_of("openllm", known).changed

    async with openai_endpoint(answer=answer_sum) as endpoint:
        with pytest.raises(HarnessError, match="'hellaswagg'") as raised:
            await trial.run(endpoint, "sums", "hellaswagg")
        assert raised.value.kind == "unknown_task"
        assert "did you mean hellaswag" in str(raised.value.fix)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_HUB_OFFLINE", "1")
            with pytest.raises(HarnessError, match="mmlu") as raised:
                await trial.run(endpoint, "sums", "mmlu")
    assert raised.value.kind == "data_unreachable"
    assert endpoint.requests == []
    kept = Layout.from_environment().harness_tasks / f"{lm_eval_environment.key}-places.json"
    assert json.loads(kept.read_bytes())["mmlu"] == "mmlu/default"  # wherever it is installed
    assert "reading every task" not in (trial.folder / "run/lm-eval.log").read_text()
