"""What runs on the nodes of a job besides its main command."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.support.command_line import House, journaled, sums
from tests.support.processes import command_of

from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.jobs.base import JobSpec, JobState, Resources
from enginehouse.jobs.companions import SERVER
from enginehouse.jobs.executors.local import LocalExecutor, LocalSettings
from enginehouse.jobs.launch_file import read_launch
from enginehouse.jobs.plan import PLAN, LaunchPlan, plan_launch
from enginehouse.runtime.context import Context


def plan(
    folder: Path,
    *,
    execution: dict[str, Any],
    deployment: dict[str, Any] | None = None,
    task: str = "gsm8k",
    kind: str = "vllm",
    params: dict[str, Any] | None = None,
    auxiliary: dict[str, Any] | None = None,
    executor: str = "slurm",
) -> LaunchPlan:
    """The plan of a launch file, for Slurm unless it says otherwise."""
    served = {"checkpoint_path": str(folder / "tiny")} if kind != "none" else {}
    values = {
        "defaults": [{"execution": executor}, {"deployment": kind}, "_self_"],
        "execution": {"output_dir": str(folder / "jobs"), **execution},
        "deployment": {**served, **(deployment or {})},
        "auxiliary_deployments": auxiliary or {},
        "evaluation": {
            "tasks": [{"name": task}],
            "nemo_evaluator_config": {"config": {"params": params or {}}},
        },
    }
    if kind == "none":
        endpoint = {"url": "http://127.0.0.1:1/v1/chat/completions", "model_id": "m"}
        values["target"] = {"api_endpoint": endpoint}
    path = folder / "launch.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return plan_launch(read_launch(path))


def test_instances_on_one_node(tmp_path: Path):
    """The plan starts them, and each has GPUs of its own."""
    planned = plan(tmp_path, execution={"num_instances": 4}, deployment={"tensor_parallel_size": 2})
    assert planned.evaluation.plan.instances == 4
    assert planned.job.companions == ()
    assert (planned.gpus, planned.job.resources.gpus_per_node) == (8, 8)


def test_instances_on_one_node_that_share_a_port(tmp_path: Path):
    """They cannot: the key of the file is named."""
    with pytest.raises(ConfigurationError, match=r"deployment\.port .*8000"):
        plan(tmp_path, execution={"num_instances": 2}, deployment={"port": 8000})


def test_instances_on_a_cpu(tmp_path: Path):
    """They need no GPU."""
    planned = plan(tmp_path, execution={"num_instances": 2}, deployment={"variant": "cpu"})
    assert planned.evaluation.plan.instances == 2
    assert planned.gpus == 0


def test_an_instance_on_each_node(tmp_path: Path):
    """One is the main command's own, the others announce themselves in the job's folder."""
    planned = plan(
        tmp_path,
        execution={"num_nodes": 3, "num_instances": 3},
        deployment={"tensor_parallel_size": 4, "adapter": "/adapters/a"},
    )
    asked = planned.evaluation.plan
    announced = str(planned.job.folder / "servers")
    assert (asked.instances, str(asked.addresses)) == (1, announced)
    (companion,) = planned.job.companions
    assert (companion.nodes, planned.job.nodes) == (2, 3)
    assert companion.command[-6:] == (
        "serve", "--config", SERVER, "--announce", announced, "--remain",
    )  # fmt: skip
    served = parse(ServeConfig, yaml.safe_load(planned.job.files[SERVER]), origin="test")
    assert served.server.host == "0.0.0.0"
    assert served.server.enable_lora
    assert served.adapter is None
    assert served.server.tensor_parallel_size == 4
    assert (planned.gpus, planned.job.resources.gpus_per_node) == (12, 4)


@pytest.mark.parametrize("backend", [None, "ray"])
def test_one_server_over_all_nodes(tmp_path: Path, backend: str | None):
    """Its parts agree on ports; the head's address is known where they run."""
    planned = plan(
        tmp_path,
        execution={"num_nodes": 2},
        deployment={
            "tensor_parallel_size": 8,
            "pipeline_parallel_size": 2,
            "extra_args": "--max-model-len 4096",
            "distributed_executor_backend": backend,
        },
    )
    main = yaml.safe_load(planned.job.files[PLAN])["server"]["extra_args"]
    part = yaml.safe_load(planned.job.files[SERVER])["server"]["extra_args"]
    assert main == part
    assert main[:4] == ["--max-model-len", "4096", "--nnodes", "2"]
    assert (main[-2:] == ["--distributed-executor-backend", "ray"]) is (backend == "ray")
    (companion,) = planned.job.companions
    assert companion.command[-4:] == ("--head", "{head}", "--node", "{node}")
    assert companion.nodes == 1
    assert planned.evaluation.plan.max_restarts == 0
    assert planned.job.resources.gpus_per_node == 8
    assert any("Ray" in note for note in planned.notes) is (backend == "ray")
    assert any("resume" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("instances", "given", "copies"), [(1, 1, 16), (1, 16, 16), (2, 1, 8), (2, 8, 8)]
)
def test_copies_on_each_node(tmp_path: Path, instances: int, given: int, copies: int):
    """Each server gets them all, and their GPUs are asked for."""
    planned = plan(
        tmp_path,
        execution={"num_nodes": 2, "num_instances": instances},
        deployment={
            "tensor_parallel_size": 1,
            "data_parallel_size": given,
            "data_parallel_size_local": 8,
        },
    )
    assert planned.evaluation.plan.server.data_parallel_size == copies
    assert (planned.gpus, planned.job.resources.gpus_per_node) == (16, 8)


@pytest.mark.parametrize(
    ("executor", "execution", "used"),
    [
        ("ray", {"gpus_per_node": 0}, True),
        ("slurm", {}, False),
        ("slurm", {"num_nodes": 2, "num_instances": 2}, False),
    ],
)
def test_a_server_over_ray(tmp_path: Path, *, executor: str, execution: dict[str, Any], used: bool):
    """It spans the cluster that the job runs in; elsewhere the file's wish is answered."""
    planned = plan(tmp_path, executor=executor, execution=execution, kind="vllm_ray", task="ifeval")
    flags = planned.evaluation.plan.server.extra_args
    assert tuple(flags) == (("--distributed-executor-backend", "ray") if used else ())
    (note,) = planned.notes
    assert "Ray" in note


@pytest.mark.parametrize(
    ("execution", "deployment"),
    [
        ({"num_nodes": 4, "num_instances": 2}, {}),
        ({"num_nodes": 3}, {"tensor_parallel_size": 8}),
        ({"num_nodes": 2}, {"data_parallel_size": 8, "data_parallel_size_local": 8}),
        ({"num_nodes": 2}, {"type": "hf"}),
    ],
)
def test_nodes_that_do_not_add_up(tmp_path: Path, execution, deployment):
    """They are refused when the job is planned."""
    gres = {"gres": "gpu:8"}  # which alone would be enough
    with pytest.raises(ConfigurationError):
        plan(tmp_path, execution=execution | gres, deployment=deployment)


def test_nothing_is_deployed(tmp_path: Path):
    """Then further nodes would be of no use."""
    planned = plan(tmp_path, execution={"num_nodes": 2}, kind="none")
    assert planned.job.companions == ()
    assert any("one node" in note for note in planned.notes)


def test_the_flags_of_the_installed_vllm():
    """The head is told its address; a part serves nothing over HTTP."""
    flags = VllmEngine().span_flags(2, port=20000)
    assert flags == (
        *("--nnodes", "2", "--master-port", "20000"),
        *("--data-parallel-rpc-port", "20001"),
    )


async def ended(executor: LocalExecutor, job: JobSpec) -> JobState:
    """Submit the job, and wait for its end."""
    async with executor:
        handle = await executor.submit(job, secrets={})
        async with asyncio.timeout(120):
            while not (status := (await executor.statuses([handle]))[0]).state.ended:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    # The submitter takes the exit code of its child.
    psutil.Process(int(handle.reference["pid"])).wait(30)
    return status.state


def two_servers(house: House, *, latency: str, **execution: Any) -> JobSpec:
    """A job of forty samples with two nodes and two servers, both on this machine."""
    house.model()
    items, _ = sums(right=40)
    planned = plan(
        house.work,
        execution={"num_nodes": 2, "num_instances": 2, **execution},
        deployment={
            "tensor_parallel_size": 1,
            "env_vars": {"VLLM_FAKE_TOKEN_LATENCY": latency},
        },
        task=str(house.task(items)),
        params={"parallelism": 2},
    )
    served = yaml.safe_load(planned.job.files[SERVER])
    served["server"]["host"] = "127.0.0.1"
    files = {**planned.job.files, SERVER: yaml.safe_dump(served)}
    return replace(planned.job, files=files, resources=Resources())


@pytest.mark.slow
async def test_an_evaluation_on_two_servers(house: House):
    """The companion's server is found, both answer, and nothing is left at the end."""
    job = two_servers(house, latency="0.05")
    folder = Path(job.folder)
    settings = LocalSettings(output_dir=str(house.work), kill_grace=20)
    assert await ended(LocalExecutor(settings, Context()), job) is JobState.COMPLETE
    samples = journaled(folder / "run").samples
    assert (len(samples), set(samples.values())) == (40, {1})
    assert "joined" in (folder / "log.txt").read_text()
    assert list((folder / "servers").iterdir()) == []


@pytest.mark.slow
async def test_the_server_of_a_companion_is_given_up(house: House):
    """The job goes on with the other one, loses no sample, and ends the companion with itself."""
    job = two_servers(house, latency="0.1")
    served = yaml.safe_load(job.files[SERVER])
    job = replace(job, files={**job.files, SERVER: yaml.safe_dump({**served, "max_restarts": 0})})
    folder, log = Path(job.folder), Path(job.folder) / "log.txt"
    settings = LocalSettings(output_dir=str(house.work), kill_grace=20)
    running = asyncio.create_task(ended(LocalExecutor(settings, Context()), job))
    async with asyncio.timeout(60):
        while not log.exists() or "joined" not in log.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    (announcement,) = (folder / "servers").glob("*.json")
    port = json.loads(announcement.read_bytes())["url"].rpartition(":")[2]
    (server,) = (p for p in house.processes() if port in command_of(p))
    server.kill()
    assert await running is JobState.COMPLETE
    assert "this command remains until it is ended" in log.read_text()
    samples = journaled(folder / "run").samples
    assert (len(samples), set(samples.values())) == (40, {1})
    assert list((folder / "servers").iterdir()) == []
    house.nothing_left()


def test_a_judge_has_nodes_of_its_own(tmp_path: Path):
    """As the launcher's own example has it: a second server, which announces itself to the job."""
    (tmp_path / "graded.jsonl").write_text('{"ask": "Why?"}')
    (tmp_path / "graded.yaml").write_text(
        "name: graded\ndata: graded.jsonl\nprompt: '{{ ask }}'\nmetric: judge\n"
    )
    judge = {
        "url": "auxiliary_deployments.judge.chat_url",
        "model_id": "auxiliary_deployments.judge.model_id",
        "temperature": 0.0,
        "request_timeout": 120,
    }
    auxiliary = {
        "type": "vllm", "checkpoint_path": "/judge", "served_model_name": "grader",
        "tensor_parallel_size": 2, "env_vars": {"HF_TOKEN": "host:HF_TOKEN"},
    }  # fmt: skip
    planned = plan(
        tmp_path,
        execution={"num_nodes": 1},
        deployment={"tensor_parallel_size": 2},
        task="graded.yaml",
        params={"extra": {"judge": judge}},
        auxiliary={"judge": auxiliary},
    )
    (companion,) = planned.job.companions
    assert companion.command[-5:] == (
        "serve", "--config", "judge.yaml", "--announce", "judge-servers",
    )  # fmt: skip
    assert companion.environment.secrets == {"HF_TOKEN"}
    assert "HF_TOKEN" in planned.variables.by_name
    server = parse(ServeConfig, yaml.safe_load(planned.job.files["judge.yaml"]), origin="test")
    assert (server.model, server.server.served_model_name) == ("/judge", "grader")
    assert server.server.host == "0.0.0.0"
    chosen = planned.evaluation.settings.judge
    assert chosen is not None
    assert str(chosen.addresses) == str(planned.job.folder / "judge-servers")
    assert (chosen.request_timeout, chosen.model) == (120.0, None)
    assert planned.job.resources.nodes == 1
    assert (planned.gpus, planned.job.resources.gpus_per_node) == (4, 2)
    for wrong in ({"tensor_parallel_size": 4}, {"num_nodes": 2}):
        with pytest.raises(ConfigurationError):
            plan(
                tmp_path,
                execution={"num_nodes": 1},
                deployment={"tensor_parallel_size": 2},
                task="graded.yaml",
                params={"extra": {"judge": judge}},
                auxiliary={"judge": auxiliary | wrong},
            )


@pytest.mark.slow
async def test_answers_are_judged_by_the_companion(house: House):
    """It is found where it announces itself, and its verdicts are the scores."""
    house.model()
    task = house.task(
        [{"ask": "Which city?", "right": "Paris"}, {"ask": "Which river?", "right": "Seine"}],
        name="graded",
        metric="judge",
        judge={"prompt": "{{ response }}?"},
    )
    canned = {
        "^Paris": "VERDICT: CORRECT",
        "^Rhone": "VERDICT: INCORRECT",
        "city": "Paris",
        "river": "Rhone",
    }
    name, _, answers = house.answers(canned).partition("=")
    judge = {
        "url": "auxiliary_deployments.grader.chat_url",
        "model_id": "auxiliary_deployments.grader.model_id",
        "max_tokens": 50,
    }
    planned = plan(
        house.work,
        execution={"num_nodes": 1},
        deployment={"tensor_parallel_size": 1, "env_vars": {name: answers}},
        task=str(task),
        params={"extra": {"judge": judge}},
        auxiliary={
            "grader": {
                "type": "vllm",
                "checkpoint_path": str(house.model("grader")),
                "served_model_name": "grader",
                "tensor_parallel_size": 1,
                "env_vars": {name: answers},
            }
        },
    )
    served = yaml.safe_load(planned.job.files["grader.yaml"])
    served["server"]["host"] = "127.0.0.1"  # both are on this machine
    folder = planned.job.folder
    job = replace(
        planned.job,
        files={**planned.job.files, "grader.yaml": yaml.safe_dump(served)},
        resources=Resources(),
    )
    settings = LocalSettings(output_dir=str(house.work), kill_grace=20)
    assert await ended(LocalExecutor(settings, Context()), job) is JobState.COMPLETE
    assert journaled(Path(folder) / "run").counts() == {"correct": 1, "wrong": 1}
