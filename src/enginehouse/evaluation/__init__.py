"""Asks a sampler every sample of the tasks, scores the answers, and sums them up."""

from enginehouse.evaluation.asking import check_tasks
from enginehouse.evaluation.records import EvaluationSpec, Prices, TaskSpec
from enginehouse.evaluation.runner import count_missing, evaluate, note_end, rescore
from enginehouse.evaluation.summary import find_sample, require_headlines, summarise

__all__ = [
    "EvaluationSpec",
    "Prices",
    "TaskSpec",
    "check_tasks",
    "count_missing",
    "evaluate",
    "find_sample",
    "note_end",
    "require_headlines",
    "rescore",
    "summarise",
]
