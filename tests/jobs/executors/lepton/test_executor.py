"""Jobs in a faked Lepton workspace; what is sent is checked with leptonai's own models."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from pydantic import ValidationError
from tests.support.lepton_package import ensure_lepton_package

from enginehouse.core.errors import ConfigurationError, JobError
from enginehouse.jobs.base import Companion, Environment, Handle, JobSpec, JobState, JobStatus
from enginehouse.jobs.executors.lepton.executor import LeptonExecutor
from enginehouse.jobs.executors.lepton.settings import LeptonSettings
from enginehouse.jobs.launch_file import read_launch
from enginehouse.jobs.plan import plan_launch
from enginehouse.runtime.context import Context
from enginehouse.testing.check_executor import CASES, check_executor
from enginehouse.testing.fake_lepton import FakeLepton, running_fake_lepton

Make = Callable[..., LeptonExecutor]
# Lepton tells no exit code, and a job there has one machine.
POSSIBLE = [name for name in CASES if "companion" not in name and "exit_code" not in name]
ENDPOINT = {"container": {"image": "vllm", "command": ["vllm"]}, "api_tokens": []}

LAUNCH = """
defaults:
  - execution: lepton/default
  - deployment: vllm
  - _self_
execution:
  output_dir: results
  image: registry.example/enginehouse:1
  evaluation_tasks:
    timeout: 7
  lepton_platform:
    deployment:
      node_group: my-node-group-01
      platform_defaults:
        image_pull_secrets: [registry]
        health: {liveness: {initial_delay_seconds: 60}}
    tasks:
      node_group: my-node-group-01
      env_vars:
        API_KEY: {value_from: {secret_name_ref: ENDPOINT_API_KEY}}
        PLAIN: text
      mounts:
        - from: "node-nfs:shared"
          path: /users/me
          mount_path: /workspace
deployment:
  checkpoint_path: meta-llama/Llama-3.1-8B-Instruct
  served_model_name: llama
  extra_args: "--max-model-len 4096"
  tensor_parallel_size: 2
  lepton_config:
    endpoint_name: llama-3-1-8b
    resource_shape: gpu.2xh200
    max_replicas: 3
    api_tokens:
      - value_from: {token_name_ref: ENDPOINT_API_KEY}
    auto_scaler:
      scale_down: {no_traffic_timeout: 600, scale_from_zero: false}
    envs:
      HF_TOKEN: {value_from: {secret_name_ref: HUB}}
    mounts:
      enabled: true
      cache_path: /users/me/cache
      mount_path: /cache
evaluation:
  tasks:
    - name: ifeval
"""


@pytest.fixture
async def lepton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeLepton]:
    """A faked workspace that is logged in to."""
    async with running_fake_lepton(tmp_path / "lepton") as fake:
        for name, value in fake.environment().items():
            monkeypatch.setenv(name, value)
        yield fake


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes executors whose storage is a folder of this machine."""

    def make(*, tasks: dict[str, Any] | None = None, **changes: Any) -> LeptonExecutor:
        volume = str(tmp_path / "volume")
        mounts = [{"path": "/anywhere", "mount_path": volume}]
        values: dict[str, Any] = {
            "output_dir": "jobs",
            "image": "registry.example/enginehouse:1",
            "mounted_here": volume,
            "lepton_platform": {"tasks": {"mounts": mounts, **(tasks or {})}},
        }
        return LeptonExecutor(LeptonSettings(**(values | changes)), Context())

    return make


def job_in(tmp_path: Path, script: str, **changes: Any) -> JobSpec:
    """A job with a script of its own."""
    number = secrets.token_hex(8)
    return JobSpec(
        id=number,
        name="a job",
        folder=PurePosixPath(tmp_path / "volume" / "jobs" / number),
        command=("/bin/sh", "script.sh"),
        files={"script.sh": script},
        **changes,
    )


async def until(executor: LeptonExecutor, handle: Handle, *states: JobState) -> JobStatus:
    """Wait until the job is in one of the states."""
    async with asyncio.timeout(60):
        while True:
            (status,) = await executor.statuses([handle])
            if status.state in states:
                return status
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("case", POSSIBLE)
async def test_conformance(case: str, make: Make, lepton: FakeLepton, tmp_path: Path) -> None:
    """Every case of the suite of executors that Lepton's API allows."""
    folder = PurePosixPath(tmp_path / "volume" / "jobs")
    assert await check_executor(make, folder=folder, only=[case]) == []


def accepted(kind: str, body: Any) -> dict[str, Any]:
    """What leptonai makes of a specification: it drops what it does not know."""
    program = (
        "import json, sys\n"
        "from leptonai.api.v2.job_validation import validate_job_create\n"
        "from leptonai.api.v2.types.deployment import LeptonDeployment\n"
        "from leptonai.api.v2.types.job import LeptonJob\n"
        "kind = {'job': LeptonJob, 'deployment': LeptonDeployment}[sys.argv[1]]\n"
        "parsed = kind.model_validate(json.load(sys.stdin))\n"
        "if sys.argv[1] == 'job': validate_job_create(parsed)\n"
        "print(parsed.model_dump_json(exclude_unset=True, by_alias=True))\n"
    )
    done = subprocess.run(
        [str(ensure_lepton_package()), "-c", program, kind],
        input=json.dumps(body),
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def planned(tmp_path: Path, text: str = LAUNCH) -> tuple[LeptonExecutor, JobSpec, Any]:
    """The executor and the job of a launch file, and the file as it was read."""
    path = tmp_path / "launch.yaml"
    path.write_text(text)
    config = read_launch(path)
    assert isinstance(config.execution, LeptonSettings)
    return LeptonExecutor(config.execution, Context()), plan_launch(config).job, config


@pytest.mark.slow
async def test_specifications_are_leptons_own(lepton: FakeLepton, tmp_path: Path) -> None:
    """The package accepts what is sent, and drops nothing of it."""
    executor, job, _ = planned(tmp_path)
    lepton.api_tokens = {"ENDPOINT_API_KEY": "key"}
    lepton.secrets = {"ENDPOINT_API_KEY": "key", "HUB": "token"}
    async with executor:
        handle = await executor.submit(job, secrets={})
        await executor.cancel(handle)
    job_sent, endpoint_sent = lepton.sent["jobs"], lepton.sent["deployments"]
    job_sent["metadata"].pop("id")
    job_sent.pop("status")
    job_sent["spec"].pop("stopped")
    assert accepted("job", job_sent) == job_sent
    assert accepted("deployment", endpoint_sent) == endpoint_sent


async def test_every_key_acts(lepton: FakeLepton, tmp_path: Path) -> None:
    """The keys of the launcher's own examples are in what is sent, or listed as without effect."""
    executor, job, config = planned(tmp_path)
    rendered = {one.name: one.text for one in executor.render(job)}
    endpoint = json.loads(rendered["endpoint.json"])["spec"]
    assert endpoint["resource_requirement"] == {
        "resource_shape": "gpu.2xh200",
        "min_replicas": 1,
        "max_replicas": 3,
        "affinity": {"allowed_dedicated_node_groups": ["my-node-group-01"]},
    }
    assert endpoint["auto_scaler"] == {"scale_down": {"no_traffic_timeout": 600}}
    assert endpoint["api_tokens"] == [{"value_from": {"token_name_ref": "ENDPOINT_API_KEY"}}]
    assert endpoint["envs"] == [{"name": "HF_TOKEN", "value_from": {"secret_name_ref": "HUB"}}]
    cache = {"path": "/users/me/cache", "mount_path": "/cache"}
    assert endpoint["mounts"] == [{"from": "node-nfs:shared", **cache}]
    assert endpoint["image_pull_secrets"] == ["registry"]
    assert endpoint["health"] == {"liveness": {"initial_delay_seconds": 60}}
    words = endpoint["container"]["command"]
    assert words[:3] == ["vllm", "serve", "meta-llama/Llama-3.1-8B-Instruct"]
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert words[-2:] == ["--max-model-len", "4096"]
    sent = json.loads(rendered["job.json"])["spec"]
    assert sent["resource_shape"] == "cpu.small"
    assert {"name": "PLAIN", "value": "text"} in sent["envs"]
    assert sent["mounts"][0]["mount_path"] == "/workspace"
    assert str(job.folder).startswith("/workspace/results/")
    assert "https://endpoint.invalid 7 API_KEY" in rendered["job.sh"]
    assert "api_key_env: API_KEY" in job.files["plan.yaml"]
    place = "deployment.lepton_config.auto_scaler.scale_down.scale_from_zero"
    assert place in config.not_acted_on


def test_sglang_gets_all_that_has_a_key(tmp_path: Path) -> None:
    """Also what a flag of extra_args said."""
    text = LAUNCH.replace("deployment: vllm", "deployment: sglang").replace(
        "--max-model-len 4096", "--mem-fraction-static 0.5 --context-length 4096"
    )
    executor, job, _ = planned(tmp_path, text)
    rendered = {one.name: one.text for one in executor.render(job)}
    words = json.loads(rendered["endpoint.json"])["spec"]["container"]["command"]
    assert words[:3] == ["python3", "-m", "sglang.launch_server"]
    assert words[words.index("--tp-size") + 1] == "2"
    assert words[words.index("--mem-fraction-static") + 1] == "0.5"
    assert words[-2:] == ["--context-length", "4096"]


def test_an_engine_without_a_command_of_its_own(tmp_path: Path) -> None:
    """What its image would run is not known."""
    text = LAUNCH.replace("deployment: vllm", "deployment: hf")
    with pytest.raises(ConfigurationError, match="hf cannot be an endpoint"):
        planned(tmp_path, text)


async def test_the_job_asks_the_endpoint(make: Make, lepton: FakeLepton, tmp_path: Path) -> None:
    """It waits until the endpoint is ready, and has its address in its files."""
    lepton.ready = False
    job = job_in(tmp_path, "cat plan.yaml")
    job = JobSpec(
        **(vars(job) | {"files": {**job.files, "plan.yaml": "https://endpoint.invalid/v1"}})
    )
    async with make(endpoint=ENDPOINT) as executor:
        handle = await executor.submit(job, secrets={})
        await until(executor, handle, JobState.RUNNING)
        lepton.ready = True
        await until(executor, handle, JobState.COMPLETE)
        said = "".join([piece async for piece in executor.logs(handle, follow=True)])
    assert said == f"{lepton.address}/endpoints/server-{job.id}/v1"
    assert lepton.deployments == {}


@pytest.mark.slow
async def test_an_endpoint_that_is_never_ready_fails_the_job(
    make: Make, lepton: FakeLepton, tmp_path: Path
) -> None:
    """After evaluation_tasks.timeout, and it is deleted."""
    lepton.ready = False
    async with make(endpoint=ENDPOINT, evaluation_tasks={"timeout": 1}) as executor:
        handle = await executor.submit(job_in(tmp_path, "true"), secrets={})
        await until(executor, handle, JobState.FAILED)
        said = "".join([piece async for piece in executor.logs(handle, follow=False)])
    assert "503" in said
    assert lepton.deployments == {}


@pytest.mark.slow
async def test_a_token_that_the_endpoint_refuses(
    make: Make, lepton: FakeLepton, tmp_path: Path
) -> None:
    """The job does not wait for it."""
    endpoint = {**ENDPOINT, "api_tokens": [{"value_from": {"token_name_ref": "T"}}]}
    lepton.api_tokens = {"T": "right"}
    async with make(endpoint=endpoint, tasks={"env_vars": {"API_KEY": "wrong"}}) as executor:
        handle = await executor.submit(job_in(tmp_path, "true"), secrets={})
        await until(executor, handle, JobState.FAILED)


@pytest.mark.slow
async def test_kill_deletes_what_belongs_to_the_job(
    make: Make, lepton: FakeLepton, tmp_path: Path
) -> None:
    """The endpoint and the secrets; the job itself is kept as stopped."""
    job = job_in(tmp_path, "sleep 600", environment=Environment(secrets=frozenset({"KEY"})))
    async with make(endpoint=ENDPOINT) as executor:
        handle = await executor.submit(job, secrets={"KEY": "value"})
        await until(executor, handle, JobState.RUNNING)
        assert lepton.deployments
        assert lepton.secrets
        await executor.cancel(handle)
        assert await until(executor, handle, JobState.CANCELLED)
    assert lepton.deployments == {}
    assert lepton.secrets == {}


@pytest.mark.parametrize("kind", ["jobs", "deployments", "usersecrets"])
async def test_a_refusal_leaves_nothing_behind(
    kind: str, make: Make, lepton: FakeLepton, tmp_path: Path
) -> None:
    """Whatever is refused, what was created before it is deleted."""
    lepton.refusals[kind] = 403
    job = job_in(tmp_path, "true", environment=Environment(secrets=frozenset({"KEY"})))
    async with make(endpoint=ENDPOINT) as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job, secrets={"KEY": "value"})
    assert caught.value.kind == "forbidden"
    assert not lepton.deployments
    assert not lepton.secrets
    assert not lepton.jobs


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"image": None}, "no_image"),
        ({"tasks": {"node_group": "unknown"}}, "unknown_node_group"),
    ],
)
async def test_what_cannot_be_submitted(
    changes: dict[str, Any], kind: str, make: Make, lepton: FakeLepton, tmp_path: Path
) -> None:
    """Each is an error of its own."""
    async with make(**changes) as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job_in(tmp_path, "true"), secrets={})
    assert caught.value.kind == kind


async def test_companions_are_refused(make: Make, lepton: FakeLepton, tmp_path: Path) -> None:
    """A job on Lepton has no further nodes."""
    job = job_in(tmp_path, "true", companions=(Companion(name="worker", command=("true",)),))
    async with make() as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job, secrets={})
    assert caught.value.kind == "no_companions"


async def test_a_running_job_is_not_submitted_again(
    make: Make, lepton: FakeLepton, tmp_path: Path
) -> None:
    """Two jobs would write to one folder."""
    job = job_in(tmp_path, "sleep 600")
    async with make() as executor:
        await executor.submit(job, secrets={})
        with pytest.raises(JobError) as caught:
            await executor.submit(job, secrets={})
    assert caught.value.kind == "running"


async def test_results_that_are_not_mounted_here(
    make: Make, lepton: FakeLepton, tmp_path: Path
) -> None:
    """The error says where they are."""
    async with make(mounted_here=None) as executor:
        handle = await executor.submit(job_in(tmp_path, "true"), secrets={})
        with pytest.raises(JobError) as caught:
            await executor.fetch(handle, tmp_path / "copy")
    assert caught.value.kind == "not_mounted"


async def test_nobody_is_logged_in(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a variable nor a file names a workspace."""
    monkeypatch.setenv("LEPTON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("LEPTON_WORKSPACE_ID", raising=False)
    async with make() as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job_in(tmp_path, "true"), secrets={})
    assert caught.value.kind == "no_configuration"


async def test_the_login_of_lep_is_used(
    make: Make, lepton: FakeLepton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file names the workspace, the address and the token."""
    variables = lepton.environment()
    for name in variables:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LEPTON_CACHE_DIR", str(tmp_path))
    known = {"id": "fake", "url": variables["LEPTON_WORKSPACE_URL"]}
    record = {
        "workspaces": {"fake": known | {"auth_token": lepton.token}},
        "current_workspace": "fake",
    }
    (tmp_path / "workspace_info.yaml").write_text(json.dumps(record))
    async with make() as executor:
        handle = await executor.submit(job_in(tmp_path, "true"), secrets={})
        await until(executor, handle, JobState.COMPLETE)


async def test_a_wrong_token(
    make: Make, lepton: FakeLepton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told apart from a missing permission."""
    monkeypatch.setenv("LEPTON_WORKSPACE_TOKEN", "wrong")
    async with make() as executor:
        with pytest.raises(JobError) as caught:
            await executor.submit(job_in(tmp_path, "true"), secrets={})
    assert caught.value.kind == "unauthorized"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("resource_shape: gpu.2xh200", "resource_shape: gpu.1xh200"),
        ("    resource_shape: gpu.2xh200\n", ""),
        ("{token_name_ref: ENDPOINT_API_KEY}", "{}"),
        ("served_model_name: llama", "env_vars: {A: 'host:HOME'}"),
    ],
)
def test_files_that_cannot_work(old: str, new: str, tmp_path: Path) -> None:
    """They are refused before anything is connected to."""
    assert old in LAUNCH
    with pytest.raises(ConfigurationError):
        planned(tmp_path, LAUNCH.replace(old, new))


def test_the_folder_must_be_in_the_first_mount() -> None:
    """Elsewhere it would be lost with the job."""
    mounts = [{"path": "/a", "mount_path": "/workspace"}]
    with pytest.raises(ValidationError):
        LeptonSettings(output_dir="/elsewhere", lepton_platform={"tasks": {"mounts": mounts}})
