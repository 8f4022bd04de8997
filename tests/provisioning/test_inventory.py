from __future__ import annotations

import subprocess

import pytest

from enginehouse.core.errors import ProvisioningError, UnknownNameError
from enginehouse.engines.vllm.installation import INSTALLATION as VLLM
from enginehouse.provisioning.environments import ensure_environment
from enginehouse.provisioning.inventory import list_environments, remove_environment
from enginehouse.provisioning.plans import EnvironmentPlan
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout


def test_nothing_is_listed_at_first(layout: Layout):
    """A machine without environments has an empty list, not an error."""
    assert list_environments(layout) == []


@pytest.mark.slow
async def test_an_environment_is_listed_and_removed(plan: EnvironmentPlan, layout: Layout):
    """The list has its key, version, size and age; after its removal nothing of it is left."""
    await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=lambda _: None)
    )
    (found,) = list_environments(layout)
    assert (found.key, found.version, found.variant) == (plan.key, "0.32.0", "cpu")
    assert found.size_bytes > 1000
    assert found.created > 1.7e9
    assert not found.in_use
    remove_environment(plan.key, layout=layout)
    assert list_environments(layout) == []
    assert [path.name for path in layout.environments.iterdir() if path.name[0] != "."] == []
    assert list((layout.environments / ".building").iterdir()) == []


@pytest.mark.slow
async def test_what_is_in_use_is_not_removed(plan: EnvironmentPlan, layout: Layout):
    """A running process keeps its environment; the error names the process."""
    built = await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=lambda _: None)
    )
    process = subprocess.Popen(  # noqa: ASYNC220 (a bystander)
        [built.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        (found,) = list_environments(layout)
        assert found.used_by == (process.pid,)
        with pytest.raises(ProvisioningError, match=str(process.pid)):
            remove_environment(plan.key, layout=layout)
        process.kill()
    remove_environment(plan.key, layout=layout)
    assert list_environments(layout) == []


@pytest.mark.slow
async def test_an_unknown_key_lists_the_known(plan: EnvironmentPlan, layout: Layout):
    """A mistyped key is answered with the keys that there are."""
    await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=lambda _: None)
    )
    with pytest.raises(UnknownNameError, match=plan.key):
        remove_environment("vllm-0.3", layout=layout)
    with pytest.raises(UnknownNameError):
        remove_environment(".locks", layout=layout)
