from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from enginehouse.provisioning.description import Flag
from enginehouse.provisioning.environments import EngineEnvironment

FLAGS = Path(__file__).with_name("vllm-0.32.0-flags.json")


@pytest.fixture(scope="session")
def flags():
    """Every option of vLLM 0.32.0's server, as dumped from the real one."""
    return msgspec.json.decode(FLAGS.read_bytes(), type=dict[str, Flag])


@pytest.fixture
def environment(flags):
    """A description of the CPU build."""
    return EngineEnvironment(
        engine="vllm",
        version="0.32.0",
        variant="cpu",
        executable=Path("/engines/vllm/bin/python"),
        key="vllm-0.32.0-cpu",
        flags=flags,
    )


@pytest.fixture
def cuda(environment):
    """A description of the CUDA build."""
    return msgspec.structs.replace(environment, variant="cuda")
