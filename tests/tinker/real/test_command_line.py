"""The SDK's own command line, `tinker`, and plain OpenAI clients."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.support.command_line import House
from tests.support.tinker_service import TinkerService

from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS

pytestmark = pytest.mark.engine


def test_a_checkpoint_from_the_list_to_its_deletion(service: TinkerService, tmp_path: Path):
    """Show, list, download and delete what a real trainer made; the rest needs none.

    tests/tinker/routes/test_command_line.py has every command.
    """
    path = service.run_program("supervised", steps=2, saved_after=1)["path"]
    run = path.removeprefix("tinker://").partition("/")[0]

    def tinker(*words: str) -> Any:
        ended = service.begin(["tinker", "--format", "json", *words]).end()
        assert ended.code == 0, ended.out + ended.err
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


def scored_by_peft(
    hf: EngineEnvironment, model: str, adapter: Path, tokens: Sequence[int]
) -> list[float]:
    """The log-probabilities of all tokens but the first, by transformers and PEFT alone."""
    file = adapter / "tokens.json"
    file.write_text(json.dumps([tokens]))
    program = PAYLOADS / "reference_logprobs.py"
    words = [hf.executable, program, model, file, "float32", "cpu", adapter]
    done = subprocess.run(list(map(str, words)), capture_output=True, check=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])["logprobs"][0]


def scored_by_vllm(service: TinkerService, adapter: Path, tokens: Sequence[int]) -> list[float]:
    """As `scored_by_peft`, by vLLM's own endpoints, with the folder as its adapter."""
    url, key = service.vllm

    def post(path: str, **body: object) -> bytes:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=300) as reply:
            return reply.read()

    post("/v1/load_lora_adapter", lora_name="downloaded", lora_path=str(adapter))
    try:
        asked = {"model": "downloaded", "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 0}
        (choice,) = json.loads(post("/v1/completions", **asked))["choices"]
    finally:
        post("/v1/unload_lora_adapter", lora_name="downloaded")
    places = zip(choice["prompt_logprobs"][1:], tokens[1:], strict=True)
    return [place[str(token)]["logprob"] for place, token in places]


def test_a_downloaded_adapter_says_the_same_elsewhere(
    service: TinkerService, hf_environment: EngineEnvironment, tmp_path: Path
):
    """In plain PEFT and in a plain vLLM: the log-probabilities that the service gave."""
    said = service.run_program("scored", steps=3)
    words = ["checkpoint", "download", said["external"], "--output", str(tmp_path)]
    downloaded = service.begin(["tinker", *words]).end()
    assert downloaded.code == 0, downloaded.out + downloaded.err
    (config,) = tmp_path.rglob("adapter_config.json")
    assert np.abs(np.subtract(said["logprobs"], said["base"])).max() > 0.5
    for found in (
        scored_by_peft(hf_environment, service.model, config.parent, said["tokens"]),
        scored_by_vllm(service, config.parent, said["tokens"]),
    ):
        np.testing.assert_allclose(found, said["logprobs"], rtol=0, atol=1e-3)


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
