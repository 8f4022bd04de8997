"""What runs inside a trainer's process: evaluation of what is trained, and its sending.

The one room that may import torch and transformers, and only inside functions: they are the
trainer's (extra `[trainer]`), and nothing here needs them before a loop hands over its model.
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
