from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginehouse.harnesses.base import HarnessResult
from enginehouse.harnesses.inspect.log import read_result
from enginehouse.tasks.base import Outcome


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    """A message of a log."""
    return {"role": role, "content": content, **more}


def sampled(number: int, score: Any = "C", *, epoch: int = 1, **more: Any) -> dict[str, Any]:
    """A sample of a log with one question, one answer and one scorer, `match`."""
    return {
        "id": number,
        "epoch": epoch,
        "input": f"question {number}",
        "target": "t",
        "messages": [said("user", f"question {number}"), said("assistant", f"answer {number}")],
        "output": {"choices": [{"message": said("assistant", "a"), "stop_reason": "stop"}]},
        "scores": None if score is None else {"match": {"value": score}},
        "error": None,
        **more,
    }


def scored(value: float | None, *, name: str = "match", metric: str = "accuracy", **more: Any):
    """A scorer's entry in the results of a log."""
    metrics = {metric: {"value": value}, "stderr": {"value": 0.25}}
    return {"name": name, "scorer": name, "reducer": None, "metrics": metrics, **more}


class Copy:
    """What payloads/inspect_eval.py leaves of a log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = {"name": "t.py@t", "package": None, "file_digest": "f"}
        self.spec: dict[str, Any] = {"task": "t", "task_version": 3, "dataset": {"samples": 9}}
        self.plan: dict[str, Any] = {"steps": [{"solver": "generate", "params": {}}]}

    def result(
        self, *samples: dict[str, Any], scores: list[Any] | None = None, **results: Any
    ) -> HarnessResult:
        """The result that is read of it."""
        log = {"eval": self.spec, "plan": self.plan, "results": {"scores": scores or [], **results}}
        (self.folder / "0.json").write_text(json.dumps({**self.facts, "log": log}))
        lines = "".join(f"{json.dumps(sample)}\n" for sample in samples)
        (self.folder / "0.jsonl").write_text(lines)
        return read_result(self.folder, number=0, version="0.3")


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A copy of a log with one version."""
    return Copy(tmp_path)


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        ("C", Outcome.CORRECT),
        ("I", Outcome.WRONG),
        ("N", Outcome.UNPARSABLE),
        (True, Outcome.CORRECT),
        (0, Outcome.WRONG),
        ("yes", Outcome.CORRECT),
        ("0.0", Outcome.WRONG),
    ],
)
def test_scores_of_every_spelling_are_outcomes(copy: Copy, value: Any, outcome: Outcome) -> None:
    """Inspect's letters, truth values, numbers and words."""
    mean = float(outcome is Outcome.CORRECT)
    (sample,) = copy.result(sampled(1, value), scores=[scored(mean)]).samples
    assert sample.outcome is outcome
    assert sample.measures["accuracy (match)"].value == mean


def test_partly_right_answers_are_measured_and_not_judged(copy: Copy) -> None:
    """As one sample is neither right nor wrong, none is said to be."""
    result = copy.result(sampled(1, "P"), sampled(2, "C"), scores=[scored(0.75)])
    assert [sample.outcome for sample in result.samples] == [None, None]
    assert [s.measures["accuracy (match)"].value for s in result.samples] == [0.5, 1.0]


def test_a_wrong_answer_that_was_cut_off_is_truncated(copy: Copy) -> None:
    """A right one is right."""
    cut = {"choices": [{"message": said("assistant", "a"), "stop_reason": "max_tokens"}]}
    result = copy.result(
        sampled(1, "C", output=cut), sampled(2, "I", output=cut), scores=[scored(0.5)]
    )
    assert [s.outcome for s in result.samples] == [Outcome.CORRECT, Outcome.TRUNCATED]
    assert [s.truncated for s in result.samples] == [True, True]


def test_failed_and_unscored_samples_are_told_apart(copy: Copy) -> None:
    """One could not be asked or scored; the other was passed over by its scorer."""
    failed = sampled(2, None, error={"message": "it broke"}, messages=[said("user", "q")])
    result = copy.result(sampled(1, "C"), failed, sampled(3, None), scores=[scored(1.0)])
    first, second, third = result.samples
    assert first.outcome is Outcome.CORRECT
    assert (second.outcome, second.failure, second.answer) == (None, "it broke", None)
    assert (third.outcome, third.failure) == (Outcome.UNSCORED, None)


def test_metrics_are_told_apart_by_scorer_key_and_reducer(copy: Copy) -> None:
    """Standard errors belong to means; the headline is the one that the log names."""
    sample = sampled(1, None)
    sample["scores"] = {"both": {"value": {"a": 0.2, "b": 1}}, "match": {"value": "C"}}
    result = copy.result(
        sample,
        scores=[
            scored(0.2, name="a", metric="mean", scorer="both"),
            scored(1.0, name="b", scorer="both", reducer="pass_at_2"),
            scored(1.0) | {"metrics": {"accuracy": {"value": 1.0}, "std": {"value": 0.0}}},
            scored(None, name="other"),
        ],
        headline={"score": "b", "metric": "accuracy", "reducer": "pass_at_2"},
    )
    errors = {metric.label: metric.standard_error for metric in result.metrics}
    assert errors == {
        "mean (both/a)": 0.25,
        "accuracy (both/b, pass_at_2)": 0.25,
        "accuracy (match)": None,
        "std (match)": None,
    }
    assert result.headline == "accuracy (both/b, pass_at_2)"
    (sample_result,) = result.samples
    assert set(sample_result.measures) == {
        "mean (both/a)",
        "accuracy (both/b, pass_at_2)",
        "accuracy (match)",
    }


def test_a_headline_that_is_no_mean_judges_no_sample(copy: Copy) -> None:
    """Such as the best of several tries of each item."""
    result = copy.result(
        sampled(1, "I"),
        sampled(1, "C", epoch=2),
        scores=[scored(1.0, reducer="max")],
    )
    assert [sample.outcome for sample in result.samples] == [None, None]
    assert [dict(sample.measures) for sample in result.samples] == [{}, {}]


def test_a_log_without_scores_is_read(copy: Copy) -> None:
    """Every sample failed, or the task has no scorer."""
    result = copy.result(sampled(1, None, error={"message": "x"}))
    assert (result.headline, result.metrics) == ("", [])


def test_a_dialogue_is_written_with_its_speakers(copy: Copy) -> None:
    """Calls, results and failures of tools are shown; reasoning and pictures are not."""
    parts = [
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "text", "text": "Let me look."},
        {"type": "image", "image": "data:..."},
    ]
    call = {"id": "1", "function": "look_up", "arguments": {"name": "x"}}
    messages = [
        said("system", "Be brief."),
        said("user", "Who?"),
        said("assistant", parts, tool_calls=[call]),
        said("tool", "", function="look_up", error={"type": "timeout", "message": "too slow"}),
        said("assistant", "Nobody."),
    ]
    (sample,) = copy.result(sampled(1, "C", messages=messages)).samples
    assert sample.prompt == "system: Be brief.\n\nuser: Who?"
    assert sample.answer == (
        'assistant: Let me look.\n[image]\n[calls look_up({"name":"x"})]\n\n'
        "tool look_up: [failed: too slow]\n\n"
        "assistant: Nobody."
    )


def test_a_very_long_dialogue_keeps_its_ends(copy: Copy) -> None:
    """The log has the rest."""
    long = "x" * 300_000
    messages = [said("user", "q"), said("assistant", f"begin{long}end")]
    (sample,) = copy.result(sampled(1, "C", messages=messages)).samples
    assert sample.answer is not None
    assert len(sample.answer) < 101_000
    assert sample.answer.startswith("begin")
    assert "200008 characters are left out" in sample.answer
    assert sample.answer.endswith("end")


def test_items_are_in_the_order_of_the_data_set(copy: Copy) -> None:
    """Samples are logged as they end; ids may be texts."""
    copy.spec["dataset"] = {"samples": 9, "sample_ids": ["b", 7, "a"], "name": "d"}
    samples = [sampled(7), {**sampled(0), "id": "a"}, {**sampled(0), "id": "b"}]
    result = copy.result(*samples)
    assert [(s.item, s.position) for s in result.samples] == [("b", 0), ("7", 1), ("a", 2)]


def test_the_digest_is_that_of_the_task_and_not_of_the_run(copy: Copy) -> None:
    """A limit, the number of requests at once and the machine's paths change nothing."""
    copy.spec["dataset"] = {"name": "d", "samples": 9, "location": "/home/me/d.jsonl"}
    copy.spec["config"] = {"limit": 3, "epochs": 2}
    first = copy.result(sampled(1))
    copy.spec["dataset"]["location"] = "/home/you/d.jsonl"
    copy.spec |= {"config": {"max_samples": 4}, "run_id": "r", "created": "2026-01-01"}
    copy.plan["steps"][0]["params"] = {}
    assert copy.result(sampled(1)).configuration_digest == first.configuration_digest
    assert first.source == "d"
    copy.facts["file_digest"] = "g"
    assert copy.result(sampled(1)).configuration_digest != first.configuration_digest
    copy.facts["file_digest"] = "f"
    copy.spec["task_args"] = {"greeting": "Hi"}
    assert copy.result(sampled(1)).configuration_digest != first.configuration_digest


def test_the_source_is_the_package_and_the_hub(copy: Copy) -> None:
    """As "inspect_evals 0.26.0, openai/gsm8k"."""
    copy.facts["package"] = "inspect_evals 0.26.0"
    copy.spec["dataset"] = {"name": "gsm8k", "location": "openai/gsm8k"}
    assert copy.result(sampled(1)).source == "inspect_evals 0.26.0, openai/gsm8k"
