from __future__ import annotations

import importlib.util

import pytest

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.tasks.base import Task
from enginehouse.tasks.registry import TASKS, list_tasks, load_task, problem_of


def test_every_registered_task_describes_itself():
    """Its name is the registered one, and what a list shows is there; nothing is loaded."""
    for name in TASKS.names():
        info = load_task(name).info
        assert info.name == name
        assert info.kind in ("generate", "choose", "call")
        assert info.version >= 1
        assert all((info.description, info.headline, info.licence, info.source))


def test_the_list_has_every_task_and_the_generated_family():
    """`enginehouse tasks` shows them all; the family says what to install."""
    found = list_tasks()
    assert [info.name for info in found] == [*TASKS.names(), "reasoning_gym/<name>"]
    assert "reasoning-gym" in found[-1].needs


def test_an_unknown_task_names_the_nearest():
    """A misspelt name is found out at once."""
    with pytest.raises(UnknownNameError, match="'hellaswag'"):
        load_task("helaswag")


def test_what_a_plug_in_lacks_is_listed():
    """What it inherits from the protocol does not count."""

    class Forgetful(Task):
        @property
        def info(self):
            return load_task("gsm8k").info

        def ask(self, item):
            del item
            raise NotImplementedError

    class Whole(Forgetful):
        def load(self, *, data, seed):
            del data, seed
            raise NotImplementedError

    assert problem_of("gsm8k", Forgetful) == "lacks: load"
    assert problem_of("gsm8k", Whole) is None
    assert "gsm8k" in (problem_of("gsm9k", Whole) or "")


def test_a_yaml_path_starts_at_the_base(tmp_path, monkeypatch):
    """.yaml and .yml are paths: relative to `base`, else to the working directory."""
    text = "name: mine\ndata: a.csv\nprompt: '{{ q }}'\nanswer: a\n"
    (tmp_path / "my.yaml").write_text(text)
    (tmp_path / "my.yml").write_text(text)
    assert load_task("my.yaml", base=tmp_path).info.name == "mine"
    monkeypatch.chdir(tmp_path)
    assert load_task("my.yml").info.name == "mine"
    with pytest.raises(ConfigurationError, match=r"gone\.yaml"):
        load_task("gone.yaml")


@pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning_gym is not installed"
)
def test_a_generated_task_is_found_by_its_prefix():
    """reasoning_gym/<name>, with the nearest name for a misspelt one."""
    assert load_task("reasoning_gym/chain_sum").info.name == "reasoning_gym/chain_sum"
    with pytest.raises(UnknownNameError, match="'chain_sum'"):
        load_task("reasoning_gym/chainsum")
