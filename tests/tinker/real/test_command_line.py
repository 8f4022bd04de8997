"""The SDK's own command line, `tinker`, and plain OpenAI clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from tests.support.command_line import House
from tests.support.tinker_service import TinkerService, ended_well

pytestmark = pytest.mark.engine


def test_a_checkpoint_from_the_list_to_its_deletion(service: TinkerService, tmp_path: Path):
    """Show, list, download and delete what a real trainer made; the rest needs none.

    tests/tinker/routes/test_command_line.py has every command.
    """
    path = service.run_program("supervised", steps=2, saved_after=1)["path"]
    run = path.removeprefix("tinker://").partition("/")[0]

    def tinker(*words: str) -> Any:
        ended = service.begin(["tinker", "--format", "json", *words]).end()
        assert ended_well(ended), ended.out + ended.err
        return json.loads(ended.out) if ended.out.strip() else None

    assert tinker("run", "info", run)["lora_rank"] == 8
    listed = tinker("checkpoint", "list", "--run-id", run)["checkpoints"]
    assert [checkpoint["tinker_path"] for checkpoint in listed] == [path]

    tinker("checkpoint", "download", path, "--output", str(tmp_path))
    (config,) = tmp_path.rglob("adapter_config.json")
    assert json.loads(config.read_text())["r"] == 8
    weights = load_file(config.with_name("adapter_model.safetensors"))
    assert any("lora_B" in name and tensor.any() for name, tensor in weights.items())

    tinker("checkpoint", "delete", "--yes", path)
    assert tinker("checkpoint", "list", "--run-id", run)["checkpoints"] == []


def test_enginehouse_evaluates_a_checkpoint(
    service: TinkerService, shared_house: House, tmp_path: Path
):
    """`eval --url` at the service, by the name that the checkpoint's owner gave it."""
    service.run_program("supervised", steps=2, saved_after=1, alias="geography")
    (tmp_path / "items.jsonl").write_text('{"country": "France"}\n{"country": "Norway"}\n')
    task = tmp_path / "capitals.yaml"
    task.write_text(
        "name: capitals\ndata: items.jsonl\nprompt: What is the capital of {{ country }}?\n"
        "answer: country\nmetric: contains\nmax_tokens: 8\n"
    )
    words = ("--url", service.url, "--api-key-env", "ADAS_KEY", "--task", str(task), "--json")
    asked = shared_house.run("eval", "geography", *words, ADAS_KEY=service.key("ada"))
    assert asked.code == 0, asked.err
    (evaluated,) = asked.report["tasks"]
    assert (evaluated["samples"], evaluated["outcomes"]["failed"]) == (2, 0)
    # an alias is its owner's: for somebody else it is not a model
    foreign = shared_house.run("eval", "geography", *words, ADAS_KEY=service.key("bo"))
    assert foreign.code != 0
    assert "geography" in foreign.err
