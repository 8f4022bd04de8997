"""`enginehouse eval` on the engines beside vLLM, each started for the run and gone after it."""

from __future__ import annotations

import pytest
from tests.support.command_line import House, journaled

pytestmark = pytest.mark.engine


@pytest.fixture(params=["hf", "llamacpp"])
def engine(request: pytest.FixtureRequest) -> str:
    """An engine whose environment is there."""
    request.getfixturevalue(f"{request.param}_environment")
    return str(request.param)


def test_eval(house: House, engine: str):
    """Every sample once, none failed, the engine named in the report, nothing left running."""
    words = ("--task", "instructions", "--limit", "3", "--max-tokens", "16", "--json")
    done = house.run("eval", "smollm2", "--engine", engine, *words, "--max-model-len", "1024")
    assert done.code == 0, done.err
    (task,) = done.report["tasks"]
    assert (task["samples"], task["outcomes"]["failed"]) == (3, 0)
    assert task["headline"] is not None
    (provenance,) = done.report["provenance"]
    assert provenance["engine"] == engine
    assert provenance["weights_digest"]
    assert str(provenance["environment"]).startswith(f"{engine}-")
    (run,) = [run for run in house.runs if run.name == done.report["run"]]
    state = journaled(run)
    assert (len(state.samples), {*state.samples.values(), *state.scores.values()}) == (3, {1})
    house.nothing_left()
