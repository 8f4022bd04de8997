"""A machine with the real vLLM: its caches are the user's, its state is the tests' own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "cli" / "support"
if str(SUPPORT) not in sys.path:
    sys.path.append(str(SUPPORT))

import command_line  # noqa: E402

from enginehouse.store.layout import Layout  # noqa: E402

_NOT_OURS = ("ENGINEHOUSE_", "GRAIL_", "VLLM_", "HF_")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[command_line.House]:
    """Environments, models and data are built once for good; runs and servers are gone after."""
    cache = Layout.from_environment().cache
    cache.mkdir(parents=True, exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_OURS)}
    house = command_line.House(tmp_path_factory.mktemp("machine"), python=None, env=inherited)
    house.env["ENGINEHOUSE_HOME"] = str(house.home)
    house.env["PYTHONPATH"] = str(command_line.SOURCE)
    house.home.mkdir()
    (house.home / "cache").symlink_to(cache, target_is_directory=True)
    command_line.DEADLINE = 900.0  # the first test may have to build the environment
    command_line.POLL = 0.1  # leaves the cores to vLLM
    try:
        yield house
        house.nothing_left()
    finally:
        command_line.DEADLINE, command_line.POLL = 60.0, 0.01
        house.clear()
