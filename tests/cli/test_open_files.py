"""A machine that allows few open files, as a user meets it."""

from __future__ import annotations

import sys

import pytest
from tests.support.command_line import House, journaled, sums

LIMITED = "ulimit -n {limit} && exec {python} -m enginehouse {words}"


def limited(house: House, limit: int, words: str):
    """`enginehouse WORDS` where no process may open more files than that."""
    command = LIMITED.format(limit=limit, python=sys.executable, words=words)
    return house.start_program(["/bin/sh", "-c", command]).end()


@pytest.mark.slow
def test_many_samples_and_few_files(house: House):
    """No sample fails for it, and the user is told what bounds the load."""
    items, canned = sums(right=400)
    house.task(items)
    house.model()
    env = f"--env {house.answers(canned)} --env VLLM_FAKE_TOKEN_LATENCY=0.01"
    done = limited(house, 256, f"eval tiny --task sums.yaml --concurrency 600 {env} --json")
    assert done.code == 0, done.err
    assert "256 files" in done.err
    (run,) = house.runs
    assert journaled(run).counts() == {"correct": 400}
    house.nothing_left()


@pytest.mark.slow
def test_a_load_that_needs_more_is_not_measured(house: House):
    """The figures would be those of another load."""
    house.model()
    done = limited(house, 256, "bench tiny --concurrency 500")
    assert done.code == 2
    assert "ulimit -n" in done.err
