"""Versions of harnesses that cannot be installed, by what the registry really has."""

from __future__ import annotations

import pytest
from tests.support.command_line import House

import enginehouse
from enginehouse.core.errors import ConfigurationError, EnginehouseError, ProvisioningError
from enginehouse.store.layout import Layout
from enginehouse.store.runs import list_runs

pytestmark = pytest.mark.engine  # the registry is asked, as for an engine's environment


@pytest.mark.parametrize(
    ("task", "version", "kind", "words"),
    [
        ("lm-eval:piqa", "99.0.0", ConfigurationError, ("is not published", "the nearest: 0.4.")),
        (
            "inspect:inspect_evals/piqa",
            "0.3.100",  # older than every inspect_evals takes
            ProvisioningError,
            ("cannot be resolved", "inspect-evals", "ENGINEHOUSE_INSPECT_PYTHON"),
        ),
        ("lm-eval:piqa", "newest", ConfigurationError, ("is not a version", "0.4.13")),
    ],
)
async def test_each_is_refused_with_its_reason(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    version: str,
    kind: type[EnginehouseError],
    words: tuple[str, ...],
):
    """Before a server is started or a run is begun."""
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(house.home))
    said: list[str] = []
    with pytest.raises(kind) as caught:
        await enginehouse.evaluate(
            str(house.model()), tasks=[task], harness_version=version, notify=said.append
        )
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert list_runs(Layout.from_environment()) == []
    assert not any("server" in line for line in said)
