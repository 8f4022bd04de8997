"""`enginehouse watch` with the real CPU vLLM: adapters, and a checkpoint that is written slowly."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.changed_checkpoint import changed_checkpoint
from tests.support.command_line import Finished, House, Running, SharedServer, until
from tests.support.tiny_adapters import write_tensors

from enginehouse.evaluation.records import Record, SampleRecord
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.store.journal import read_journal
from enginehouse.weights.peft_folder import CONFIG, TENSORS, checkpoint_shapes

pytestmark = pytest.mark.engine
ITEMS = 4
PIECES = 12


def lora(folder: Path, model: Path, *, seed: int, scale: float) -> Path:
    """An adapter of rank 4 over two projections, of random numbers; more `scale`, more effect."""
    rng = np.random.default_rng(seed)
    stored = {}
    for name, shape in checkpoint_shapes(model).items():
        if not re.search(r"\.(q|v)_proj\.weight$", name):
            continue
        module = f"base_model.model.{name.removesuffix('.weight')}"
        for part, size in (("A", (4, shape[1])), ("B", (shape[0], 4))):
            values = rng.normal(scale=scale, size=size).astype("<f4")
            stored[f"{module}.lora_{part}.weight"] = ("F32", size, values.tobytes())
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
    config |= {"base_model_name_or_path": "smollm2", "target_modules": ["q_proj", "v_proj"]}
    (folder / CONFIG).write_text(json.dumps(config))
    write_tensors(folder / TENSORS, stored)
    return folder


def answers(run: Path) -> list[str]:
    """What was answered, by item."""
    found = {}
    for entry in read_journal(run / "journal.jsonl", Record):
        if isinstance(entry.record, SampleRecord):
            (response,) = entry.record.responses
            found[entry.record.item] = response.completions[0].text
    return [found[item] for item in sorted(found)]


def write_slowly(whole: Path, folder: Path, running: Running) -> None:
    """Copy a checkpoint in pieces, with a look of the watch between any two."""
    folder.mkdir()
    for file in sorted(whole.iterdir(), key=lambda f: f.suffix == ".safetensors"):
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)
            continue
        data = file.read_bytes()
        size = len(data) // PIECES + 1
        for at in range(0, len(data), size):
            with (folder / file.name).open("ab") as opened:
                opened.write(data[at : at + size])
            if at == 0:
                running.until(f"waiting for {folder.name}: {file.name} is incomplete")
            assert f"evaluating {folder.name}" not in running.err.read_text()


def evaluated_alone(
    house: House, server: SharedServer, weights: Path, *, original: Path, task: str
) -> Finished:
    """An evaluation of the weights on a server that no watch has asked."""

    def swap(checkpoint: Path) -> None:
        done = server.house.run("weights", "swap", server.name, str(checkpoint))
        assert done.code == 0, done.err

    swap(weights)
    try:
        words = ("eval", "--url", server.url, "--task", task, "--concurrency", "4", "--json")
        done = house.run(*words)
    finally:
        swap(original)
    assert done.code == 0, done.err
    return done


def test_adapters_and_a_checkpoint_that_comes_slowly(
    house: House, lora_vllm: SharedServer, smollm2: ResolvedModel
):
    """One server for all; every answer from the right weights; a second watch asks nothing."""
    model = Path(smollm2.path)
    items = [{"ask": f"What is {n} + {n}?", "right": str(2 * n)} for n in range(ITEMS)]
    task = str(house.task(items, max_tokens=10))
    whole = changed_checkpoint(
        model, house.work / "whole", tensor="model.layers.3.mlp.down_proj.weight", factor=1.5
    )
    out = house.work / "out"
    lora(out / "lora-100", model, seed=1, scale=0.05)
    lora(out / "lora-200", model, seed=2, scale=0.1)
    words = ("watch", "out", "smollm2", "--task", task, "--interval", "1", "--variant", "cpu")
    # in bfloat16, a batch of another size may be answered otherwise
    words += ("--max-model-len", "512", "--concurrency", "4", "--dtype", "float32")
    running = house.start(*words)
    running.until("step 200: lora-200: sums")
    write_slowly(whole, out / "checkpoint-300", running)
    running.until("step 300: checkpoint-300: sums")
    lora(out / "lora-400", model, seed=3, scale=0.1)
    running.until("step 400: lora-400: sums")
    running.interrupt()
    live = running.end()
    assert live.code == 130
    assert live.err.count("starting vllm") == 1

    broken = lora(out / "lora-500", model, seed=4, scale=0.1)
    cut = (broken / TENSORS).read_bytes()
    (broken / TENSORS).write_bytes(cut[:-1])
    once = house.run(*words, "--once", "--json")
    assert once.code == 0, once.err
    assert "starting vllm" not in once.err
    assert "skipping lora-500: adapter_model.safetensors is incomplete" in once.err
    curve: Any = once.report
    assert [point["step"] for point in curve["points"]] == [100, 200, 300, 400]
    assert [point["failure"] for point in curve["points"]] == [None] * 4
    for point in curve["points"]:
        assert point["tasks"][0]["from_base"]["result"]["pairs"] == ITEMS
    runs = {p["name"]: house.home / "state/runs" / p["run"] for p in curve["points"]}
    runs["base"] = house.home / "state/runs" / curve["base"]["run"]
    said = {name: answers(run) for name, run in runs.items()}
    assert all(len(texts) == ITEMS for texts in said.values())
    assert len({tuple(texts) for texts in said.values()}) == 5  # each has answers of its own

    alone = evaluated_alone(house, lora_vllm, whole, original=model, task=task)
    assert answers(Path(alone.report["folder"])) == said["checkpoint-300"]
    until(lambda: not house.processes(), "something is left")
