"""`enginehouse check`: one line for each feature of a server."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest
from tests.support.command_line import House
from tests.support.foreign_server import fake_engine


def lines(report: dict) -> dict[str, dict]:
    """The report's lines by name."""
    return {line["name"]: line for line in report["lines"]}


def test_a_server_at_a_url(house: House, call):
    """Every line passes or says why it does not apply; latencies of the users; status 0 or 6."""
    with fake_engine() as url:
        done = call("check", url, "--users", "24", "--json")
    found = lines(done.report)
    for name in ("health", "models", "chat", "text", "token prompts", "streaming"):
        assert found[name]["outcome"] == "passed", found[name]
    for name in ("JSON schema", "choice", "log-probabilities", "24 users"):
        assert found[name]["outcome"] == "passed", found[name]
    assert found["adapters"]["outcome"] == "not supported"
    assert "--enable-lora" in found["adapters"]["fix"]
    latency = done.report["latency"]
    assert latency["n"] == 24
    assert 0 < latency["p50"] <= latency["p95"]
    assert done.code == (6 if any(v["outcome"] == "failed" for v in found.values()) else 0)


def test_in_words(house: House, call):
    """What was tried on whom, a next step below what failed, and the counts."""
    faults = '[{"fault": "status", "status": 500, "match": "I am user 3."}]'
    with fake_engine(VLLM_FAKE_FAULTS=faults) as url:
        done = call("check", url)
    assert done.code == 6
    assert url in done.out.splitlines()[0]
    assert re.search("^failed +8 users +1 of 8 ", done.out, re.MULTILINE)
    assert "passed: " in done.out.splitlines()[-1]


def test_every_listed_name_is_asked(house: House, call):
    """An adapter, or another name of the model, gets its own line."""
    folder = house.write("adapter/adapter_config.json", '{"r": 8}').parent
    adapter = json.dumps({"lora_name": "sql", "lora_path": str(folder)}).encode()
    with fake_engine("--enable-lora", VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as url:
        request = urllib.request.Request(f"{url}/v1/load_lora_adapter", adapter)
        with urllib.request.urlopen(request) as reply:
            assert reply.status == 200
        done = call("check", url, "--json")
    found = lines(done.report)
    assert found["adapter sql"]["outcome"] == "passed", found["adapter sql"]
    assert "adapters" not in found


def test_a_server_without_chat(house: House, call):
    """What the engine does not declare is not supported, and the rest is asked as a text."""
    with fake_engine() as url:
        done = call(
            "check", "theirs", "--url", url, "--engine", "megatron", "--users", "2", "--json"
        )
    found = lines(done.report)
    assert found["chat"]["outcome"] == "not supported"
    assert found["health"]["outcome"] == found["models"]["outcome"] == "not supported"
    assert found["text"]["outcome"] == found["2 users"]["outcome"] == "failed"
    assert done.code == 6


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "url"),
        (("http://127.0.0.1:1",), 6, "http://127.0.0.1:1"),
        (("http://127.0.0.1:1", "--users", "0"), 2, "'users'"),
        (("http://127.0.0.1:1", "--engine", "lamacpp"), 2, "'llamacpp'?"),
        (("http://me:secret@127.0.0.1:1",), 2, "url"),
        (("http://[::1",), 2, "'http://[::1'"),
    ],
)
def test_wrong_usage(call, words: tuple[str, ...], code: int, said: str):
    """Before anything is asked."""
    done = call("check", *words)
    assert done.code == code, done.err
    assert said in done.err
    assert "secret" not in done.err


@pytest.mark.slow
def test_a_model_is_served_and_stopped(house: House, call):
    """As `serve` does it."""
    house.model()
    done = call("check", "tiny", "--users", "2", "--json")
    assert lines(done.report)["2 users"]["outcome"] == "passed"
    house.nothing_left()
