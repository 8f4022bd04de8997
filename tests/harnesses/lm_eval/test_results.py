from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from enginehouse.harnesses.base import HarnessResult
from enginehouse.harnesses.lm_eval.results import read_results
from enginehouse.tasks.base import Measure, Outcome


def _written(doc: int, *, answer: str, right: bool, read: str = "4") -> list[dict[str, Any]]:
    """A document of a task with two filters, as `log_samples` keeps it."""
    common = {
        "doc_id": doc,
        "target": "4",
        "arguments": [[[json.dumps([{"role": "user", "content": f"item {doc}"}])], {"until": []}]],
        "resps": [[answer]],
    }
    return [
        {**common, "filter": "strict", "filtered_resps": [read], "exact_match": float(right)},
        {**common, "filter": "loose", "filtered_resps": ["4"], "exact_match": 1.0},
    ]


def _report(**more: Any) -> dict[str, Any]:
    rows = [
        _written(0, answer="4", right=True),
        _written(1, answer="?", right=False, read="[invalid]"),
    ]
    return {
        "results": {
            "sums": {
                "name": "sums",
                "alias": "sums",
                "sample_len": 2,
                "exact_match,strict": 0.5,
                "exact_match_stderr,strict": 0.5,
                "exact_match,loose": 1.0,
                "exact_match_stderr,loose": "N/A",
            }
        },
        "group_subtasks": {},
        "configs": {
            "sums": {
                "task": "sums",
                "dataset_path": "openai/gsm8k",
                "dataset_name": "main",
                "metadata": {"version": 3.0, "tokenizer": "/a"},
            }
        },
        "versions": {"sums": 3.0},
        "higher_is_better": {"sums": {"exact_match": True}},
        "n-samples": {"sums": {"original": 1319, "effective": 2}},
        "samples": {"sums": [rows[0][0], rows[1][0], rows[0][1], rows[1][1]]},
        **more,
    }


def _read(folder: Path, *reports: dict[str, Any]) -> tuple[HarnessResult, ...]:
    files = []
    for number, report in enumerate(reports):
        files.append(folder / f"{number}.json")
        files[-1].write_text(json.dumps(report))
    return read_results(files, version="0.4.13")


def test_a_task_keeps_its_own_figures_with_every_filter(tmp_path):
    """Values and standard errors are lm-eval's; the first is the headline."""
    (result,) = _read(tmp_path, _report())
    assert (result.task, result.task_version, result.full_size) == ("sums", "3.0", 1319)
    assert result.source == "openai/gsm8k main"
    assert result.headline == "exact_match (strict)"
    assert [(m.label, m.value, m.standard_error) for m in result.metrics] == [
        ("exact_match (strict)", 0.5, 0.5),
        ("exact_match (loose)", 1.0, None),
    ]
    assert all(metric.higher_is_better for metric in result.metrics)


def test_a_document_is_one_sample_whatever_its_filters(tmp_path):
    """An answer in which the headline's filter finds nothing is unparsable, not wrong."""
    (result,) = _read(tmp_path, _report())
    first, second = result.samples
    assert (first.item, first.position, first.prompt) == ("0", 0, "user:\nitem 0")
    assert (first.answer, first.target, first.outcome) == ("4", "4", Outcome.CORRECT)
    assert second.outcome is Outcome.UNPARSABLE
    assert second.measures == {
        "exact_match (strict)": Measure(0.0),
        "exact_match (loose)": Measure(1.0),
    }


def test_an_answer_that_was_cut_off_is_truncated_if_it_is_wrong(tmp_path):
    """Also where the headline's filter finds nothing in it."""
    report = _report()
    for row in report["samples"]["sums"]:
        row |= {"truncated": True, "shortened": row["doc_id"] == 0}
    (result,) = _read(tmp_path, report)
    assert [s.outcome for s in result.samples] == [Outcome.CORRECT, Outcome.TRUNCATED]
    assert [(s.truncated, s.shortened) for s in result.samples] == [(True, True), (True, False)]


def test_choices_show_the_likeliest_and_the_right_one(tmp_path):
    """As text, where lm-eval has indices and log-likelihoods."""
    report = _report()
    report["results"]["sums"] = {"acc,none": 0.0, "acc_stderr,none": 0.0}
    report["samples"]["sums"] = [
        {
            "doc_id": 7,
            "target": 1,
            "filter": "none",
            "arguments": [["The sky is", " red"], ["The sky is", " blue"]],
            "resps": [[[-1.5, True]], [[-2.5, False]]],
            "filtered_resps": [[-1.5, True], [-2.5, False]],
            "acc": 0.0,
        }
    ]
    (result,) = _read(tmp_path, report)
    (sample,) = result.samples
    assert (sample.item, sample.prompt) == ("7", "The sky is")
    assert (sample.answer, sample.target) == (" red", " blue")
    assert sample.outcome is Outcome.WRONG
    assert result.headline == "acc"


def test_figures_that_are_not_0_or_1_have_no_outcome(tmp_path):
    """Such as an F1; pairs, from which perplexities are made, are no measures at all."""
    report = _report()
    report["results"]["sums"] = {"f1,none": 0.4, "word_perplexity,none": 9.0}
    row = {"doc_id": 0, "filter": "none", "f1": 0.4, "word_perplexity": [-3.0, 2], "resps": [["a"]]}
    report["samples"]["sums"] = [row]
    (result,) = _read(tmp_path, report)
    (sample,) = result.samples
    assert sample.outcome is None
    assert sample.measures == {"f1": Measure(0.4)}


def test_a_group_names_its_subtasks_and_comes_first(tmp_path):
    """Its samples are those of its subtasks; a group without figures is left out."""
    report = _report(group_subtasks={"arithmetic": ["sums"], "everything": ["arithmetic"]})
    report["results"] |= {
        "arithmetic": {"alias": "arithmetic", "exact_match,strict": 0.5},
        "everything": {"alias": "everything"},
    }
    report["versions"]["arithmetic"] = 2
    group, task = _read(tmp_path, report)
    assert (group.task, group.subtasks, group.task_version) == ("arithmetic", ("sums",), "2")
    assert group.samples == ()
    assert task.task == "sums"
    assert len(task.samples) == 2


def test_what_was_asked_for_twice_is_one_result(tmp_path):
    """By itself and within a group."""
    assert [r.task for r in _read(tmp_path, _report(), _report())] == ["sums"]


def test_the_digest_is_of_the_configuration_and_not_of_the_machine(tmp_path):
    """Where the tokenizer lies does not matter; a pattern does."""
    elsewhere, other = _report(), _report()
    elsewhere["configs"]["sums"]["metadata"]["tokenizer"] = "/b"
    other["configs"]["sums"]["doc_to_text"] = "{{question}}"
    digests = [
        _read(tmp_path, one)[0].configuration_digest for one in (_report(), elsewhere, other)
    ]
    assert digests[0] == digests[1] != digests[2]
