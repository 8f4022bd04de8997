"""Plug-ins as installed packages bring them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.core.registry import Registry

GROUP = "enginehouse.tests"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with one module and the entry points given, name → target."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(module: str, text: str, **entries: str) -> None:
        (tmp_path / f"{module}.py").write_text(text)
        information = Path(tmp_path / f"{module}-1.0.dist-info")
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n"
        )
        lines = [f"{name} = {target}" for name, target in entries.items()]
        (information / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))

    return install


def make(**parameters: Any) -> Registry:
    """A registry with one entry of its own."""
    return Registry("thing", {"own": "pathlib:Path"}, group=GROUP, **parameters)


def test_a_plug_in_is_listed_and_loaded(install):
    """Beside our own, with the package that it comes from."""
    install("parrot_things", "THING = 7\n", parrot="parrot_things:THING")
    registry = make()
    assert registry.names() == ("own", "parrot")
    assert registry.load("parrot") == 7
    assert (registry.package("own"), registry.package("parrot")) == (None, "parrot_things")
    with pytest.raises(UnknownNameError):
        registry.load("parot")


def test_a_broken_import_names_its_package_and_line(install):
    """The line of the plug-in, not of the import machinery."""
    install("broken_things", "A = 1\nimport no_such_module\n", wreck="broken_things:A")
    with pytest.raises(ConfigurationError) as caught:
        make().load("wreck")
    assert "broken_things" in caught.value.message
    assert "(broken_things.py:2)" in (caught.value.why or "")


def test_what_is_wrong_with_a_plug_in_is_found_at_load(install):
    """By the registry's own rule, which our own entries need not pass."""
    install("odd_things", "THING = 7\n", odd="odd_things:THING")
    registry = make(problem=lambda name, thing: f"{name} must not be {thing}")
    with pytest.raises(ConfigurationError, match="must not be 7"):
        registry.load("odd")
    assert registry.load("own") is Path


def test_a_built_in_name_cannot_be_overridden(install):
    """The plug-in is not used, and its package is known."""
    install("greedy_things", "THING = 7\n", own="greedy_things:THING")
    registry = make()
    assert registry.load("own") is Path
    assert registry.overridden() == {"own": "greedy_things"}
