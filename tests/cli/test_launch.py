"""`enginehouse launch` with local jobs, from the file to the run."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.support.command_line import Finished, House, journaled, scored, sums, until

from enginehouse.core.errors import ConfigurationError, JobError, StartError
from enginehouse.jobs.local_process import END
from enginehouse.jobs.records import JobRecords
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_environment import make_fake_environment

Call = Callable[..., Finished]
AT_ONCE = 15.0  # seconds, on a busy machine; an engine may take many minutes to be ready
SECRET = "hf_notARealTokenButLongEnoughToBeOne"


class Launches:
    """Launch files of one house, and the jobs that they become."""

    def __init__(self, house: House, call: Call) -> None:
        self.house = house
        self.call = call
        items, canned = sums(right=9, wrong=3)
        self.task = house.task(items)
        name, _, self.answers = house.answers(canned).partition("=")
        self.variables = {name: self.answers}

    def file(
        self,
        name: str = "launch.yaml",
        *,
        env: dict[str, str] | None = None,
        instances: int = 1,
        **deployment: Any,
    ) -> Path:
        """A launch file of twelve samples of the user's own task, one at a time."""
        values = {
            "defaults": [{"execution": "local"}, {"deployment": "vllm"}, "_self_"],
            "execution": {"output_dir": "jobs", "num_instances": instances},
            "deployment": {
                "checkpoint_path": self.house.model().name,
                "tensor_parallel_size": 1,
                "env_vars": self.variables | (env or {}),
                **deployment,
            },
            "evaluation": {
                "tasks": [{"name": str(self.task)}],
                "nemo_evaluator_config": {"config": {"params": {"parallelism": 1}}},
            },
        }
        return self.house.write(name, yaml.safe_dump(values, sort_keys=False))

    def generic(self, command: str, **env: str) -> Path:
        """The same with a server by a command of its own."""
        values = {
            "defaults": [{"execution": "local"}, {"deployment": "generic"}, "_self_"],
            "execution": {"output_dir": "jobs"},
            "deployment": {
                "command": command,
                "served_model_name": "theirs",
                "port": None,
                "env_vars": self.variables | env,
            },
            "evaluation": {
                "tasks": [{"name": str(self.task)}],
                "nemo_evaluator_config": {"config": {"params": {"parallelism": 1}}},
            },
        }
        return self.house.write("generic.yaml", yaml.safe_dump(values, sort_keys=False))

    def slow(self) -> Path:
        """One whose answers take their time."""
        return self.file(env={"VLLM_FAKE_TOKEN_LATENCY": "0.02"})

    def run(self, file: Path, *words: str, **env: str) -> Any:
        """The record of a job that was launched."""
        done = self.call("launch", "run", "--config", str(file), "--json", *words, **env)
        assert done.code == 0, done.err
        return done.report

    def status(self, job: str) -> Any:
        """The record of a job now."""
        done = self.call("launch", "status", job, "--json")
        assert done.code == 0, done.err
        return done.report[0]

    def ended(self, job: str) -> Any:
        """The record of a job after its end."""

        def look() -> Any:
            record = self.status(job)
            return None if record["status"]["state"] in ("pending", "running") else record

        return until(look, lambda: f"it does not end:\n{self.call('launch', 'logs', job).out}")

    def seconds_to_fail(self, record: Any) -> float:
        """From the last words of the only server that there was to the job's end."""
        (log,) = self.house.home.glob("state/servers/*/server.log")
        end = Path(record["job"]["folder"]) / END
        return end.stat().st_mtime - log.stat().st_mtime

    def working(self, record: Any, *, samples: int = 2) -> Path:
        """The run of a job that has scored some samples."""
        run = Path(record["job"]["folder"]) / "run"
        until(lambda: scored(run) >= samples, "no sample is scored")
        return run


@pytest.fixture
def launches(house: House, call: Call) -> Launches:
    """Launch files with local jobs."""
    return Launches(house, call)


@pytest.mark.slow
def test_from_the_file_to_the_run(house: House, call: Call, launches: Launches):
    """A job runs the evaluation, and its run is one as any other."""
    begun = launches.run(launches.file())
    job = begun["id"]
    assert len(job) == 16
    followed = call("launch", "logs", job, "--follow")
    assert followed.code == 0, followed.err
    assert "75.0%" in followed.out
    assert launches.ended(job[:6])["status"] == {
        "state": "complete",
        "reason": None,
        "exit_code": 0,
    }
    folder = Path(begun["job"]["folder"])
    assert folder.parent == house.work / "jobs"
    shown = call("show", str(folder / "run"))
    assert shown.code == 0, shown.err
    assert "75.0%" in shown.out
    assert set(journaled(folder / "run").samples.values()) == {1}
    listed = call("launch", "ls", "runs")
    assert job[:8] in listed.out
    assert "complete" in listed.out
    informed = call("launch", "info", job)
    assert str(folder) in informed.out
    assert "75.0%" in informed.out


@pytest.mark.slow
def test_kill_and_resume(house: House, call: Call, launches: Launches):
    """A killed job leaves nothing; resumed, it asks only what is missing."""
    begun = launches.run(launches.slow())
    run = launches.working(begun)
    still = call("launch", "resume", begun["id"])
    assert still.code == JobError.exit_code
    killed = call("launch", "kill", begun["id"], "--json")
    assert killed.code == 0, killed.err
    assert killed.report["status"]["state"] == "cancelled"
    house.nothing_left()
    assert 0 < scored(run) < 12
    assert call("launch", "kill", begun["id"]).code == 0
    resumed = call("launch", "resume", begun["id"], "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.report["submissions"] == 2
    assert launches.ended(begun["id"])["status"]["state"] == "complete"
    assert set(journaled(run).samples.values()) == {1}
    assert len(journaled(run).samples) == 12


@pytest.mark.slow
def test_the_path_is_used_if_the_handle_is_not_found(launches: Launches):
    """The job decides that where it runs, and says so."""
    begun = launches.run(launches.file(hf_model_handle="nobody/nothing"), HF_HUB_OFFLINE="1")
    assert launches.ended(begun["id"])["status"]["state"] == "complete"
    said = launches.call("launch", "logs", begun["id"]).out
    assert "nobody/nothing" in said
    assert launches.house.model().name in said


@pytest.mark.slow
def test_one_of_two_instances_is_killed(house: House, call: Call, launches: Launches):
    """No sample is lost, and none has two answers."""
    slow = {"VLLM_FAKE_TOKEN_LATENCY": "0.05"}
    begun = launches.run(launches.file(env=slow, instances=2, variant="cpu"))
    run = launches.working(begun, samples=1)
    servers = [json.loads(r.read_text()) for r in house.home.glob("state/servers/*/server.json")]
    assert len(servers) == 2
    psutil.Process(servers[0]["process"]["pid"]).send_signal(signal.SIGKILL)
    assert launches.ended(begun["id"])["status"]["state"] == "complete"
    assert list(journaled(run).samples.values()) == [1] * 12
    assert "75.0%" in call("show", str(run)).out
    house.nothing_left()


@pytest.mark.slow
def test_killed_launchers_and_supervisors(house: House, call: Call, launches: Launches):
    """A job survives its launcher; after kill -9 of its own process, nothing is left of it."""
    launcher = house.start("launch", "run", "--config", str(launches.slow()))
    launcher.until("its output")
    launcher.kill()
    (listed,) = call("launch", "ls", "runs", "--json").report
    launches.working(listed)
    supervisor = psutil.Process(int(listed["handle"]["reference"]["pid"]))
    supervisor.send_signal(signal.SIGKILL)
    record = launches.ended(listed["id"])
    assert record["status"]["state"] == "interrupted"
    assert call("launch", "kill", listed["id"]).code == 0
    # The reapers have done their work, and end by themselves.
    until(lambda: not house.processes(), lambda: str(house.processes()))
    house.nothing_left()


@pytest.mark.slow
def test_a_launcher_killed_before_it_noted_the_handle(
    house: House, call: Call, launches: Launches, layout: Layout
):
    """The job is found again by what its own process wrote."""
    begun = launches.run(launches.slow())
    launches.working(begun, samples=1)
    JobRecords(layout).update(begun["id"], handle=None, submissions=0)
    killed = call("launch", "kill", begun["id"], "--json")
    assert killed.code == 0, killed.err
    assert killed.report["status"]["state"] == "cancelled"
    assert killed.report["handle"] == begun["handle"]


@pytest.mark.slow
def test_a_launcher_that_is_interrupted(house: House, call: Call, launches: Launches):
    """Ctrl-C at any moment leaves a job that is recorded and runs, or nothing at all."""
    launcher = house.start("launch", "run", "--config", str(launches.slow()))
    until(lambda: list(house.work.glob("jobs/*")), "no folder")
    launcher.interrupt()
    launcher.end()
    for record in call("launch", "ls", "runs", "--json").report:
        assert call("launch", "kill", record["id"]).code == 0
    house.nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 3])
def test_an_engine_that_exits(house: House, call: Call, launches: Launches, code: int):
    """The job fails at once, with the engine's diagnosis, even if its exit code is 0."""
    python = make_fake_environment(house.folder / "exits")
    server = next((house.folder / "exits").rglob("openai/api_server.py"))
    server.write_text(f"import sys\n\nprint('goodbye')\nsys.exit({code})\n")
    begun = launches.run(launches.file(python=str(python)))
    record = launches.ended(begun["id"])
    assert record["status"]["state"] == "failed"
    assert record["status"]["exit_code"] == StartError.exit_code
    first = record["diagnosis"].splitlines()[0]
    assert f"exit code {code}" in record["diagnosis"]
    assert launches.seconds_to_fail(record) < AT_ONCE
    assert first in call("launch", "status", begun["id"]).out
    assert first in call("launch", "info", begun["id"]).out
    house.nothing_left()


# A script rather than a program: what it leaves behind when it is told to stop must end, too.
OWN_SERVER = (
    f"sleep 1000 & {sys.executable} -m enginehouse.testing.fake_engine --model "
    "$SERVED_MODEL_NAME --host $HOST --port $PORT; echo it has ended"
)


@pytest.mark.slow
def test_a_server_by_its_command(house: House, call: Call, launches: Launches):
    """It is started, asked at its address, and stopped with everything that its command started."""
    begun = launches.run(launches.generic(OWN_SERVER))
    assert launches.ended(begun["id"])["status"]["state"] == "complete"
    run = Path(begun["job"]["folder"]) / "run"
    assert "75.0%" in call("show", str(run)).out
    house.nothing_left()


@pytest.mark.slow
def test_a_server_by_its_command_that_is_killed(house: House, call: Call, launches: Launches):
    """It is started again while the job runs; `kill` ends both."""
    begun = launches.run(launches.generic(OWN_SERVER, VLLM_FAKE_TOKEN_LATENCY="0.05"))
    launches.working(begun, samples=1)
    (record,) = house.home.glob("state/servers/*/server.json")
    server = json.loads(record.read_text())["process"]["pid"]
    psutil.Process(server).send_signal(signal.SIGKILL)
    until(
        lambda: json.loads(record.read_text())["process"]["pid"] != server,
        "it is not started again",
    )
    killed = call("launch", "kill", begun["id"], "--json")
    assert killed.report["status"]["state"] == "cancelled"
    house.nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_ends(house: House, call: Call, launches: Launches, code: int):
    """The job fails at once, with what its output says."""
    script = f"echo 'torch.OutOfMemoryError: CUDA out of memory.'; exit {code}"
    begun = launches.run(launches.generic(script))
    record = launches.ended(begun["id"])
    assert record["status"]["state"] == "failed"
    assert record["status"]["exit_code"] == StartError.exit_code
    assert f"exit code {code}" in record["diagnosis"]
    assert launches.seconds_to_fail(record) < AT_ONCE
    assert "CUDA out of memory" in record["diagnosis"]
    house.nothing_left()


def test_dry_run(house: House, call: Call, launches: Launches):
    """It shows the plan and the command line, hides secrets, and writes nothing."""
    file = launches.file(env={"HF_TOKEN": SECRET})
    before = sorted(house.folder.rglob("*"))
    done = call("launch", "run", "--config", str(file), "--dry-run")
    assert done.code == 0, done.err
    assert "eval --config plan.yaml --folder run" in done.out
    assert "GPUs: 1 needed" in done.out
    assert SECRET not in done.out + done.err
    after = sorted(path for path in house.folder.rglob("*") if path not in before)
    assert after == []


def test_a_launch_says_what_its_tasks_are(call: Call, launches: Launches):
    """Also without a dry run, if they run under another name."""
    file = launches.file(env={"HF_TOKEN": "host:HF_TOKEN"})
    named = yaml.safe_load(file.read_text())
    named["evaluation"]["tasks"] = [{"name": "gsm8k_cot_instruct"}]
    file.write_text(yaml.safe_dump(named))
    refused = call("launch", "run", "--config", str(file))
    assert refused.code == ConfigurationError.exit_code
    assert "HF_TOKEN" in refused.err
    assert "task: gsm8k_cot_instruct -> gsm8k: our own task gsm8k" in refused.err


@pytest.mark.slow
def test_gpus_that_do_not_multiply_out(house: House, call: Call, launches: Launches):
    """More GPUs than there are: said in the dry run, refused at the launch, nothing left."""
    file = launches.file(tensor_parallel_size=4, data_parallel_size=2)
    dry = call("launch", "run", "--config", str(file), "--dry-run", "--json")
    assert dry.report["gpus_needed"] == 8
    assert "8 GPUs" in dry.report["refusals"][0]
    assert dry.code == 0, "a file for another machine can be looked at here"
    refused = call("launch", "run", "--config", str(file))
    assert refused.code == JobError.exit_code
    assert not (house.work / "jobs").exists()
    assert call("launch", "ls", "runs", "--json").report == []
    limited = call("launch", "run", "--config", str(file), "-o", "+execution.gpus=4")
    assert limited.code == ConfigurationError.exit_code


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh")
def test_a_login_node_that_cannot_be_reached(house: House, call: Call, launches: Launches):
    """An error of its own that says what to check; no record, no folder, no process is left."""
    values = yaml.safe_load(launches.file().read_text())
    values["defaults"][0] = {"execution": "slurm/default"}
    with socket.socket() as closed:  # it is bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        options = {"Port": closed.getsockname()[1]}
        values["execution"] = {
            "hostname": "127.0.0.1",
            "account": "mine",
            "output_dir": str(house.work / "jobs"),
            "ssh_options": options,
        }
        file = house.write("slurm.yaml", yaml.safe_dump(values, sort_keys=False))
        refused = call("launch", "run", "--config", str(file))
    assert refused.code == JobError.exit_code
    assert "the login node 127.0.0.1 could not be reached" in refused.err
    assert "check that `ssh 127.0.0.1` works" in refused.err
    assert not (house.work / "jobs").exists()
    assert call("launch", "ls", "runs", "--json").report == []
    house.nothing_left()


@pytest.mark.slow
def test_secrets_are_nowhere(house: House, call: Call, launches: Launches):
    """Not in any file of the home or the job, nor in what is printed."""
    file = launches.file(env={"HF_TOKEN": "host:HF_TOKEN"})
    begun = launches.run(file, HF_TOKEN=SECRET)
    launches.ended(begun["id"])
    for words in (("info",), ("status",), ("logs",)):
        done = call("launch", *words, begun["id"])
        assert SECRET not in done.out + done.err
    for path in house.folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    unset = call("launch", "resume", begun["id"])
    assert unset.code == ConfigurationError.exit_code
    assert "HF_TOKEN" in unset.err


@pytest.mark.slow
def test_two_launchers_at_once(house: House, call: Call, launches: Launches):
    """Both jobs run, and both are remembered."""
    started = [house.start("launch", "run", "--config", str(launches.file())) for _ in range(3)]
    assert [one.end().code for one in started] == [0, 0, 0]
    records = call("launch", "ls", "runs", "--json").report
    assert len(records) == 3
    assert {launches.ended(record["id"])["status"]["state"] for record in records} == {"complete"}


@pytest.mark.slow
def test_references(house: House, call: Call, launches: Launches):
    """An unknown job and a beginning that several have are refused, with what to do."""
    none = call("launch", "info", "abcd")
    assert none.code == JobError.exit_code
    assert "launch run" in none.err
    begun = launches.run(launches.file())
    launches.ended(begun["id"])
    assert call("launch", "info", "zzzz").code == JobError.exit_code
    assert call("launch", "status", begun["id"].upper()).code == 0


def test_records_that_are_broken(house: House, call: Call, launches: Launches):
    """A file that is no database, and one of a newer version, are kept and named."""
    path = house.home / "state/jobs.sqlite"
    path.parent.mkdir(parents=True)
    path.write_text("this is not a database, whatever its name may say" * 40)
    broken = call("launch", "ls", "runs")
    assert broken.code == 8
    assert str(path) in broken.err
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert call("launch", "ls", "runs").code == 8


def test_a_file_for_the_rewritten_launcher_is_converted(house: House, call: Call):
    """To standard output; what has no counterpart is named."""
    house.write(
        "original.yaml",
        "services: {m: {type: api, url: 'http://x/v1', protocol: completions, model: a}}\n"
        "benchmarks: [{name: gsm8k, fewshot: 5, solver: {type: simple, service: m}}]\n",
    )
    done = call("launch", "convert", "original.yaml")
    refused = call("launch", "run", "--config", "original.yaml", "--dry-run")

    assert done.code == 0, done.err
    assert yaml.safe_load(done.out)["target"]["api_endpoint"]["url"] == "http://x/v1"
    assert "benchmarks.0.fewshot" in done.err
    assert refused.code == 2
    assert "launch convert original.yaml" in refused.err
