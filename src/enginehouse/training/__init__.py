"""Runs inside a trainer's process: evaluates the model in training, and sends its weights.

Only this room may import torch and transformers, and only inside functions: they belong to the
trainer (extra `[trainer]`), and are not needed before a loop passes its model.
"""

from enginehouse.training.callback import trainer_callback
from enginehouse.training.evaluator import CheckpointEvaluator
from enginehouse.training.records import Evaluation, Score, read_evaluations
from enginehouse.training.weight_transfer import WeightSender

__all__ = [
    "CheckpointEvaluator",
    "Evaluation",
    "Score",
    "WeightSender",
    "read_evaluations",
    "trainer_callback",
]
