"""No value of a secret is in anything that a launch writes, prints or shows to `ps`."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from tests.support.command_line import Finished, House, sums, until
from tests.support.processes import command_of

FROM_HERE, LITERAL = "sesame-from-the-environment", "hf_sesameInTheFile"
VARIABLE = "MY_OWN_SECRET"


@pytest.fixture
def file(house: House) -> Path:
    """A job with a secret of each kind, whose shell prints what it runs."""
    items, canned = sums(right=9, wrong=3)
    name, _, answers = house.answers(canned).partition("=")
    values = {
        "defaults": [{"execution": "local"}, {"deployment": "vllm"}, "_self_"],
        "env_vars": {"EVERYWHERE_KEY": f"host:{VARIABLE}"},
        "execution": {
            "output_dir": "jobs",
            "env_vars": {"deployment": {"OLDER_TOKEN": f"host:{VARIABLE}"}},
        },
        "deployment": {
            "checkpoint_path": str(house.model()),
            "tensor_parallel_size": 1,
            "pre_cmd": "set -x",
            "env_vars": {
                name: answers,
                "VLLM_FAKE_TOKEN_LATENCY": "0.02",
                "HF_TOKEN": LITERAL,
                "HF_HUB_TOKEN": f"${{oc.env:{VARIABLE}}}",
            },
        },
        "evaluation": {
            "tasks": [{"name": str(house.task(items)), "env_vars": {"A_KEY": f"host:{VARIABLE}"}}],
            "nemo_evaluator_config": {"config": {"params": {"parallelism": 1}}},
        },
    }
    return house.write("launch.yaml", yaml.safe_dump(values, sort_keys=False))


@pytest.mark.slow
def test_no_secret_is_written_printed_or_shown(house: House, file: Path):
    """The launch file itself is the user's own."""
    said: list[str] = []

    def call(*words: str, **env: str) -> Finished:
        done = house.run("launch", *words, **{VARIABLE: FROM_HERE}, **env)
        said.append(f"{done.out}\n{done.err}")
        return done

    assert call("run", "--config", str(file), "--dry-run", "--verbose").code == 0
    assert call("run", "--config", str(file), "--dry-run", "--json").code == 0
    begun = call("run", "--config", str(file), "--json")
    assert begun.code == 0, begun.err
    job = begun.report["id"]
    until(lambda: _engines(house), "the engine does not start")
    words = [word for process in house.processes() for word in command_of(process)]
    assert any("launch" in word or "local_process" in word for word in words)
    _wait(call, job)
    for command in ("status", "logs", "info"):
        assert call(command, job).code == 0
    assert "+ " in call("logs", job).out  # what `set -x` prints is there
    assert call("resume", job, HF_TOKEN=LITERAL).code == 0  # a literal is kept nowhere
    _wait(call, job)
    said += words

    assert not [text for text in said if FROM_HERE in text or LITERAL in text]
    assert not [path for path in _files(house, file) if _holds_secret(path)]


def _engines(house: House) -> list[psutil.Process]:
    """The engine's processes, which have been given the secrets."""
    processes = []
    for process in house.processes():
        with suppress(psutil.Error):
            environment = process.environ()
            if environment.get("HF_TOKEN") == LITERAL and "GUARD_ADMIN_KEY" in environment:
                assert environment["OLDER_TOKEN"] == FROM_HERE
                assert environment["HF_HUB_TOKEN"] == FROM_HERE
                processes.append(process)
    return processes


def _wait(call: Callable[..., Finished], job: str) -> None:
    def ended() -> bool:
        state = call("status", job, "--json").report[0]["status"]["state"]
        return state not in ("pending", "running")

    until(ended, "the job does not end")


def _files(house: House, file: Path) -> Iterator[Path]:
    """Everything that the launch and its job left on the disk."""
    for path in house.folder.rglob("*"):
        if path.is_file() and path != file:
            yield path


def _holds_secret(path: Path) -> bool:
    content = path.read_bytes()
    return FROM_HERE.encode() in content or LITERAL.encode() in content
