"""`eval --url`: a server that somebody else runs is used, and never stopped."""

from __future__ import annotations

import re
import sys

import pytest
from tests.support.command_line import House, journaled, sums
from tests.support.foreign_server import fake_engine, fake_engine_process


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """A task of four right answers out of five."""
    items, canned = sums(right=4, wrong=1)
    house.answers(canned)
    return ("--task", str(house.task(items)))


@pytest.fixture
def answers(house: House) -> str:
    """Where the canned answers of `words` are."""
    return str(house.work / "answers.json")


def test_it_is_used_and_left_running(house: House, call, words, answers):
    """The score is there; what only its owner knows is null, with the reason."""
    with fake_engine_process(house, VLLM_FAKE_ANSWERS=answers) as (url, server):
        done = call("eval", "--url", url, *words, "--json")
        assert done.code == 0, done.err
        assert done.report["tasks"][0]["headline"]["value"] == 0.8
        (provenance,) = done.report["provenance"]
        assert (provenance["engine"], provenance["engine_version"]) == ("vllm", "0.32.0")
        assert (provenance["model"], provenance["base_url"]) == ("theirs", url)
        for field in ("engine_arguments", "environment", "weights_digest", "chat_template_digest"):
            assert provenance[field] is None
            assert provenance["unknown"][field]
        again = call("eval", "theirs", "--url", f"{url}/v1/", *words, "--json")
        assert again.report["tasks"] == done.report["tasks"]
        assert call("ps", "--json").report == []
        assert server.process.poll() is None, "it was stopped"


@pytest.mark.slow
def test_a_server_of_ours_is_called_by_its_name(house: House, call, words, answers):
    """`serve --detach` has started it: what is known of it is told, and it is left running."""
    house.model("ours")
    env = f"VLLM_FAKE_ANSWERS={answers}"
    assert call("serve", "ours", "-d", "--name", "mine", "--env", env).code == 0
    (server,) = call("ps", "--json").report
    url = server["record"]["base_url"]
    done = call("eval", "--url", url, *words, "--json")
    assert done.code == 0, done.err
    assert "the server mine" in done.err
    (provenance,) = done.report["provenance"]
    assert provenance["engine_arguments"] == server["record"]["command"]
    assert provenance["environment"] == server["record"]["environment"]
    assert provenance["unknown"].keys() == {"weights_digest", "chat_template_digest"}
    checked = call("check", url, "--users", "1")
    assert "the server mine" in checked.err
    assert call("stop", "mine").code == 0


def test_a_model_that_it_does_not_serve(house: House, call, words):
    """Exit code 2, and the names that it serves."""
    with fake_engine("--served-model-name", "one", "two") as url:
        done = call("eval", "three", "--url", url, *words)
    assert done.code == 2
    assert "one, two" in done.err


def test_a_missing_and_a_wrong_key(house: House, call, words, answers):
    """Exit code 6 and what is wrong; the key from the environment works, and is stored nowhere."""
    with fake_engine(VLLM_API_KEY="the-k3y", VLLM_FAKE_ANSWERS=answers) as url:
        assert call("eval", "--url", url, *words).code == 6
        wrong = call("eval", "--url", url, *words, "--api-key", "another")
        assert wrong.code == 6
        right = call("eval", "--url", url, *words, ENGINEHOUSE_API_KEY="the-k3y")
        assert right.code == 0, right.err
    texts = [file.read_text() for file in house.home.rglob("*") if file.is_file()]
    assert not [text for text in [*texts, wrong.err, right.err] if "the-k3y" in text]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:1", 6),
        ("127.0.0.1:8000", 2),
        ("ftp://somewhere", 2),
        ("http://me:secret@127.0.0.1:8000", 2),
    ],
)
def test_a_wrong_url(house: House, call, words, url: str, code: int):
    """Nothing answers, or it is not a URL."""
    done = call("eval", "--url", url, *words)
    assert (done.code, "Traceback" in done.err) == (code, False)
    assert "secret" not in done.err
    assert "secret" not in "".join(str(file) for file in house.home.rglob("*"))


def test_options_without_effect_are_named(house: House, call, words, answers):
    """Options that only our own server would accept are not silently dropped."""
    with fake_engine(VLLM_FAKE_ANSWERS=answers) as url:
        given = ("--max-model-len", "5", "--env", "A=b", "--variant", "cpu", "--api-key", "k")
        done = call("eval", "--url", url, *words, *given)
        assert done.code == 0, done.err
        assert "variant, max_model_len, env_vars" in done.err
        assert "max_model_len" not in call("eval", "--url", url, *words).err


def test_what_answers_is_no_engine(house: House, call, words):
    """Another HTTP server is told from an engine."""
    program = [sys.executable, "-um", "http.server", "--bind", "127.0.0.1", "0"]
    running = house.start_program(program)
    port = re.findall(r"port (\d+)", running.until("Serving HTTP on"))[0]
    done = call("eval", "--url", f"http://127.0.0.1:{port}", *words)
    running.kill()
    assert done.code == 6


def test_failed_samples_can_be_asked_again(house: House, call):
    """Above 1 % failed: no score and exit code 9; when the cause is fixed, only those again."""
    items, canned = sums(right=6, wrong=2, failed=2)
    house.answers(canned | {f"Sum number {n}:": "It is 8." for n in (8, 9)})
    task = str(house.task(items))
    env = {"VLLM_FAKE_ANSWERS": str(house.work / "answers.json"), "VLLM_API_KEY": "the-k3y"}
    with fake_engine("--max-model-len", "512", **env) as url:
        done = call("eval", "--url", url, "--task", task, "--api-key", "the-k3y")
    assert done.code == 9
    assert "2 of 10 samples failed" in done.out
    (run,) = house.runs
    assert f"enginehouse resume {run.name} --retry-failed" in done.err
    with fake_engine(port=int(url.rpartition(":")[2]), **env):
        assert call("resume", run.name).code == 9
        assert call("resume", run.name, "--retry-failed").code == 6
        again = ("resume", run.name, "--retry-failed", "--json")
        fixed = call(*again, ENGINEHOUSE_API_KEY="the-k3y")
    assert fixed.code == 0, fixed.err
    (report,) = fixed.report["tasks"]
    assert report["headline"]["value"] == 0.7
    assert report["outcomes"]["failed"] == 0
    assert sorted(journaled(run).samples.values()) == [1] * 8 + [2] * 2


def test_a_key_on_the_command_line_is_warned_of(call, monkeypatch: pytest.MonkeyPatch):
    """`ps` shows it to everyone: the variable is named, unless it is set already."""
    words = ("bench", "m", "--url", "http://127.0.0.1:1", "--concurrency", "1", "--requests", "1")
    said = "--api-key"
    given = call(*words, "--api-key", "s3cret")
    assert said in given.err
    assert "ENGINEHOUSE_API_KEY" in given.err
    assert "s3cret" not in given.err
    assert said not in call(*words, "--api-key", "s3cret", "--quiet").err
    monkeypatch.setenv("ENGINEHOUSE_API_KEY", "s3cret")
    assert said not in call(*words).err
