"""`enginehouse watch` as its user has it, with the fake engine: kills, Ctrl-C, what it says."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support.command_line import House, journaled, sums, until
from tests.support.tiny_adapters import BASE, write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.core.sampler import Provenance
from enginehouse.evaluation.records import ProvenanceRecord, Record
from enginehouse.provisioning.digests import weights_digest
from enginehouse.store.journal import read_journal
from enginehouse.store.layout import Layout


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """`watch out base` of two adapters and a checkpoint, ten items each, quick to look."""
    shapes = dict(BASE)
    write_checkpoint(house.work / "base", seed=1, shapes=shapes)
    out = house.work / "out"
    out.mkdir()
    write_adapter(out / "lora-100", seed=1)
    write_checkpoint(out / "checkpoint-150", seed=5, shapes=shapes)
    write_adapter(out / "lora-200", seed=2)
    items, canned = sums(right=6, wrong=2, unparsable=2)
    task = str(house.task(items))
    words = ("watch", "out", "base", "--task", task, "--once", "--interval", "0.2")
    return (*words, "--concurrency", "2", "--env", house.answers(canned))


def page(house: House) -> Path:
    """The page with the curve."""
    (folder,) = (house.home / "state/watches").iterdir()
    return folder / "curve.html"


@pytest.mark.slow
def test_lines_and_json(house: House, call, words: tuple[str, ...]):
    """A line for every point on standard output, the base first; --json is the curve."""
    done = call(*words)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{house.work / 'base'}: sums 60.0% (")
    assert [line.split(":")[0] for line in lines[1:]] == ["step 100", "step 150", "step 200"]
    assert "lora-100: sums 60.0% (" in lines[1]
    assert "from the base +0.0 (" in lines[1]
    assert "from the best so far (lora-100) +0.0 (" in lines[3]
    assert done.err.count("starting vllm") == 1
    assert f"curve: {page(house)}" in done.err
    assert "lora-200" in page(house).read_text()
    again = call(*words, "--json", "--quiet")
    assert (again.code, again.err) == (0, "")
    curve = again.report
    assert [point["name"] for point in curve["points"]] == [
        "lora-100",
        "checkpoint-150",
        "lora-200",
    ]
    assert curve["base"]["tasks"][0]["score"]["value"] == 0.6
    house.nothing_left()


@pytest.mark.slow
def test_a_refused_adapter(house: House, call, words: tuple[str, ...]):
    """The command continues, and says why; the engine never saw it."""
    write_adapter(house.work / "out" / "lora-300", seed=3, target_modules=["up_proj"])
    config = json.loads((house.work / "out/lora-300/adapter_config.json").read_text())
    (house.work / "out/lora-300/adapter_config.json").write_text(
        json.dumps(config | {"use_dora": True})
    )
    done = call(*words)
    assert done.code == 0, done.err
    assert "step 300: lora-300 failed: " in done.out
    assert "use_dora" in done.out
    assert "lora-200: sums 60.0%" in done.out


def per_run(house: House) -> Mapping[str, int]:
    """How many samples each run's journal holds."""
    return {run.name: len(journaled(run).samples) for run in house.runs}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ended_again_and_again(house: House, call, words: tuple[str, ...], number: signal.Signals):
    """Whenever it ends, the same command continues: every sample is asked once."""
    slow = ("--env", "VLLM_FAKE_TOKEN_LATENCY=0.01")
    code = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[number]
    for samples in (0, 13, 36):
        running = house.start(*words, *slow)
        running.until("starting vllm")
        until(lambda n=samples: sum(per_run(house).values()) >= n, running.err.read_text)
        running.interrupt(number)
        assert running.end().code == code
        until(lambda: not house.processes(), lambda: str(house.processes()))
    done = call(*words, "--json")
    assert done.code == 0, done.err
    runs = [done.report["base"]["run"], *(point["run"] for point in done.report["points"])]
    assert len(set(runs)) == 4
    asked = per_run(house)
    assert [asked[run] for run in runs] == [10] * 4
    for run in house.runs:
        assert set(journaled(run).samples.values()) <= {1}
    assert sum(asked.values()) == 40
    assert all(
        point["tasks"][0]["score"]["value"] == 0.6
        for point in (done.report["base"], *done.report["points"])
    )


def provenance(run: Path) -> Provenance:
    """Who answered in a run."""
    records = (entry.record for entry in read_journal(run / "journal.jsonl", Record))
    (found,) = (r.provenance for r in records if isinstance(r, ProvenanceRecord))
    return found


@pytest.mark.slow
def test_waiting_ends_with_ctrl_c(house: House, words: tuple[str, ...]):
    """Without --once it waits; what comes, or is overwritten, is swapped into the same server."""
    live = tuple(word for word in words if word != "--once")
    running = house.start(*live)
    running.until("step 200: ")
    write_checkpoint(house.work / "out" / "checkpoint-250", seed=9, shapes=dict(BASE))
    said = running.until("step 250: ")
    assert said.count("starting vllm") == 1
    shapes = dict(BASE)
    again = write_checkpoint(house.work / "out" / "checkpoint-250", seed=10, shapes=shapes)
    until(lambda: running.out.read_text().count("step 250: ") == 2, running.err.read_text)
    answered = [provenance(run) for run in house.runs if "checkpoint-250" in run.name]
    assert len({found.weights_digest for found in answered}) == 2
    newest = weights_digest([again / "model.safetensors"], layout=Layout.from_environment())
    assert newest in {found.weights_digest for found in answered}
    assert {found.model for found in answered} == {str(again)}
    running.interrupt()
    done = running.end()
    assert done.code == 130
    assert "checkpoint-250" in page(house).read_text()


def test_what_cannot_be_watched(house: House, call):
    """Wrong usage is said before anything is started."""
    (house.work / "out").mkdir()
    for words in (
        ("out", "base"),
        ("nowhere", "base", "--task", "sums", "--once"),
        ("out", "http://x", "--task", "sums"),
        ("out", "base+a", "--task", "sums"),
        ("out", "base", "--task", "sums", "--interval", "0"),
    ):
        done = call("watch", *words)
        assert done.code == 2, done.err
