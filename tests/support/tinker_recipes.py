"""tinker-cookbook's recipes, unmodified, as users of a TinkerService."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.tinker_service import TinkerService


def math_rl(
    service: TinkerService, folder: Path, *, steps: int, learning_rate: float = 1e-4
) -> list[dict[str, Any]]:
    """`math_rl.train env=arithmetic`, from a checkpoint that was taught its form; each step's row.

    The bare model answers in that form once in fifty times.
    """
    rng = random.Random(1)
    pairs = [(rng.randrange(101), rng.randrange(101)) for _ in range(64)]
    sums = [(f"What is {one} + {other}?", str(one + other)) for one, other in pairs]
    data = conversations(folder / "sums.jsonl", sums, first=("What is 4 + 5?", "9"))
    log = folder / "supervised"
    run_recipe(
        service,
        "chat_sl",
        log,
        dataset=data,
        batch_size=8,
        learning_rate=1e-3,
        save_every=0,
    )
    metrics = run_recipe(
        service,
        "math_rl",
        folder / "log",
        load_checkpoint_path=rows(log / "checkpoints.jsonl")[-1]["state_path"],
        env="arithmetic",
        group_size=4,
        groups_per_batch=8,
        learning_rate=learning_rate,
        max_tokens=8,
        max_steps=steps,
        eval_every=0,
        save_every=0,
    )
    return [row for row in metrics if "env/all/format" in row]


def conversations(
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


def run_recipe(
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
    assert ended.code == 0, ended.err[-4000:]
    assert "Training completed successfully" in ended.err
    return rows(log / "metrics.jsonl")


def rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]
