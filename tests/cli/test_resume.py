"""`enginehouse resume`: who may, what it needs, and what it refuses."""

from __future__ import annotations

import gzip
import json
import signal

import pytest
from tests.support.command_line import House, journaled, scored, sums, until

from enginehouse.core.errors import RunLockedError, StoreError
from enginehouse.processes.tree import identify

OTHER_WEIGHTS = b"\3\0\0\0\0\0\0\0{} "  # a safetensors file whose head is padded


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """`eval` of twelve samples, one at a time."""
    house.model()
    items, canned = sums(right=9, wrong=3)
    words = ("eval", "tiny", "--task", str(house.task(items)), "--concurrency", "1")
    return (*words, "--env", house.answers(canned), "--env", "VLLM_FAKE_TOKEN_LATENCY=0.01")


def interrupted(house: House, words: tuple[str, ...], *, after: int = 1) -> str:
    """A run that was begun and killed; its server is stopped. Gives its id."""
    running = house.start(*words)
    running.until("ready after")
    (run,) = house.runs
    until(lambda: scored(run) >= after, "no sample is scored")
    running.interrupt()
    assert running.end().code == 130
    return run.name


@pytest.mark.slow
def test_two_at_once(house: House, call, words: tuple[str, ...]):
    """One of two resumers gets exit code 8 and the other's pid; that one finishes."""
    name = interrupted(house, words)
    one = house.start("resume", name)
    one.until("resumed")
    one.interrupt(signal.SIGSTOP)
    other = call("resume", name)
    one.interrupt(signal.SIGCONT)
    assert other.code == RunLockedError.exit_code == 8
    assert str(one.pid) in other.err
    done = one.end()
    assert done.code == 0, done.err
    assert "75.0%" in done.out
    assert set(journaled(house.runs[0]).samples.values()) == {1}


@pytest.mark.slow
def test_at_once_after_a_kill(house: House, call, words: tuple[str, ...]):
    """The killed run's server is gone before the new one starts, whichever was faster."""
    # the reaper needs its whole patience; the server of the resume is not deaf
    running = house.start(*words, VLLM_FAKE_IGNORE_SIGTERM="1")
    running.until("ready after")
    (run,) = house.runs
    until(lambda: scored(run) >= 1, "no sample is scored")
    running.interrupt(signal.SIGSTOP)  # or it may end while `ps` looks
    (left,) = call("ps", "--json").report
    running.kill()
    resumed = house.start("resume", run.name)
    resumed.until("starting vllm")
    assert identify(left["record"]["process"]["pid"]) is None
    done = resumed.end()
    assert done.code == 0, done.err
    assert set(journaled(run).samples.values()) == {1}


@pytest.mark.slow
def test_a_complete_run_asks_nothing(house: House, call, words: tuple[str, ...]):
    """The report is printed again; no server is started and no engine looked for."""
    done = call(*words, "--json")
    assert done.code == 0, done.err
    again = call("resume", done.report["run"], "--json", ENGINEHOUSE_VLLM_PYTHON="/nowhere")
    assert again.code == 0, again.err
    assert again.report == done.report


@pytest.mark.slow
def test_only_scores_are_missing(house: House, call, words: tuple[str, ...]):
    """What was answered and not scored is scored without anybody to ask."""
    done = call(*words, "--json")
    (run,) = house.runs
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"record":"score"' not in line]
    assert len(lines) - len(kept) == 12
    (run / "journal.jsonl").write_text("".join(kept))
    (run / "report.json").unlink()
    again = call("resume", run.name, "--json", ENGINEHOUSE_VLLM_PYTHON="/nowhere")
    assert again.code == 0, again.err
    assert again.report["tasks"] == done.report["tasks"]


@pytest.mark.slow
def test_what_changed_in_between(house: House, call, words: tuple[str, ...]):
    """Answers to other questions, or of other weights, are not added up: exit code 2.

    With everything as it was, the run continues, from any folder, by the path of its folder.
    """
    name = interrupted(house, words, after=4)
    assert not call("show", name[:16], "--json").report["complete"]
    before = journaled(house.runs[0])
    for file, part in (
        ("sums.jsonl", "digest"),
        ("sums.yaml", "version"),
        ("tiny/model.safetensors", "weights"),
    ):
        path = house.work / file
        content = path.read_bytes()
        weights = path.suffix == ".safetensors"
        path.write_bytes(OTHER_WEIGHTS if weights else content + b"\n")
        done = call("resume", name)
        assert done.code == 2
        assert part in done.err
        assert journaled(house.runs[0]) == before
        assert ("starting vllm" in done.err) == weights
        path.write_bytes(content)
    house.work = house.folder
    done = call("resume", str(house.runs[0]), "--json")
    assert done.report["complete"]
    assert done.report["tasks"][0]["outcomes"]["correct"] == 9


@pytest.mark.slow
@pytest.mark.parametrize("place", ["run", "behind a link"])
def test_a_journal_that_cannot_be_read_is_not_emptied(
    house: House, call, words: tuple[str, ...], place: str
):
    """UTF-16, gzip, a pointer, no header: status 8, and not one byte is changed."""
    assert call(*words, "--json").code == 0
    (run,) = house.runs
    path = run / "journal.jsonl"
    whole = path.read_bytes()
    if place != "run":
        path.unlink()
        path.symlink_to(path := house.folder / "kept.jsonl")
    foreign = (
        whole.decode().encode("utf-16"),
        gzip.compress(whole),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
        whole.partition(b"\n")[2],
        b'{"record":' + b"[" * 100_000,
    )
    for content in foreign:
        path.write_bytes(content)
        for command in (("resume", run.name), ("resume", run.name, "--retry-failed")):
            done = call(*command)
            assert (done.code, "Traceback" in done.err) == (StoreError.exit_code, False), done.err
            assert path.read_bytes() == content
    assert list(run.glob("*.cut*")) == []


@pytest.mark.slow
def test_a_repaired_journal_is_noted(house: House, call, words: tuple[str, ...]):
    """A torn last line lies beside the journal afterwards, and the report keeps saying so."""
    assert call(*words, "--json").code == 0
    (run,) = house.runs
    path = run / "journal.jsonl"
    whole = path.read_bytes()
    torn = whole[whole.rstrip(b"\n").rfind(b"\n") + 1 : -9]
    path.write_bytes(whole[: len(whole) - len(torn) - 9] + torn)
    done = call("resume", run.name, "--json", ENGINEHOUSE_VLLM_PYTHON="/nowhere")
    assert done.code == 0, done.err
    (kept,) = run.glob("*.cut*")
    assert kept.read_bytes() == torn
    for command in ("resume", "show"):
        (note,) = [n for n in call(command, run.name, "--json").report["notes"] if "repair" in n]
        assert kept.name in note
        assert f"{len(torn):,} bytes" in note


@pytest.mark.slow
def test_variables_that_were_left_out_are_demanded(house: House, call, words: tuple[str, ...]):
    """Their values are not kept: resume names them, and takes them from the environment."""
    started = house.folder / "starts"
    secret = ("--env", "INTERNAL=s3cret", "--env", f"VLLM_FAKE_RECORD={started}")
    name = interrupted(house, (*words, *secret))
    refused = call("resume", name)
    assert refused.code == 2
    assert "INTERNAL" in refused.err
    assert "s3cret" not in refused.err
    started.unlink()
    done = call("resume", name, "--json", INTERNAL="s3cret")
    assert done.code == 0, done.err
    assert done.report["complete"]
    assert json.loads(started.read_text())["env"]["INTERNAL"] == "s3cret"
    assert call("resume", name).code == 0  # nobody has to be asked any more
