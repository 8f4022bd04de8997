"""What a launch file says about its tasks, and what arrives at the engine because of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginehouse.commands.evaluate import run_evaluation
from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.jobs.launch_file import read_launch
from enginehouse.jobs.plan import LaunchPlan, plan_launch
from enginehouse.results.summary import Reasoning
from enginehouse.runtime.context import Context
from enginehouse.testing.fake_engine import running_fake_engine

ITEMS = 12


def plan(
    folder: Path,
    *tasks: Any,
    url: str = "http://127.0.0.1:1/v1/chat/completions",
    auxiliary_deployments: dict[str, Any] | None = None,
    **everywhere: Any,
) -> LaunchPlan:
    """The plan of a launch file with these tasks, for a server that runs already.

    `everywhere` holds the parts `params` and `adapter` of what is said for all tasks.
    """
    values = {
        "defaults": [{"execution": "local"}, {"deployment": "none"}, "_self_"],
        "execution": {"output_dir": str(folder / "jobs")},
        "target": {"api_endpoint": {"url": url, "model_id": "fake-model"}},
        "auxiliary_deployments": auxiliary_deployments or {},
        "evaluation": {
            "tasks": [{"name": t} if isinstance(t, str) else t for t in tasks],
            "nemo_evaluator_config": asked(**everywhere),
        },
    }
    path = folder / "launch.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return plan_launch(read_launch(path))


def asked(
    params: dict[str, Any] | None = None, adapter: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A nemo_evaluator_config."""
    return {
        "config": {"params": params or {}},
        "target": {"api_endpoint": {"adapter_config": adapter or {}}},
    }


@pytest.fixture
def sums(tmp_path: Path) -> str:
    """A task of the user's own, as the launch file beside it names it."""
    lines = [json.dumps({"ask": f"What is {n} + 0?", "right": str(n)}) for n in range(ITEMS)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    (tmp_path / "sums.yaml").write_text(
        "name: sums\ndata: sums.jsonl\nprompt: '{{ ask }}'\nanswer: right\nmetric: number\n"
        "max_tokens: 24\nsystem: Be exact.\n"
    )
    return "sums.yaml"


def arrived(seen: Path) -> list[dict[str, Any]]:
    """The chat requests that the engine got."""
    lines = [json.loads(line) for line in seen.read_text().splitlines()]
    return [line["body"] for line in lines if line["path"] == "/v1/chat/completions"]


def test_a_folder_with_the_name_of_a_task_is_not_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A local job's paths are absolute, and its tasks' names stay."""
    (tmp_path / "gsm8k").mkdir()
    monkeypatch.chdir(tmp_path)
    (task,) = plan(tmp_path, "gsm8k").evaluation.settings.tasks
    assert task.name == "gsm8k"


def test_what_is_said_for_all_is_said_once(tmp_path):
    """And what is said for one task is that task's alone."""
    own = asked({"temperature": 0.2, "extra": {"n_samples": 5}})
    planned = plan(
        tmp_path,
        "lm-evaluation-harness.ifeval",
        {"name": "gsm8k", "nemo_evaluator_config": own},
        params={
            "limit_samples": 10,
            "parallelism": 32,
            "temperature": 0.6,
            "top_p": 0.95,
            "max_new_tokens": 8192,
            "request_timeout": 3600,
            "max_retries": 5,
        },
        adapter={"use_system_prompt": True, "custom_system_prompt": "Think step by step."},
    )
    settings = planned.evaluation.settings
    assert settings.model_dump(exclude_unset=True, exclude_none=True) == {
        "tasks": (
            {"name": "ifeval", "temperature": 0.6},
            {"name": "gsm8k", "temperature": 0.2, "samples": 5},
        ),
        "limit": 10,
        "max_tokens": 8192,
        "top_p": 0.95,
        "system": "Think step by step.",
        "concurrency": 32,
        "request_timeout": 3600.0,
        "max_retries": 5,
    }
    assert [task.written for task in planned.tasks] == ["lm-evaluation-harness.ifeval", "gsm8k"]


def test_other_harnesses_tasks_are_in_the_plan(tmp_path):
    """With the harness that runs them; what is said for all stays with each task."""
    planned = plan(
        tmp_path,
        "ifeval",
        "piqa",
        params={"limit_samples": 10, "temperature": 0.0, "parallelism": 8},
    )
    assert [(task.name, task.harness) for task in planned.tasks] == [
        ("ifeval", None),
        ("lm-eval:piqa", "lm-eval"),
    ]
    ours, theirs = planned.evaluation.settings.tasks
    assert (theirs.name, theirs.limit, theirs.temperature) == ("lm-eval:piqa", 10, 0.0)
    assert (ours.concurrency, theirs.concurrency) == (8, 8)


def test_a_harness_finds_the_users_own_tasks(tmp_path):
    """A file beside the launch file by its whole path, and the folder that holds others."""
    (tmp_path / "adds.py").touch()
    (tmp_path / "own").mkdir()
    names = ("inspect:adds.py@adds", "inspect:elsewhere.py")
    planned = plan(tmp_path, *names, params={"extra": {"include_path": "own"}})
    settings = planned.evaluation.settings
    assert [task.name for task in settings.tasks] == [
        f"inspect:{tmp_path}/adds.py@adds",
        "inspect:elsewhere.py",
    ]
    assert settings.include_path == tmp_path / "own"
    other = {
        "name": "lm-eval:sums",
        "nemo_evaluator_config": asked({"extra": {"include_path": "other"}}),
    }
    with pytest.raises(ConfigurationError, match="several folders"):
        plan(tmp_path, names[0], other, params={"extra": {"include_path": "own"}})


def test_lm_eval_has_the_tokenizer_of_a_model_elsewhere(tmp_path):
    """Its log-likelihoods are asked as tokens; what the task says itself comes first."""
    own = {"params": {"extra": {"tokenizer": "org/model"}}}
    planned = plan(
        tmp_path,
        "piqa",
        {
            "name": "lm-evaluation-harness.winogrande",
            "nemo_evaluator_config": asked({"extra": {"arguments": {"tokenizer": "/mine"}}}),
        },
        "AIME_2025",
        **own,
    )
    tasks = planned.evaluation.settings.tasks
    assert [task.arguments for task in tasks] == [
        {"tokenizer": "org/model"},
        {"tokenizer": "/mine"},
        None,
    ]
    assert any("AIME_2025: params.extra.tokenizer has no effect" in n for n in planned.notes)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"params": {"extra": {"n_samples": 5}}}, "asks each item once"),
        ({"dataset_dir": "/data"}, "loads the data of its tasks itself"),
    ],
)
def test_what_a_harness_lacks_is_refused_in_words(tmp_path, more, what):
    """Before anything starts."""
    task = {"name": "piqa", **{k: v for k, v in more.items() if k == "dataset_dir"}}
    with pytest.raises(ConfigurationError) as caught:
        plan(tmp_path, task, params=more.get("params"))
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "reasoning", "noted"),
    [
        ({}, None, False),
        ({"use_reasoning": True}, "strip", False),
        ({"process_reasoning_traces": True}, "strip", False),
        ({"use_reasoning": False}, "keep", True),
        ({"use_reasoning": True, "process_reasoning_traces": False}, "strip", False),
        (
            {"use_reasoning": True, "include_if_reasoning_not_finished": True},
            "strip_finished",
            False,
        ),
        ({"include_if_reasoning_not_finished": True}, "strip_finished", False),
        ({"include_if_reasoning_not_finished": False}, None, False),
    ],
)
def test_reasoning(tmp_path, adapter, reasoning, noted):
    """False scores it with the answer, which is said; unset leaves our own default."""
    planned = plan(tmp_path, "ifeval", adapter=adapter)
    given = planned.evaluation.settings.model_dump(exclude_unset=True).get("reasoning")
    assert given == reasoning
    assert bool(planned.notes) == noted


@pytest.mark.parametrize(("used", "system"), [(True, "Hi."), (False, None), (None, None)])
def test_a_system_prompt_is_used_if_it_is_switched_on(tmp_path, used, system):
    """Otherwise that is noted."""
    switch = {} if used is None else {"use_system_prompt": used}
    planned = plan(tmp_path, "ifeval", adapter={"custom_system_prompt": "Hi.", **switch})
    assert planned.evaluation.settings.system == system
    assert bool(planned.notes) == (system is None)


def test_options_without_effect_beside_others_are_noted(tmp_path):
    """Each by its name."""
    for adapter, name in (
        ({"use_system_prompt": True}, "use_system_prompt"),
        (
            {"use_reasoning": False, "include_if_reasoning_not_finished": True},
            "include_if_reasoning_not_finished",
        ),
    ):
        assert any(
            note.startswith(name) for note in plan(tmp_path, "ifeval", adapter=adapter).notes
        )
    piqa = {"name": "piqa", "endpoint_type": "chat"}
    notes = plan(tmp_path, piqa, adapter={"include_if_reasoning_not_finished": True}).notes
    assert [note.partition(" ")[2].partition(" ")[0] for note in notes] == [
        "reasoning",
        "endpoint_type",
    ]


def test_data_are_a_file_or_the_folder_of_the_original(tmp_path):
    """On the machine where the job runs, so that nothing is looked at here."""
    planned = plan(
        tmp_path,
        {"name": "ifeval", "dataset_dir": "/data/mine.jsonl"},
        {"name": "gsm8k_cot_instruct", "dataset_dir": "/data/gsm8k"},
    )
    data = [task.data for task in planned.evaluation.settings.tasks]
    assert data == ["/data/mine.jsonl", "/data/gsm8k/test.jsonl"]
    with pytest.raises(ConfigurationError):
        plan(tmp_path, {"name": "bfcl/multiple", "dataset_dir": "/data/bfcl"})


@pytest.mark.parametrize(
    ("task", "endpoint", "fits"),
    [
        ("ifeval", "chat", True),
        ("hellaswag", "completions", True),
        ("ifeval", "completions", False),
        ("hellaswag", "chat", False),
        ("ifeval", "embedding", False),
        ("piqa", "completions", True),
    ],
)
def test_a_task_is_asked_at_its_own_endpoint(tmp_path, task, endpoint, fits):
    """Another one is refused, as it would be another benchmark."""
    chosen = {"name": task, "endpoint_type": endpoint}
    if fits:
        assert plan(tmp_path, chosen).tasks
    else:
        with pytest.raises(ConfigurationError):
            plan(tmp_path, chosen)


def test_one_task_under_two_names_is_refused(tmp_path):
    """With both names."""
    with pytest.raises(ConfigurationError) as caught:
        plan(tmp_path, "gsm8k", "gsm8k_cot_instruct")
    assert "gsm8k_cot_instruct" in caught.value.message


@pytest.mark.parametrize(
    ("url", "engine"),
    [
        ("https://api.openai.com/v1/chat/completions", "openai"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.example.com/v1/chat/completions", None),
    ],
)
def test_a_hosted_api_is_asked_in_its_own_way(tmp_path, url, engine):
    """Others are asked as vLLM is."""
    assert plan(tmp_path, "ifeval", url=url).evaluation.plan.engine == engine


@pytest.fixture
def graded(tmp_path: Path) -> str:
    """A task of the user's own that a judge scores, as the launch file beside it names it."""
    (tmp_path / "graded.jsonl").write_text(json.dumps({"ask": "Why?"}))
    (tmp_path / "graded.yaml").write_text(
        "name: graded\ndata: graded.jsonl\nprompt: '{{ ask }}'\nmetric: judge\n"
    )
    return "graded.yaml"


def test_a_judge_that_runs_already(tmp_path, graded, monkeypatch):
    """Asked as the file says, with the key in the named variable."""
    judge = {
        "url": "https://api.openai.com/v1/chat/completions", "model_id": "grader",
        "api_key": "JUDGE_API_KEY", "backend": "openai", "temperature": 0.1, "top_p": 0.5,
        "max_tokens": 99, "request_timeout": 120, "max_retries": 16, "parallelism": 4,
    }  # fmt: skip
    planned = plan(tmp_path, graded, params={"extra": {"judge": judge}})
    chosen = planned.evaluation.settings.judge
    assert chosen is not None
    assert chosen.url == judge["url"]
    assert (chosen.model, chosen.engine, chosen.api_key_env) == (
        "grader",
        "openai",
        "JUDGE_API_KEY",
    )
    assert (chosen.temperature, chosen.top_p, chosen.max_tokens) == (0.1, 0.5, 99)
    assert (chosen.request_timeout, chosen.max_retries, chosen.concurrency) == (120.0, 16, 4)
    assert "JUDGE_API_KEY" in planned.job.environment.secrets


def test_an_auxiliary_deployment_judges(tmp_path, graded):
    """By the names that the launcher gives its address and its model."""
    judge = {
        "url": "auxiliary_deployments.grader.chat_url",
        "model_id": "auxiliary_deployments.grader.model_id",
    }
    auxiliary = {
        "grader": {
            "type": "vllm", "hf_model_handle": "a/judge", "served_model_name": "grader",
            "tensor_parallel_size": 2, "env_vars": {"HF_TOKEN": "host:HF_TOKEN"},
        }
    }  # fmt: skip
    planned = plan(
        tmp_path, graded, params={"extra": {"judge": judge}}, auxiliary_deployments=auxiliary
    )
    chosen = planned.evaluation.settings.judge
    assert chosen is not None
    assert chosen.model == "a/judge"
    assert chosen.server.tensor_parallel_size == 2
    assert chosen.server.env_names == ("HF_TOKEN",)
    assert planned.gpus == 2
    assert "HF_TOKEN" in planned.job.environment.secrets
    with pytest.raises(UnknownNameError):
        plan(tmp_path, graded, params={"extra": {"judge": judge}})
    auxiliary["grader"] |= {"num_nodes": 2, "num_instances": 2}
    auxiliary["other"] = {"type": "vllm", "hf_model_handle": "a/b"}
    own = {"config": {"params": {"extra": {"judge": judge}}}}
    notes = plan(
        tmp_path,
        graded,
        {"name": "ifeval", "nemo_evaluator_config": own},
        params={"extra": {"judge": judge | {"model_id": "another"}}},
        auxiliary_deployments=auxiliary,
    ).notes
    assert [note.partition(":")[0].partition(" ")[0] for note in notes] == [
        "ifeval",
        "judge.model_id",
        "auxiliary_deployments.grader",
        "auxiliary_deployments.other",
    ]


def test_a_judge_is_named_where_it_is_needed(tmp_path, graded):
    """And only there: otherwise it is not asked, which is noted."""
    judge = {"url": "http://127.0.0.1:1", "model_id": "grader"}
    unused = plan(tmp_path, "ifeval", params={"extra": {"judge": judge}})
    assert unused.evaluation.settings.judge is None
    assert unused.notes
    with pytest.raises(ConfigurationError):
        plan(tmp_path, graded)
    with pytest.raises(ConfigurationError):
        plan(tmp_path, graded, params={"extra": {"judge": {"model_id": "grader"}}})


@pytest.mark.slow
async def test_parameters_arrive_at_the_engine(tmp_path, sums, monkeypatch):
    """Temperature, top_p, length, repeats, limit and system prompt are in each request."""
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / "home"))
    seen = tmp_path / "seen.jsonl"
    async with running_fake_engine(
        answers={"What is": "It is 0."}, env={"VLLM_FAKE_REQUESTS": str(seen)}
    ) as engine:
        planned = plan(
            tmp_path,
            {"name": sums, "nemo_evaluator_config": asked({"extra": {"n_samples": 2}})},
            url=f"{engine.url}/v1/chat/completions",
            params={
                "limit_samples": 3, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 9,
                "parallelism": 2,
            },
            adapter={"use_system_prompt": True, "custom_system_prompt": "Think."},
        )  # fmt: skip
        report = await run_evaluation(planned.evaluation, Context())
    bodies = arrived(seen)
    assert report.complete
    assert len(bodies) == 3 * 2
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in bodies} == {(0.6, 0.95, 9)}
    assert {b["messages"][0]["content"] for b in bodies} == {"Think."}
    assert {b["messages"][0]["role"] for b in bodies} == {"system"}
    assert len({b["messages"][1]["content"] for b in bodies}) == 3
    assert len({b["seed"] for b in bodies}) == 6


@pytest.mark.slow
async def test_patience_is_what_the_file_says(tmp_path, sums, monkeypatch):
    """A request that hangs is given up after request_timeout; max_retries sends failures again."""
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / "home"))
    seen = tmp_path / "seen.jsonl"
    faults = [
        {"fault": "hang", "match": "What is 1 "},
        {"fault": "status", "status": 500, "match": "What is 2 "},
    ]
    async with running_fake_engine(
        answers={"What is": "It is 0."}, faults=faults, env={"VLLM_FAKE_REQUESTS": str(seen)}
    ) as engine:
        planned = plan(
            tmp_path,
            sums,
            url=engine.url,
            params={"request_timeout": 0.5, "max_retries": 1},
        )
        report = await run_evaluation(planned.evaluation, Context())
    bodies = arrived(seen)
    assert report.tasks[0].outcomes["failed"] == 2
    times = [sum(f"What is {n} " in b["messages"][-1]["content"] for b in bodies) for n in range(3)]
    assert times == [1, 1, 2]


@pytest.mark.slow
async def test_reasoning_is_counted_and_left_out(tmp_path, sums, monkeypatch):
    """Or scored, if the file says so."""
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / "home"))
    answers = {"What is": "<think>first 5 then 6</think>It has no number."}
    async with running_fake_engine(answers=answers) as engine:
        outcomes = {}
        for use in (True, False):
            planned = plan(
                tmp_path,
                sums,
                url=engine.url,
                params={"max_new_tokens": 200},
                adapter={"use_reasoning": use},
            )
            report = await run_evaluation(planned.evaluation, Context())
            (task,) = report.tasks
            outcomes[use] = task.outcomes["unparsable"]
            assert isinstance(task.reasoning, Reasoning)
            assert task.reasoning.answers == ITEMS
    assert outcomes == {True: ITEMS, False: 0}


def generic(folder: Path, deployment: str, *, executor: str = "local") -> LaunchPlan:
    """The plan of a file with a generic deployment."""
    path = folder / "launch.yaml"
    path.write_text(
        f"defaults: [execution: {executor}, deployment: generic, _self_]\n"
        f"execution: {{output_dir: {folder}/jobs}}\n"
        f"deployment: {{{deployment}}}\n"
        "evaluation: {tasks: [{name: gsm8k}]}\n"
    )
    overrides = [] if executor in ("local", "slurm", "ray") else ["++execution.image=i"]
    overrides += (
        [f"execution.volumes={{{folder}: {{claim: c}}}}"] if executor == "kubernetes" else []
    )
    return plan_launch(read_launch(path, overrides=overrides))


@pytest.mark.parametrize("executor", ["local", "docker", "slurm", "ray", "kubernetes"])
def test_a_generic_deployment_is_served_by_its_command(tmp_path, executor):
    """On every executor the job has the same plan."""
    words = "command: serve me --port $PORT, served_model_name: m, endpoints: {health: /ready}"
    planned = generic(tmp_path, words, executor=executor).evaluation.plan

    assert (planned.model, planned.engine) == ("m", "generic")
    assert planned.server.command == "serve me --port $PORT"
    assert (planned.server.port, planned.server.health_path) == (8000, "/ready")
    assert planned.server.only_endpoint is None


def test_a_generic_server_may_have_one_endpoint(tmp_path):
    """Null is one that it lacks."""
    planned = generic(tmp_path, "command: c, served_model_name: m, endpoints: {completions: null}")
    assert planned.evaluation.plan.server.only_endpoint == "chat"


@pytest.mark.parametrize(
    "deployment",
    [
        "command: '', served_model_name: m",
        "command: c, served_model_name: m, endpoints: {chat: /chat}",
        "command: c, served_model_name: m, endpoints: {chat: null, completions: null}",
        "served_model_name: m",
    ],
)
def test_a_generic_deployment_that_cannot_be_asked(tmp_path, deployment):
    """It is refused before anything is submitted."""
    with pytest.raises(ConfigurationError):
        generic(tmp_path, deployment)
