"""`enginehouse engines`: the capability table, from the code."""

from __future__ import annotations

from enginehouse.core.sampler import Capability
from enginehouse.engines.registry import ENGINES


def test_every_engine_and_capability(call):
    """Side by side, and against what each was tested."""
    done = call("engines")
    assert done.code == 0
    head, *rows = done.out.partition("\n\n")[0].splitlines()
    assert head.split() == list(ENGINES.names())
    assert [row.split("  ")[0].strip() for row in rows] == [c.replace("_", " ") for c in Capability]
    assert done.out.count("never run") >= 1
    assert all(f"\n{name}" in done.out for name in ENGINES.names())


def test_it_fits_a_terminal(call):
    """All engines stand side by side in 80 columns; the three longest names take two lines."""
    done = call("engines", COLUMNS="80")
    table = done.out.partition("\n\n")[0]
    assert "…" not in table
    assert len(table.splitlines()) == len(Capability) + 1 + 3
    assert max(map(len, done.out.splitlines())) <= 80


def test_json(call):
    """What each engine declares, for programs; keys are named, never shown."""
    done = call("engines", "--json", OPENAI_API_KEY="sk-secret")
    found = {engine["name"]: engine for engine in done.report}
    assert list(found) == list(ENGINES.names())
    assert found["vllm"]["runs"] == "here"
    assert "chat" in found["vllm"]["capabilities"]
    assert found["openai"]["key_variables"] == ["OPENAI_API_KEY"]
    assert "secret" not in done.out
