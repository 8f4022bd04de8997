"""A trainer without torch: a small linear model whose losses, gradients and steps are real."""

from enginehouse.testing.fake_trainer.trainer import Death, FakeTrainer

__all__ = ["Death", "FakeTrainer"]
