from __future__ import annotations

import os

import pytest

from enginehouse.commands import foreign_runs
from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.evaluate import resolved_yaml
from enginehouse.commands.foreign_runs import require_trust, untrusted_settings
from enginehouse.core.errors import UntrustedRunError
from enginehouse.deployment.configuration import parse
from enginehouse.store.layout import Layout
from enginehouse.store.runs import create_run


@pytest.fixture
def layout() -> Layout:
    """The test's own folders."""
    return Layout.from_environment()


@pytest.fixture
def make(layout):
    """Make a run with these settings."""

    def run(**settings: object):
        values = {"model": "tiny", "tasks": ["gsm8k"], **settings}
        config = parse(EvaluationConfig, values, origin="a test")
        return create_run(
            layout, model="tiny", tasks=["gsm8k"], config=resolved_yaml(config), versions={}
        )

    return run


RISKS = {
    "python": ({"python": "/x/python"}, "python"),
    "remote code": ({"server": {"trust_remote_code": True}}, "trust_remote_code"),
    "arguments": ({"server": {"extra_args": "--worker-extension-cls x.Y"}}, "extra_args"),
    "variables": ({"server": {"env_vars": {"LD_LIBRARY_PATH": "/x"}}}, "LD_LIBRARY_PATH"),
    "our variables": ({"server": {"env_names": ["MY_SECRET"]}}, "MY_SECRET"),
    "a task file": ({"tasks": ["/x/task.yaml"]}, "/x/task.yaml"),
    "an address": ({"url": "http://x/v1", "api_key_env": "HF_TOKEN"}, "HF_TOKEN"),
}


@pytest.mark.parametrize("name", RISKS)
def test_whatever_runs_code_or_reveals_a_key_is_named(layout, make, tmp_path, name):
    """Of a folder outside our own runs; the same run in its place is ours."""
    settings, word = RISKS[name]
    run = make(**settings)
    assert untrusted_settings(run.info.id, layout=layout) == ()
    foreign = tmp_path / "foreign"
    run.folder.rename(foreign)
    (risk,) = untrusted_settings(str(foreign), layout=layout)
    assert word in risk


def test_variables_that_a_run_asks_for_are_named(layout, make, tmp_path):
    """Their values would be taken from the environment of the user who resumes it."""
    run = make()
    run.update(left_out=("AWS_SECRET_ACCESS_KEY",))
    run.folder.rename(tmp_path / "foreign")
    (risk,) = untrusted_settings(str(tmp_path / "foreign"), layout=layout)
    assert "AWS_SECRET_ACCESS_KEY" in risk


def test_a_run_that_runs_nothing_needs_no_trust(layout, make, tmp_path):
    """A built-in task of a model by its name."""
    foreign = tmp_path / "foreign"
    make().folder.rename(foreign)
    assert untrusted_settings(str(foreign), layout=layout) == ()


@pytest.mark.parametrize("what", ["symlink", "owner"])
def test_a_run_in_our_folder_may_be_somebody_elses(layout, make, tmp_path, monkeypatch, what):
    """Reached by a link, or written by another user of a shared folder."""
    run = make(python="/x/python")
    if what == "symlink":
        run.folder.rename(tmp_path / "foreign")
        run.folder.symlink_to(tmp_path / "foreign")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert len(untrusted_settings(run.info.id, layout=layout)) == 1
    with pytest.raises(UntrustedRunError) as caught:
        require_trust(run, foreign_runs.read_config(run), layout=layout)
    assert "--trust-run" in caught.value.fix


@pytest.mark.parametrize(
    ("provider", "word"),
    [
        ("base_url: http://x/v1", "http://x/v1"),
        ("python: /x/python", "/x/python"),
        ("server: {trust_remote_code: true}", "trust_remote_code"),
    ],
)
def test_every_provider_of_an_experiment_is_looked_at(layout, tmp_path, provider, word):
    """That of a single agent, too."""
    agents = f"[llm, {{provider: {{{provider}}}}}]"
    run = create_run(
        layout,
        model="m",
        tasks=["red_black"],
        config=f"default_provider: {{type: vllm, model: m}}\nteam_b: {{agents: {agents}}}\n",
        versions={},
        kind="experiment",
    )
    assert untrusted_settings(run.info.id, layout=layout) == ()
    run.folder.rename(tmp_path / "foreign")
    (risk,) = untrusted_settings(str(tmp_path / "foreign"), layout=layout)
    assert word in risk
