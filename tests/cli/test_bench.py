"""`enginehouse bench`: a model to serve, and somebody else's server."""

from __future__ import annotations

import pytest
from tests.support.foreign_server import fake_engine

SHORT = ("--input-tokens", "20", "--output-tokens", "6", "--requests", "8", "--warmup", "1")


def test_a_server_at_a_url(house, call):
    """Tables on standard output, progress on standard error; the server runs on."""
    with fake_engine() as url:
        done = call("bench", url, *SHORT, "--concurrency", "1,4")
    assert done.code == 0, done.err
    assert url in done.out
    assert done.out.count("per output token (TPOT)") == 2
    assert "concurrency 4: " in done.err


def test_json_and_quiet(house, call):
    """Every figure, and nothing else."""
    with fake_engine() as url:
        done = call("bench", "theirs", "--url", url, *SHORT, "--json", "-q", "--seed", "3")
    assert (done.code, done.err) == (0, "")
    (load,) = done.report["loads"]
    assert (done.report["seed"], load["requests"], load["output_tokens"]) == (3, 8, 48)
    assert load["server"]["output_tokens"] == 48


def test_too_many_failures(house, call):
    """Status 6, after the figures; more are allowed on request."""
    faults = '[{"fault": "status", "status": 500, "nth": [3]}]'
    for words, code in (((), 6), (("--max-failed", "0.2"), 0)):
        with fake_engine(VLLM_FAKE_FAULTS=faults) as url:
            done = call("bench", url, *SHORT, *words)
        assert (done.code, "end to end (E2EL)" in done.out) == (code, True)
        assert "1 failed (ServerFaultError)" in done.out.replace("\n", " ")
    assert "error:" not in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "url"),
        (("http://127.0.0.1:1", "--concurrency", "1,x"), "'concurrency.1'"),
        (("http://127.0.0.1:1", "--concurrency", "0"), "'concurrency.0'"),
        (("http://127.0.0.1:1", "--requests", "4", "--concurrency", "8"), "8"),
        (("http://127.0.0.1:1", "--max-model-len", "9"), "max_model_len"),
        (("http://127.0.0.1:1", "--swap-space", "4"), "--swap-space"),
        (("http://127.0.0.1:1/v1?x=1",), "http://127.0.0.1:1/v1?x=1"),
        (("http://me:secret@127.0.0.1:1",), "url"),
        (("http://me:secret@[::1",), "url"),
        (("http://[::1",), "'http://[::1'"),
    ],
)
def test_wrong_usage(call, words: tuple[str, ...], said: str):
    """Status 2 and what is wrong, before anything is asked."""
    done = call("bench", *words)
    assert done.code == 2, done.err
    assert said in done.err
    assert "secret" not in done.err


def test_no_server_there(call):
    """Status 6."""
    assert call("bench", "http://127.0.0.1:1").code == 6


@pytest.mark.slow
def test_a_model_is_served_and_stopped(house):
    """As `serve` does it: the engine's command line is in the result, and nothing is left."""
    done = house.run("bench", str(house.model()), *SHORT, "--max-num-seqs", "2", "--json")
    assert done.code == 0, done.err
    report = done.report
    assert (report["engine"], report["model"]) == ("vllm", "tiny")
    assert "--max-num-seqs" in report["engine_arguments"]
    assert report["loads"][0]["failed"] == 0
    house.nothing_left()


@pytest.mark.slow
def test_ctrl_c_stops_the_server(house):
    """Status 130, and nothing is left."""
    running = house.start(
        *("bench", str(house.model()), "--requests", "100000", "--concurrency", "2"),
        *("--env", "VLLM_FAKE_TOKEN_LATENCY=0.01"),
    )
    running.until("100,000")
    running.interrupt()
    assert running.end().code == 130
    house.nothing_left()
