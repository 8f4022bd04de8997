"""`eval --engine openai|anthropic|openrouter`: keys, prices, refusals; against the fakes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from tests.support.command_line import House, sums

from enginehouse.testing.fake_vendors import (
    FakeAnthropic,
    FakeMegatron,
    FakeOpenAI,
    FakeOpenRouter,
    Planned,
    Quota,
    running_fake_vendor,
)
from enginehouse.testing.fake_vendors.vendor import FakeVendor

CANARY = "sk-canary-key-4711"
V = TypeVar("V", bound=FakeVendor)


@contextmanager
def running(vendor: V) -> Iterator[V]:
    """A fake in a thread of its own: the command has this one."""
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with running_fake_vendor(vendor):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield vendor
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def everything_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file, whatever its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


VENDORS = {
    "openai": (FakeOpenAI, "OPENAI"),
    "anthropic": (FakeAnthropic, "ANTHROPIC"),
    "openrouter": (FakeOpenRouter, "OPENROUTER"),
}


@pytest.fixture
def words(house: House) -> tuple[tuple[str, ...], dict[str, str]]:
    """A task of four right answers out of five, and the answers."""
    items, canned = sums(right=4, wrong=1)
    return ("--task", str(house.task(items))), canned


@pytest.mark.slow
@pytest.mark.parametrize("name", VENDORS)
def test_an_evaluation_end_to_end_leaves_no_key_behind(house: House, call, words, name: str):
    """Score, tokens, cost and provenance; the key is in no file and no output, a quota is obeyed.

    The first request meets an error that quotes the key, and one sample fails so for good.
    """
    task, canned = words
    fake, prefix = VENDORS[name]
    quoting = {"error": {"type": "api_error", "message": f"you sent {CANARY}", "code": 500}}
    refusing = {"error": {"type": "invalid_request_error", "message": f"bad {CANARY}"}}
    plan = [Planned(status=500, body=quoting), Planned(status=400, body=refusing)]
    quota = Quota(requests=3, window=0.2)
    with running(fake(key=CANARY, canned=canned, plan=plan, quota=quota)) as vendor:
        env = {f"{prefix}_BASE_URL": vendor.url, f"{prefix}_API_KEY": CANARY}
        price = ("--price-input", "2", "--price-output", "10", "--max-failed", "0.5")
        done = call(
            "eval", "fake-model", "--engine", name, *task, *price, "--json", "--verbose", **env
        )
    assert done.code == 0, done.err
    (task_report,) = done.report["tasks"]
    assert task_report["outcomes"]["failed"] == 1
    assert sum(task_report["outcomes"].values()) == 5
    tokens, cost = done.report["throughput"], done.report["cost"]
    assert cost["input"] == pytest.approx(tokens["prompt_tokens"] * 2e-6)
    assert cost["output"] == pytest.approx(tokens["generated_tokens"] * 10e-6)
    assert cost["total"] == pytest.approx(cost["input"] + cost["output"])
    assert cost["total"] > 0
    (provenance,) = done.report["provenance"]
    assert (provenance["engine"], provenance["model"]) == (name, "fake-model")
    assert "bad ***" in (Path(done.report["folder"]) / "journal.jsonl").read_text()
    assert CANARY not in done.out + done.err
    files = list(everything_below(house.folder))
    run = Path(done.report["folder"])
    assert {"journal.jsonl", "config.yaml"} <= {p.name for p, _ in files if p.parent == run}
    assert [path for path, content in files if CANARY.encode() in content] == []
    shown = call("show", done.report["run"], **env)
    assert f"${cost['total']:,.4f}" in shown.out


def test_without_prices_there_is_no_cost(house: House, call, words):
    """Neither a field nor a line; and one price alone is refused."""
    task, canned = words
    with running(FakeOpenAI(key=CANARY, canned=canned)) as vendor:
        env = {"OPENAI_BASE_URL": vendor.url, "OPENAI_API_KEY": CANARY}
        plain = call("eval", "fake-model", "--engine", "openai", *task, **env)
        done = call("eval", "fake-model", "--engine", "openai", *task, "--json", **env)
        one = call("eval", "m", "--engine", "openai", *task, "--price-input", "1", **env)
    assert "cost" not in done.report
    assert "cost" not in plain.out
    assert (one.code, "price_output" in one.err) == (2, True)


@pytest.mark.parametrize("name", VENDORS)
def test_a_missing_key_is_an_error_before_anything_is_sent(house: House, call, words, name: str):
    """It names the vendor's variable, or the one that was to hold the key."""
    fake, prefix = VENDORS[name]
    with running(fake()) as vendor:
        env = {f"{prefix}_BASE_URL": vendor.url, f"{prefix}_API_KEY": ""}
        command = ("eval", "fake-model", "--engine", name, *words[0])
        without = call(*command, **env)
        elsewhere = call(*command, "--api-key-env", "MY_KEY", **env)
        assert vendor.requests == []
    assert (without.code, elsewhere.code) == (2, 2)
    assert f"export {prefix}_API_KEY=" in without.err
    assert "export MY_KEY=" in elsewhere.err


@pytest.mark.parametrize("name", VENDORS)
def test_a_wrong_key_ends_it_at_once(house: House, call, words, name: str):
    """Whose key, which variable, and not the key; no sample is asked."""
    fake, prefix = VENDORS[name]
    with running(fake()) as vendor:
        env = {f"{prefix}_BASE_URL": vendor.url, "MY_KEY": CANARY}
        done = call(
            "eval", "fake-model", "--engine", name, *words[0], "--api-key-env", "MY_KEY", **env
        )
        assert vendor.bodies == []
    assert done.code == 6
    assert f"{prefix}_API_KEY" in done.err
    assert "--api-key-env" in done.err
    assert CANARY not in done.out + done.err


def test_the_whole_address_of_the_endpoint_will_do(house: House, call, words):
    """As documentation shows it."""
    task, canned = words
    with running(FakeAnthropic(key=CANARY, canned=canned)) as vendor:
        url = f"{vendor.url}/v1/messages"
        command = ("eval", "fake-model", "--engine", "anthropic", "--url", url, *task, "--json")
        done = call(*command, ANTHROPIC_API_KEY=CANARY)
    assert done.code == 0, done.err
    assert done.report["provenance"][0]["base_url"] == vendor.url


def test_a_megatron_server_is_not_asked_what_needs_a_chat_template(house: House, call, words):
    """It has none; and without an address there is nobody to ask."""
    nobody = call("check", "mine", "--engine", "megatron")
    assert (nobody.code, "MEGATRON_SERVER_URL" in nobody.err) == (2, True)
    with running(FakeMegatron()) as vendor:
        env = {"MEGATRON_SERVER_URL": f"{vendor.url}/api"}
        done = call("eval", "mine", "--engine", "megatron", *words[0], **env)
        assert vendor.requests == []
    assert done.code == 6
    assert "chat" in done.err


def test_the_configuration_holds_the_variable_and_not_the_key(house: House, call, words):
    """So that anyone with the key can resume the run."""
    task, canned = words
    with running(FakeOpenAI(key=CANARY, canned=canned)) as vendor:
        env = {"OPENAI_BASE_URL": vendor.url, "MY_KEY": CANARY}
        done = call(
            "eval", "fake-model", "--engine", "openai", "--api-key-env", "MY_KEY", *task, "--json",
            **env,
        )  # fmt: skip
    kept = (Path(done.report["folder"]) / "config.yaml").read_text()
    assert "api_key_env: MY_KEY" in kept
    assert json.dumps(done.report).count(CANARY) == 0
