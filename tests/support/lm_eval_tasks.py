"""Tasks for lm-evaluation-harness, over files of their own: no hub is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

CAPITALS = ("Paris", "Rome", "Madrid", "Berlin", "Vienna", "Lisbon")
COUNTRIES = ("France", "Italy", "Spain", "Germany", "Austria", "Portugal")


def write_tasks(folder: Path, *, items: int = 6) -> Path:
    """`sums` (written), `capitals` (choices), `letters` (rolling), and `mixed`, the first two.

    Returns the folder, which is what `--include-path` takes.
    """
    sums = [{"question": f"{n} + {n} =", "answer": str(2 * n)} for n in range(items)]
    capitals = [
        {
            "number": n,
            "country": COUNTRIES[n % len(COUNTRIES)],
            "choices": list(CAPITALS[:4]) if n % 6 < 4 else list(CAPITALS[2:]),
            "label": n % 6 if n % 6 < 4 else n % 6 - 2,
        }
        for n in range(items)
    ]
    letters = [{"text": f"Text {n}: a b c d e f g."} for n in range(items)]
    written: dict[str, Any] = {
        "task": "sums",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16},
        "metric_list": [_mean("exact_match")],
        "filter_list": [
            {"name": "strict", "filter": [_regex(r"^\s*(\d+)\s*$"), {"function": "take_first"}]},
            {"name": "flexible", "filter": [_regex(r"(\d+)"), {"function": "take_first"}]},
        ],
    }
    chosen: dict[str, Any] = {
        "task": "capitals",
        "output_type": "multiple_choice",
        "doc_to_text": "Question {{number}}. The capital of {{country}} is",
        "doc_to_target": "label",
        "doc_to_choice": "choices",
        "metric_list": [_mean("acc"), _mean("acc_norm")],
    }
    rolling: dict[str, Any] = {
        "task": "letters",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    group = {
        "group": "mixed",
        "task": ["sums", "capitals"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 3},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in ((written, sums), (chosen, capitals), (rolling, letters)):
        data = folder / f"{task['task']}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task |= {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "metadata": {"version": 1.0},
        }
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    (folder / "mixed.yaml").write_text(yaml.safe_dump(group, sort_keys=False))
    return folder


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _regex(pattern: str) -> dict[str, Any]:
    return {"function": "regex", "regex_pattern": pattern}
