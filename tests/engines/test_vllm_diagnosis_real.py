"""Failures of the real vLLM are known by what it says today, not when the logs were recorded."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from tests.support.engine_logs import diagnose

from enginehouse.diagnosis import Diagnosis, FailureKind
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.provisioning.environments import EngineEnvironment

pytestmark = pytest.mark.engine


@pytest.fixture
def environment(vllm_environment: EngineEnvironment) -> EngineEnvironment:
    """The real one, and not the description that this folder's other tests use."""
    return vllm_environment


def fail(environment: EngineEnvironment, *arguments: str, log: Path, **env: str) -> Diagnosis:
    """Start the server by hand, wait for its end, and diagnose that."""
    words = [str(environment.executable), "-m", "vllm.entrypoints.openai.api_server", *arguments]
    settings = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    inherited = {n: v for n, v in os.environ.items() if n in {"PATH", "HOME", "TMPDIR"}}
    with log.open("wb") as output:
        ended = subprocess.run(
            words,
            env=inherited | settings | env,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
        )
    diagnosis = diagnose(VllmEngine(), log, exit_code=ended.returncode)
    assert diagnosis is not None, log.read_text()
    return diagnosis


async def test_a_removed_flag(environment: EngineEnvironment, tmp_path: Path):
    """What replaces a flag that is gone is said."""
    log = tmp_path / "server.log"
    diagnosis = fail(environment, "--model", "m", "--swap-space", "4", log=log)
    assert diagnosis.kind is FailureKind.UNKNOWN_FLAG
    assert "--swap-space" in diagnosis.cause
    assert "--kv-offloading-size" in diagnosis.fix


async def test_a_folder_that_is_no_model(environment: EngineEnvironment, tmp_path: Path):
    """A folder without config.json is named as such."""
    diagnosis = fail(environment, "--model", str(tmp_path), log=tmp_path / "server.log")
    assert diagnosis.kind is FailureKind.MODEL_NOT_FOUND
    assert str(tmp_path) in diagnosis.evidence


async def test_a_port_that_is_taken(environment: EngineEnvironment, tmp_path: Path):
    """Started by hand, without our lease, vLLM finds the port taken."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = ("--host", "127.0.0.1", "--port", str(other.getsockname()[1]))
        log = tmp_path / "server.log"
        diagnosis = fail(environment, "--model", str(tmp_path), *address, log=log)
    assert diagnosis.kind is FailureKind.PORT_TAKEN
