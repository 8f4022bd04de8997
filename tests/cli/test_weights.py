from __future__ import annotations

import json

import pytest
from tests.support.command_line import House, url_of
from tests.support.tiny_checkpoints import write_checkpoint


@pytest.fixture
def url(house: House):
    """A server called mine, with checkpoint `a`; its first reload after a swap to `bad` fails."""
    write_checkpoint(house.work / "a", seed=1)
    write_checkpoint(house.work / "b", seed=2)
    fault = [{"fault": "status", "path": "/collective_rpc", "status": 500, "nth": [2, 3]}]
    faults = house.write("faults.json", json.dumps(fault))
    words = ("--enable-weight-swap", "--env", f"VLLM_FAKE_FAULTS={faults}")
    serving = house.start("serve", "a", "--name", "mine", *words)
    yield url_of(serving.until("ready after"))
    serving.interrupt()
    serving.end()


@pytest.mark.slow
def test_swap_and_info(house: House, call, url: str):
    """A swap, what it says, what is there after; and a failure with its exit code."""
    before = call("weights", "info", "mine", "--json").report
    assert (before["version"], before["named"], before["agrees"]) == (0, "default", True)
    assert before["path"] == str(house.work / "a")

    done = call("weights", "swap", "mine", "b", "--abort", "--deadline", "30")
    assert done.code == 0, done.err
    assert done.out.startswith(f"mine has the weights in {house.work / 'b'} (digest ")
    after = call("weights", "info", url, "--json").report
    assert (after["version"], after["path"]) == (1, str(house.work / "b"))
    assert after["named"] == f"1-{after['digest'][:12]}"
    said = call("weights", "info", "mine").out.splitlines()
    assert said[0].split() == ["path:", str(house.work / "b")]
    assert said[1].split() == ["digest:", after["digest"]]
    assert said[2].split() == ["version:", "1"]

    failed = call("weights", "swap", url, "a", "--json")
    assert failed.code == 5
    assert "server.log" in failed.err
    broken = call("weights", "info", "mine")
    assert "'loading 1-" in broken.out
    fixed = call("weights", "swap", "mine", "a", "--json")
    assert fixed.code == 0, fixed.err
    assert fixed.report["after"]["version"] == 2
    assert fixed.report["canary"] > 0


@pytest.mark.slow
def test_what_is_refused(house: House, call, url: str):
    """Nothing is sent for a checkpoint that does not fit, and names are checked."""
    write_checkpoint(house.work / "c", shapes={"x": (1,)})
    refused = call("weights", "swap", "mine", "c")
    assert refused.code == 4
    assert call("weights", "swap", "mine", "nowhere").code == 4
    unknown = call("weights", "swap", "mien", "b")
    assert unknown.code == 2
    assert "'mine'?" in unknown.err
    assert call("weights", "info", "http://127.0.0.1:9").code == 6
    assert call("weights", "info", "mine", "--json").report["version"] == 0
