"""A user's machine with the fake engine in it, for the Python API."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
for room in ("cli", "weights", "launch"):
    if (support := str(TESTS / room / "support")) not in sys.path:
        sys.path.append(support)

from command_line import House  # noqa: E402

from enginehouse.store.layout import Layout  # noqa: E402
from enginehouse.testing.fake_environment import make_fake_environment  # noqa: E402


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


@pytest.fixture
def layout(house: House) -> Layout:
    """The machine's."""
    return Layout.from_environment()
