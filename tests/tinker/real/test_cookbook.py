"""tinker-cookbook's recipes and the `tinker` command line, unmodified."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
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
    lines = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": reply}]}
        for ask, reply in CONVERSATIONS * 2
    ]
    data = tmp_path / "conversations.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
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
    losses = [row["train_mean_nll"] for row in metrics]
    assert len(losses) == 8
    assert statistics.mean(losses[-2:]) < losses[0] / 2
    saved = [json.loads(line) for line in (tmp_path / "log/checkpoints.jsonl").open()]
    assert saved[-1]["name"] == "final"
    shown = service.begin(["tinker", "--format", "json", "checkpoint", "list"]).end()
    assert shown.code == 0, shown.err
    paths = {c["tinker_path"]: c["expires_at"] for c in json.loads(shown.out)["checkpoints"]}
    assert paths[saved[-1]["state_path"]] is None  # the final one never expires by itself
    assert paths[saved[-1]["sampler_path"]] is None
    # rolling checkpoints were deleted by the recipe
    kept = {path.rpartition("/")[2] for path in paths if saved[-1]["state_path"][:40] in path}
    assert kept <= {"final", "000004"}


def test_math_rl(service: TinkerService, tmp_path: Path):
    """The RL recipe with its own loss: the reward rises, and the cookbook's own KL stays small."""
    metrics = _recipe(
        service,
        "math_rl",
        tmp_path / "log",
        env="arithmetic",
        group_size=4,
        groups_per_batch=8,
        learning_rate=3e-4,
        max_tokens=8,
        max_steps=6,
        eval_every=0,
        save_every=0,
    )
    assert len(metrics) == 6
    rewards = [row["env/all/reward/total"] for row in metrics]
    assert statistics.mean(rewards[-2:]) > statistics.mean(rewards[:2])
    assert all(abs(row["optim/kl_sample_train_v1"]) <= 1e-3 for row in metrics)


def _recipe(
    service: TinkerService, name: str, log: Path, **settings: object
) -> list[dict[str, Any]]:
    """Run a recipe with the SDK's default LoRA; its metrics, one row a step."""
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
    assert ended.code == 0, ended.err[-4000:]
    return [json.loads(line) for line in (log / "metrics.jsonl").open()]
