"""tinker-cookbook's recipes and the `tinker` command line, unmodified."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from tests.support.tinker_recipes import conversations, math_rl, rows, run_recipe
from tests.support.tinker_service import TinkerService

pytestmark = pytest.mark.engine

CONVERSATIONS = (
    ("What do you eat?", "I eat oats and apples."),
    ("Where do you live?", "I live in a red barn."),
    ("Who is your friend?", "My friend is a grey goat."),
    ("What do you fear?", "I fear nothing but thunder."),
)


def test_chat_sl(service: TinkerService, tmp_path: Path):
    """The supervised recipe on a local file: its loss falls, and its checkpoint can be sampled."""
    data = conversations(tmp_path / "conversations.jsonl", CONVERSATIONS * 2)
    metrics = run_recipe(
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
    saved = rows(tmp_path / "log/checkpoints.jsonl")
    assert saved[-1]["name"] == "final"
    shown = service.begin(["tinker", "--format", "json", "checkpoint", "list", "--limit=0"]).end()
    assert shown.code == 0, shown.err
    paths = {c["tinker_path"]: c["expires_at"] for c in json.loads(shown.out)["checkpoints"]}
    assert paths[saved[-1]["state_path"]] is None  # the final one never expires by itself
    assert paths[saved[-1]["sampler_path"]] is None
    # rolling checkpoints were deleted by the recipe
    kept = {path.rpartition("/")[2] for path in paths if saved[-1]["state_path"][:40] in path}
    assert kept <= {"final", "000004"}


def test_math_rl(service: TinkerService, tmp_path: Path):
    """The RL recipe with its own loss, from a supervised checkpoint: it samples what it trains."""
    steps = math_rl(service, tmp_path, steps=3)
    assert len(steps) == 3
    assert all(row["env/all/format"] > 0.5 for row in steps)
    assert all(abs(row["optim/kl_sample_train_v1"]) <= 1e-3 for row in steps)
