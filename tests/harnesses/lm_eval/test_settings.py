from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.harnesses.base import HarnessEndpoint, HarnessSettings
from enginehouse.harnesses.registry import load_harness
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.runtime.context import Context

ENDPOINT = HarnessEndpoint(
    url="http://127.0.0.1:1",
    api_key="k",
    model="m",
    tokenizer=None,
    chat=True,
    capabilities=Capabilities(supports=frozenset(Capability)),
    concurrency=4,
)
ENVIRONMENT = EngineEnvironment(
    engine="lm-eval", version="1", variant="any", executable=Path("/none"), key=None, flags={}
)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"samples": 3}, "asks each item once, not 3 times"),
        ({"arguments": {"apply_chat_templat": True}}, "apply_chat_template"),
        ({"arguments": {"batch_size": 0}}, "batch_size"),
        ({"include_path": Path("/does/not/exist")}, "no folder /does/not/exist"),
    ],
)
async def test_settings_that_it_does_not_have_are_refused(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigurationError) as raised:
        await load_harness("lm-eval").run(
            ["piqa"],
            endpoint=ENDPOINT,
            settings=HarnessSettings(**settings),
            environment=ENVIRONMENT,
            folder=tmp_path,
            context=Context(),
            progress=lambda _: None,
        )
    assert says in str(raised.value)
