"""A trainer without torch (support/stand_in.py), and a user's machine with the fake engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for support in (
    Path(__file__).parent / "support",
    Path(__file__).parents[1] / "cli" / "support",
    Path(__file__).parents[1] / "weights" / "support",
):
    if str(support) not in sys.path:
        sys.path.append(str(support))

from command_line import House  # noqa: E402
from stand_in import Torch  # noqa: E402

from enginehouse.testing.fake_environment import make_fake_environment  # noqa: E402


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Torch:
    """What `import torch` gives: random numbers, and memory on a GPU of 1,000 bytes."""
    torch = Torch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.distributed", torch.distributed)
    return torch


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A machine of this test's own, this process in it; what a test leaves running is an error."""
    house = House(tmp_path / "house", python=make_fake_environment(tmp_path / "vllm"))
    for name, value in house.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(house.work)
    try:
        yield house
        house.nothing_left()
    finally:
        house.clear()
