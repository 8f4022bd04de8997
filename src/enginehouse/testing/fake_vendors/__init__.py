"""Hosted APIs and a Megatron text server, faked: their documented wire formats, no model inside.

They run in the test's own event loop. Answers are those of the fake engine: deterministic, or
canned. Their replies are checked against the vendors' own SDK types in tests/testing.
"""

from enginehouse.testing.fake_vendors.anthropic import FakeAnthropic
from enginehouse.testing.fake_vendors.megatron import FakeMegatron
from enginehouse.testing.fake_vendors.openai import FakeOpenAI, FakeOpenRouter
from enginehouse.testing.fake_vendors.vendor import Planned, Quota, running_fake_vendor

__all__ = [
    "FakeAnthropic",
    "FakeMegatron",
    "FakeOpenAI",
    "FakeOpenRouter",
    "Planned",
    "Quota",
    "running_fake_vendor",
]
