"""What Ray says about a job, and what is asked of it, without a cluster."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import PurePosixPath

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from enginehouse.core.errors import ConfigurationError, JobError
from enginehouse.jobs.base import (
    Companion,
    Environment,
    Handle,
    JobSpec,
    JobState,
    JobStatus,
    Resources,
)
from enginehouse.jobs.executors.ray.executor import RayExecutor
from enginehouse.jobs.executors.ray.settings import RaySettings
from enginehouse.runtime.context import Context

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]
_JOB = JobSpec(
    id="00112233aabbccdd",
    name="an evaluation",
    folder=PurePosixPath("/shared/jobs/1"),
    command=("enginehouse", "eval"),
    files={"plan.yaml": "model: m\n"},
    environment=Environment(values={"A": "b"}, secrets=frozenset({"TOKEN"})),
    resources=Resources(nodes=2, gpus_per_node=8, cpus_per_node=4, memory_gb=2),
    companions=(Companion(name="workers", command=("run", "{node}", "{head}"), nodes=2),),
)


def settings(**given: object) -> RaySettings:
    """Settings of a cluster that is not there."""
    return RaySettings.model_validate({"output_dir": "/shared/jobs", **given})


def handle(address: str, name: str = "one") -> Handle:
    """A job that was submitted."""
    reference = {"address": address, "submission": name, "id": name}
    return Handle(executor="ray", folder="/shared/jobs/1", reference=reference)


@pytest.fixture
async def served() -> AsyncIterator[Callable[[Answering], Awaitable[str]]]:
    """Serves an answer to everything that is asked, and gives the address."""
    servers = []

    async def serve(answer: Answering) -> str:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        servers.append(TestServer(application, host="127.0.0.1"))
        await servers[-1].start_server()
        return str(servers[-1].make_url("")).rstrip("/")

    yield serve
    for server in servers:
        await server.close()


def test_what_is_rendered():
    """The request, and every node with its words; the secret's name, and nothing that is random."""
    artifacts = RayExecutor(settings(), Context()).render(_JOB)
    assert artifacts == RayExecutor(settings(), Context()).render(_JOB)
    by_name = {artifact.name: artifact.text for artifact in artifacts}
    request = json.loads(by_name["POST /api/jobs/"])
    assert request["metadata"]["enginehouse_job"] == _JOB.id
    assert "TOKEN" not in by_name["POST /api/jobs/"]
    described = json.loads(by_name["package: job.json"])
    assert described["resources"] == {"CPU": 4, "GPU": 8, "memory": 2 << 30}
    assert [node["command"] for node in described["nodes"]] == [
        ["enginehouse", "eval"],
        None,
        ["run", "2", "{head}"],
        ["run", "3", "{head}"],
    ]
    assert by_name["package: plan.yaml"] == "model: m\n"
    assert "TOKEN" in by_name["package"]


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (
            {"status": "PENDING", "message": "waits"},
            JobStatus(state=JobState.PENDING, reason="waits"),
        ),
        ({"status": "RUNNING"}, JobStatus(state=JobState.RUNNING)),
        (
            {"status": "SUCCEEDED", "driver_exit_code": 0},
            JobStatus(state=JobState.COMPLETE, exit_code=0),
        ),
        ({"status": "STOPPED"}, JobStatus(state=JobState.CANCELLED)),
        (
            {
                "status": "FAILED",
                "driver_exit_code": 4,
                "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR",
            },
            JobStatus(state=JobState.FAILED, exit_code=4),
        ),
        (
            {"status": "FAILED", "driver_exit_code": 240},
            JobStatus(state=JobState.INTERRUPTED, reason="TIMEOUT"),
        ),
        (
            {"status": "FAILED", "driver_exit_code": 241},
            JobStatus(state=JobState.FAILED, reason="a companion ended by itself"),
        ),
        (
            {
                "status": "FAILED",
                "error_type": "JOB_SUPERVISOR_ACTOR_DIED",
                "message": "gone\n",
            },
            JobStatus(state=JobState.INTERRUPTED, reason="JOB_SUPERVISOR_ACTOR_DIED: gone"),
        ),
        (
            {"status": "FAILED", "error_type": "RUNTIME_ENV_SETUP_FAILURE", "message": "no disk"},
            JobStatus(state=JobState.FAILED, reason="RUNTIME_ENV_SETUP_FAILURE: no disk"),
        ),
    ],
)
async def test_states(served, said: dict[str, object], status: JobStatus):
    """Every state of Ray's, by the job's own exit code where there is one."""

    async def answer(request: web.Request) -> web.Response:
        if "placement_groups" in request.path:
            return web.json_response({"data": {"result": {"result": []}}})
        return web.json_response({"submission_id": "one", "type": "SUBMISSION", **said})

    async with RayExecutor(settings(), Context()) as executor:
        assert await executor.statuses([handle(await served(answer))]) == [status]


async def test_many_are_asked_for_at_once(served):
    """One request for all jobs; those that the cluster forgot are unknown."""
    paths = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path)
        rows = [{"submission_id": f"job{n}", "status": "SUCCEEDED"} for n in range(150)]
        return web.json_response([{"submission_id": None, "status": "RUNNING"}, *rows])

    address = await served(answer)
    async with RayExecutor(settings(), Context()) as executor:
        statuses = await executor.statuses([handle(address, f"job{n}") for n in range(200)])
    assert [status.state for status in statuses] == (
        [JobState.COMPLETE] * 150 + [JobState.UNKNOWN] * 50
    )
    assert paths == ["/api/jobs/"]


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (401, "Unauthorized: Missing authentication token", "unauthorized"),
        (403, "Forbidden: Invalid authentication token", "unauthorized"),
        (404, "404: Not Found", "no_jobs_api"),
        (500, "Traceback\nValueError: no\n.", "refused"),
    ],
)
async def test_refusals(served, status: int, text: str, kind: str):
    """Each has its own kind, and nothing is submitted."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    async with RayExecutor(settings(address=await served(answer)), Context()) as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(_JOB, secrets={"TOKEN": "x"})
    assert caught.value.kind == kind
    assert caught.value.fix


async def test_a_cluster_that_is_not_there(unused_tcp_port: int):
    """The error names the address."""
    address = f"http://127.0.0.1:{unused_tcp_port}"
    async with RayExecutor(settings(address=address), Context()) as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(_JOB, secrets={"TOKEN": "x"})
    assert caught.value.kind == "unreachable"
    assert address in str(caught.value)


async def test_no_address(monkeypatch: pytest.MonkeyPatch):
    """Nor one of Ray's other protocols."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    for given in (None, "ray://head:10001", "head:6379"):
        async with RayExecutor(settings(address=given), Context()) as executor:
            with pytest.raises(JobError) as caught:
                await executor.submit(_JOB, secrets={"TOKEN": "x"})
        assert caught.value.kind == "no_address"
    monkeypatch.setenv("RAY_ADDRESS", "http://me:sesame@head:8265")
    async with RayExecutor(settings(address=None), Context()) as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(_JOB, secrets={"TOKEN": "x"})
    assert caught.value.kind == "no_address"
    assert "sesame" not in str(caught.value)


async def test_who_asks(served, monkeypatch: pytest.MonkeyPatch, tmp_path):
    """The token of a cluster with authentication, from where Ray's own client takes it."""
    seen = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"status": "SUCCEEDED", "submission_id": "one"})

    address = await served(answer)
    path = tmp_path / "token"
    path.write_text("from the file\n")
    for variables in (
        {},
        {"RAY_JOB_HEADERS": '{"Authorization": "Basic x"}'},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"},
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        async with RayExecutor(settings(), Context()) as executor:
            await executor.statuses([handle(address)])
    assert seen == [None, "Basic x", "Bearer from the file", "Bearer secret"]
    monkeypatch.setenv("RAY_JOB_HEADERS", "not json")
    async with RayExecutor(settings(), Context()) as executor:
        with pytest.raises(JobError) as caught:
            await executor.statuses([handle(address)])
    assert caught.value.kind == "unauthorized"


def test_gpus_that_do_not_multiply_out():
    """More than a node is to have; zero leaves them to others, such as vLLM over Ray."""
    with pytest.raises(ConfigurationError):
        settings(gpus_per_node=4).resources(gpus=8)
    assert settings().resources(gpus=8).gpus_per_node == 8
    assert settings(gpus_per_node=0).resources(gpus=8).gpus_per_node == 0
    assert settings(num_nodes=2).resources(gpus=8).gpus_per_node == 4
    with pytest.raises(ConfigurationError):
        settings(num_nodes=3).resources(gpus=8)


@pytest.mark.parametrize(
    "given", [{"output_dir": "jobs"}, {"address": "http://user:password@head:8265"}]
)
def test_settings_that_are_refused(given: dict[str, str]):
    """A folder without a place, and a password that would be kept."""
    with pytest.raises(ValueError, match=r".+"):
        settings(**given)
