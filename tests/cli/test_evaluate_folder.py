"""`enginehouse eval --folder`: the same command begins a run, and continues it."""

from __future__ import annotations

import pytest
from tests.support.command_line import House, journaled, scored, sums, until

from enginehouse.core.errors import ConfigurationError, StoreError


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """`eval --folder job/run` of twelve samples, one at a time."""
    house.model()
    items, canned = sums(right=9, wrong=3)
    words = ("eval", "tiny", "--task", str(house.task(items)), "--concurrency", "1")
    words += ("--env", house.answers(canned), "--env", "VLLM_FAKE_TOKEN_LATENCY=0.01")
    return (*words, "--folder", "job/run")


@pytest.mark.slow
def test_repeated_until_it_is_complete(house: House, call, words: tuple[str, ...]):
    """Interrupted, continued by the same command, and then complete: every sample is asked once."""
    folder = house.work / "job/run"
    running = house.start(*words)
    until(lambda: scored(folder) >= 2, "no sample is scored")
    running.interrupt()
    first = running.end()
    assert first.code == 130
    assert f"enginehouse resume {folder}" in first.err
    assert call(*words).code == 0
    again = call(*words)
    assert again.code == 0
    assert "75.0%" in again.out
    assert set(journaled(folder).samples.values()) == {1}
    assert house.runs == []
    shown = call("show", "job/run")
    assert shown.code == 0
    assert "75.0%" in shown.out


@pytest.mark.slow
def test_what_is_in_the_folder_is_not_touched(house: House, call, words: tuple[str, ...]):
    """Another configuration, other files, and several models for one folder are refused."""
    assert call(*words).code == 0
    other = call(*words, "--temperature", "0.5")
    assert other.code == ConfigurationError.exit_code
    assert "temperature" in other.err
    house.write("full/notes.txt", "mine")
    full = call(*words[:-1], "full")
    assert full.code == StoreError.exit_code
    assert [path.name for path in (house.work / "full").iterdir()] == ["notes.txt"]
    assert list(house.work.glob(".*")) == []
    assert call("eval", "tiny", "tiny+lora", *words[2:]).code == ConfigurationError.exit_code
