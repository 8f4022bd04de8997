from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.harnesses.base import HarnessSettings
from enginehouse.harnesses.registry import load_harness


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"samples": 3}, "asks each item once, not 3 times"),
        ({"arguments": {"apply_chat_templat": True}}, "apply_chat_template"),
        ({"arguments": {"batch_size": 0}}, "batch_size"),
        ({"include_path": Path("/does/not/exist")}, "no folder /does/not/exist"),
    ],
)
def test_settings_that_it_does_not_have_are_refused(settings: dict[str, Any], says: str) -> None:
    """In words, and with the name that was probably meant."""
    with pytest.raises(ConfigurationError) as raised:
        load_harness("lm-eval").check(HarnessSettings(**settings))
    assert says in str(raised.value)
