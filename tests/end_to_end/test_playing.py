"""Experiments on a real vLLM: RedBlackBench's quick test, and a base model against its adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support import redblackbench_files
from tests.support.command_line import House, until

from enginehouse.arena.records import CallRecord, MatchRecord, ProvenanceRecord, Record
from enginehouse.store.journal import read_journal

pytestmark = pytest.mark.engine

SERVER = {
    "max_model_len": 4096,
    "enforce_eager": True,
    "env_vars": {"VLLM_CPU_KVCACHE_SPACE": "1"},
}


def records(run: Path) -> list[Record]:
    """The lines of a run's journal."""
    return [entry.record for entry in read_journal(run / "journal.jsonl", Record)]


def journaled(run: Path, kind: type[Any]) -> list[Any]:
    """Those of one kind."""
    return [record for record in records(run) if isinstance(record, kind)]


def quick(**provider: Any) -> dict[str, Any]:
    """The documented quick test with SmolLM2, which we serve, and short answers."""
    text = redblackbench_files.documented("vllm_qwen3_quick_test").read_text()
    values: dict[str, Any] = yaml.safe_load(text)
    del values["output_dir"], values["default_provider"]["base_url"]
    ours = {"model": "smollm2", "serve": True, "max_tokens": 16, "server": SERVER}
    values["default_provider"] |= ours | provider
    return values


def test_the_quick_test_of_redblackbench(house: House):
    """Two teams of two, three rounds: 42 calls and their repetitions, and no server is left."""
    file = house.write("quick.yaml", yaml.safe_dump(quick()))
    done = house.run("play", str(file))
    assert done.code == 0, done.err
    run = house.runs[-1]
    (match,) = journaled(run, MatchRecord)
    assert match.failure is None
    assert len(match.turns) == 3
    first = [call for call in journaled(run, CallRecord) if call.key.attempt == 0]
    assert len(first) == 42
    (session,) = journaled(run, ProvenanceRecord)
    provenance = session.provenance
    assert (provenance.engine, provenance.model) == ("vllm", "smollm2")
    assert provenance.weights_digest is not None
    assert provenance.chat_template_digest is not None

    work = house.run("play", "analyze", run.name, "--json").report["work"]
    assert work["prompt_tokens"] > work["completion_tokens"] > 0
    assert 0 < work["prefix_cache_hits"] < 1
    traces = house.run("play", "export", run.name).out.splitlines()
    steps = [step for trace in map(json.loads, traces) for step in trace["steps"]]
    assert len(traces) == 4
    assert len(steps) == match.calls
    for step in steps:
        assert len(step["logprobs"]) == len(step["token_ids"]) > 0
        assert max(step["logprobs"]) <= 0
        assert len(step["prompt_token_ids"]) > 100
    house.nothing_left()


def test_a_base_against_its_adapter_survives_a_kill(house: House, vote_adapter: Path):
    """All four pairings on one server; after kill -9 nothing is asked twice and nothing is lost."""
    values = quick()
    for team in ("team_a", "team_b"):
        del values[team]
    values["teams"] = {"base": {}, "lora": {"provider": {"adapter": str(vote_adapter)}}}
    values |= {"pairings": "all", "game": {"num_rounds": 1, "team_size": 1, "seed": 3}}
    running = house.start("play", str(house.write("lora.yaml", yaml.safe_dump(values))))
    running.until("run: ")
    run = house.runs[-1]
    journal = run / "journal.jsonl"
    until(
        lambda: journal.exists() and journal.read_text().count('"type":"call"') >= 3,
        "no calls",
        patience=house.patience,
    )
    running.kill()
    resumed = house.run("resume", run.name)
    assert resumed.code == 0, resumed.err

    calls = journaled(run, CallRecord)
    keys = [call.key for call in calls]
    assert len(set(map(repr, keys))) == len(keys)
    matches = journaled(run, MatchRecord)
    assert {match.pairing for match in matches} == {
        *("base vs base", "base vs lora", "lora vs base", "lora vs lora")
    }
    assert [match.failure for match in matches] == [None] * 4
    assert len({match.seed for match in matches}) == 1

    sessions = journaled(run, ProvenanceRecord)
    servers = {session.provenance.base_url for session in sessions}
    assert len(sessions) == 2 * len(servers)  # both models on each session's one server
    digests = {s.model: s.provenance.adapter_digest for s in sessions}
    assert digests["smollm2"] is None
    assert digests["smollm2+vote"] is not None
    house.nothing_left()
