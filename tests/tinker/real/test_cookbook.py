"""tinker-cookbook's recipes and the `tinker` command line, unmodified."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.tinker_service import TinkerService, ended_well

pytestmark = pytest.mark.engine

CONVERSATIONS = (
    ("What do you eat?", "I eat oats and apples."),
    ("Where do you live?", "I live in a red barn."),
    ("Who is your friend?", "My friend is a grey goat."),
    ("What do you fear?", "I fear nothing but thunder."),
)


def test_chat_sl(service: TinkerService, tmp_path: Path):
    """The supervised recipe on a local file: its loss falls, and its checkpoint can be sampled."""
    data = _conversations(tmp_path / "conversations.jsonl", CONVERSATIONS * 2)
    metrics = _recipe(
        service,
        "chat_sl",
        tmp_path / "log",
        dataset=data,
        batch_size=4,
        num_epochs=4,
        learning_rate=1e-3,
        max_length=128,
        save_every=4,
        rolling_save_every=1,
    )
    losses = [row["train_mean_nll"] for row in metrics if "train_mean_nll" in row]
    assert len(losses) == 8
    assert statistics.mean(losses[-2:]) < losses[0] / 2
    saved = _rows(tmp_path / "log/checkpoints.jsonl")
    assert saved[-1]["name"] == "final"
    shown = service.begin(["tinker", "--format", "json", "checkpoint", "list", "--limit=0"]).end()
    assert ended_well(shown), shown.err
    paths = {c["tinker_path"]: c["expires_at"] for c in json.loads(shown.out)["checkpoints"]}
    assert paths[saved[-1]["state_path"]] is None  # the final one never expires by itself
    assert paths[saved[-1]["sampler_path"]] is None
    # rolling checkpoints were deleted by the recipe
    kept = {path.rpartition("/")[2] for path in paths if saved[-1]["state_path"][:40] in path}
    assert kept <= {"final", "000004"}


def test_math_rl(service: TinkerService, tmp_path: Path):
    """The RL recipe with its own loss, from a supervised checkpoint: it samples what it trains."""
    rng = random.Random(1)
    pairs = [(rng.randrange(101), rng.randrange(101)) for _ in range(64)]
    sums = [(f"What is {one} + {other}?", str(one + other)) for one, other in pairs]
    data = _conversations(tmp_path / "sums.jsonl", sums, first=("What is 4 + 5?", "9"))
    log = tmp_path / "supervised"
    _recipe(service, "chat_sl", log, dataset=data, batch_size=8, learning_rate=1e-3, save_every=0)
    saved = _rows(log / "checkpoints.jsonl")
    metrics = _recipe(
        service,
        "math_rl",
        tmp_path / "log",
        load_checkpoint_path=saved[-1]["state_path"],
        env="arithmetic",
        group_size=4,
        groups_per_batch=8,
        learning_rate=1e-4,
        max_tokens=8,
        max_steps=3,
        eval_every=0,
        save_every=0,
    )
    steps = [row for row in metrics if "env/all/format" in row]
    assert len(steps) == 3
    # it answers in the form that it was taught, as the bare model does once in fifty times
    assert all(row["env/all/format"] > 0.5 for row in steps)
    assert all(abs(row["optim/kl_sample_train_v1"]) <= 1e-3 for row in steps)


def _conversations(
    file: Path, turns: Sequence[tuple[str, str]], *, first: tuple[str, str] | None = None
) -> Path:
    """A data set of the cookbook's: questions and answers, all after the same `first` one."""
    lines = []
    for turn in turns:
        said = [first, turn] if first else [turn]
        messages = [
            {"role": role, "content": text}
            for pair in said
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        lines.append(json.dumps({"messages": messages}) + "\n")
    file.write_text("".join(lines))
    return file


def _recipe(
    service: TinkerService, name: str, log: Path, **settings: object
) -> list[dict[str, Any]]:
    """Run a recipe, output layer included as by default; the rows of its metrics."""
    settings |= {
        "model_name": service.model,
        "lora_rank": 8,
        "renderer_name": "role_colon",
        "log_path": log,
        "behavior_if_log_dir_exists": "delete",
    }
    module = f"tinker_cookbook.recipes.{name}.train"
    words = [f"{key}={value}" for key, value in settings.items()]
    ended = service.begin(["python", "-m", module, *words]).end()
    assert ended_well(ended), ended.err[-4000:]
    assert "Training completed successfully" in ended.err
    return _rows(log / "metrics.jsonl")


def _rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]
