"""`eval --url`: a server that is not ours is used, and never stopped."""

from __future__ import annotations

import re
import sys

import pytest
from tests.support.command_line import House, journaled, sums
from tests.support.foreign_server import fake_engine


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
    with fake_engine(house, VLLM_FAKE_ANSWERS=answers) as url:
        done = call("eval", "--url", url, *words, "--json")
        assert done.code == 0, done.err
        assert done.report["tasks"][0]["headline"]["value"] == 0.8
        (provenance,) = done.report["provenance"]
        assert (provenance["engine"], provenance["engine_version"]) == ("vllm", "0.32.0")
        assert (provenance["model"], provenance["base_url"]) == ("theirs", url)
        for field in ("engine_arguments", "environment", "weights_digest", "chat_template_digest"):
            assert provenance[field] is None
            assert provenance["unknown"][field] == "the server is not ours"
        assert "which is not ours to stop" in done.err
        again = call("eval", "theirs", "--url", f"{url}/v1/", *words, "--json")
        assert again.report["tasks"] == done.report["tasks"]
        assert call("ps", "--json").report == []


def test_a_server_of_ours_is_called_by_its_name(house: House, call, words, answers):
    """`serve --detach` has started it: what is known of it is told, and it is left running."""
    house.model("ours")
    env = f"VLLM_FAKE_ANSWERS={answers}"
    assert call("serve", "ours", "-d", "--name", "mine", "--env", env).code == 0
    (server,) = call("ps", "--json").report
    url = server["record"]["base_url"]
    done = call("eval", "--url", url, *words, "--json")
    assert done.code == 0, done.err
    assert "not ours" not in done.err
    assert "the server mine, which stays as it is" in done.err
    (provenance,) = done.report["provenance"]
    assert provenance["engine_arguments"] == server["record"]["command"]
    assert provenance["environment"] == server["record"]["environment"]
    assert provenance["unknown"].keys() == {"weights_digest", "chat_template_digest"}
    assert all("not ours" not in reason for reason in provenance["unknown"].values())
    checked = call("check", url, "--users", "1")
    assert "not ours" not in checked.err + checked.out
    assert "the server mine" in checked.err
    assert call("stop", "mine").code == 0


def test_a_model_that_it_does_not_serve(house: House, call, words):
    """Exit code 2, and the names that it serves."""
    with fake_engine(house, "--served-model-name", "one", "two") as url:
        done = call("eval", "three", "--url", url, *words)
    assert done.code == 2
    assert f"the server at {url} does not serve 'three'" in done.err
    assert "name one of: one, two" in done.err


def test_a_missing_and_a_wrong_key(house: House, call, words, answers):
    """Exit code 6 and what is wrong; the key from the environment works, and is stored nowhere."""
    with fake_engine(house, VLLM_API_KEY="the-k3y", VLLM_FAKE_ANSWERS=answers) as url:
        without = call("eval", "--url", url, *words)
        assert without.code == 6
        assert "it wants an API key" in without.err
        wrong = call("eval", "--url", url, *words, "--api-key", "another")
        assert wrong.code == 6
        assert "refused the API key" in wrong.err
        right = call("eval", "--url", url, *words, ENGINEHOUSE_API_KEY="the-k3y")
        assert right.code == 0, right.err
    texts = [file.read_text() for file in house.home.rglob("*") if file.is_file()]
    assert not [text for text in [*texts, wrong.err, right.err] if "the-k3y" in text]


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("http://127.0.0.1:1", 6, "nothing answers at http://127.0.0.1:1"),
        ("127.0.0.1:8000", 2, "'127.0.0.1:8000' is not the address of a server"),
        ("ftp://somewhere", 2, "give one such as http://127.0.0.1:8000"),
        ("http://me:secret@127.0.0.1:8000", 2, "the url holds a password"),
    ],
)
def test_a_wrong_url(house: House, call, words, url: str, code: int, said: str):
    """Nothing answers, or it is no URL: said in words."""
    done = call("eval", "--url", url, *words)
    assert (done.code, "Traceback" in done.err) == (code, False)
    assert said in done.err
    assert "secret" not in "".join(str(file) for file in house.home.rglob("*"))


def test_options_without_effect_are_named(house: House, call, words, answers):
    """What only a server of ours would take is not dropped in silence."""
    with fake_engine(house, VLLM_FAKE_ANSWERS=answers) as url:
        given = ("--max-model-len", "5", "--env", "A=b", "--variant", "cpu", "--api-key", "k")
        done = call("eval", "--url", url, *words, *given)
        assert done.code == 0, done.err
        assert "without effect" in done.err
        assert ": variant, max_model_len, env_vars" in done.err
        assert "without effect" not in call("eval", "--url", url, *words).err


def test_what_answers_is_no_engine(house: House, call, words):
    """Another HTTP server is told from an engine."""
    program = [sys.executable, "-um", "http.server", "--bind", "127.0.0.1", "0"]
    running = house.start_program(program)
    port = re.findall(r"port (\d+)", running.until("Serving HTTP on"))[0]
    done = call("eval", "--url", f"http://127.0.0.1:{port}", *words)
    running.kill()
    assert done.code == 6
    assert "is no OpenAI-compatible server" in done.err


def test_failed_samples_can_be_asked_again(house: House, call):
    """Above 1 % failed: no score and exit code 9; when the cause is mended, only those again."""
    items, canned = sums(right=6, wrong=2, failed=2)
    house.answers(canned | {f"Sum number {n}:": "It is 8." for n in (8, 9)})
    task = str(house.task(items))
    env = {"VLLM_FAKE_ANSWERS": str(house.work / "answers.json"), "VLLM_API_KEY": "the-k3y"}
    with fake_engine(house, "--max-model-len", "512", **env) as url:
        done = call("eval", "--url", url, "--task", task, "--api-key", "the-k3y")
    assert done.code == 9
    assert "sums has no score: 2 of 10 samples failed (20.0%), more than the 1.0% allowed" in (
        done.out
    )
    (run,) = house.runs
    assert f"`enginehouse resume {run.name} --retry-failed` asks the failed samples again" in (
        done.err
    )
    with fake_engine(house, port=int(url.rpartition(":")[2]), **env):
        nothing = call("resume", run.name)
        assert (nothing.code, "nothing to ask" in nothing.err) == (9, True)
        keyless = call("resume", run.name, "--retry-failed")
        assert (keyless.code, "it wants an API key" in keyless.err) == (6, True)
        again = ("resume", run.name, "--retry-failed", "--json")
        mended = call(*again, ENGINEHOUSE_API_KEY="the-k3y")
    assert mended.code == 0, mended.err
    (report,) = mended.report["tasks"]
    assert report["headline"]["value"] == 0.7
    assert report["outcomes"]["failed"] == 0
    assert sorted(journaled(run).samples.values()) == [1] * 8 + [2] * 2


def test_a_key_on_the_command_line_is_warned_of(call, monkeypatch: pytest.MonkeyPatch):
    """`ps` shows it to everyone: the variable is named, unless it is set already."""
    words = ("bench", "m", "--url", "http://127.0.0.1:1", "--concurrency", "1", "--requests", "1")
    said = "everyone on this machine can read --api-key"
    given = call(*words, "--api-key", "s3cret")
    assert said in given.err
    assert "ENGINEHOUSE_API_KEY" in given.err
    assert "s3cret" not in given.err
    assert said not in call(*words, "--api-key", "s3cret", "--quiet").err
    monkeypatch.setenv("ENGINEHOUSE_API_KEY", "s3cret")
    assert said not in call(*words).err
