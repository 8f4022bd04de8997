"""A harness without packages of its own: a small program that asks, scores and reports."""

from enginehouse.testing.fake_harness.harness import FakeHarness, with_fake_harness

__all__ = ["FakeHarness", "with_fake_harness"]
