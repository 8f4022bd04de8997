"""Asks a sampler every sample of the tasks, scores the answers, and sums them up."""

from enginehouse.evaluation.records import EvaluationSpec, TaskSpec
from enginehouse.evaluation.runner import count_missing, evaluate
from enginehouse.evaluation.summary import find_sample, require_headlines, summarise

__all__ = [
    "EvaluationSpec",
    "TaskSpec",
    "count_missing",
    "evaluate",
    "find_sample",
    "require_headlines",
    "summarise",
]
