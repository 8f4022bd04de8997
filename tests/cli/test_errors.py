"""What a user may get wrong: the exit code, and what is wrong; nothing is started.

The wording of errors is pinned in tests/docs/test_error_messages.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.command_line import House, journaled, sums
from tests.support.small_disks import SmallDisk, small_disk

from enginehouse.core.errors import EnginehouseError


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """An `eval` that would work."""
    house.model()
    items, canned = sums(right=2)
    house.task(items)
    return ("eval", "tiny", "--task", "sums.yaml", "--env", house.answers(canned))


# What is added to `words`, the exit code, and parts of the message.
OPTIONS = [
    ("--extra-args=--max-modl-len 5", 2, "--max-modl-len", "--max-model-len?"),
    ("--extra-args=--swap-space 4", 2, "--swap-space", "--kv-offloading-size"),
    ("--swap-space=4", 2, "--swap-space", "--kv-offloading-size"),
    ("--extra-args=--port 5", 2, "--port"),
    ("--extra-args=--enforce-eager yes", 2, "--enforce-eager", "'yes'"),
    ("--extra-args=--model-impl 'a", 2, "quote"),
    ("--max-modl-len=5", 2, "--max-modl-len", "--max-model-len"),
    ("--max-model-len=many", 2, "--max-model-len"),
    ("--limit=0", 2, "'limit'"),
    ("--dtype=float99", 2, "'server.dtype'", "'bfloat16'", "'float99'"),
    ("--variant=tpu", 2, "'variant'", "'tpu'"),
    ("--engine=vlm", 2, "'vlm'", "'vllm'?"),
    ("--env=NOTHING", 2, "NOTHING"),
    ("--env=VLLM_PORT=5", 2, "VLLM_PORT"),
    ("--host=0.0.0.0", 2, "0.0.0.0", "API"),
    ("--host=192.0.2.1", 2, "api_key"),
    ("--max-lora-rank=8", 2, "enable_lora"),
    ("--version=0.31.0", 2, "ENGINEHOUSE_VLLM_PYTHON", "0.32.0", "0.31.0"),
    ("--python=/nowhere/python", 3, "/nowhere/python", "--python"),
    ("--python=" + sys.executable, 3, "--python", "No module named"),
    ("--config=missing.yaml", 2, "missing.yaml", "--config"),
    ("--task=gsm9k", 2, "'gsm9k'", "'gsm8k'?"),
    ("--task=sums.yaml", 2, "sums"),
    ("--task=other.yaml", 2, "other.yaml"),
]


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case[0].split("/")[0])
def test_a_wrong_option(house: House, call, words: tuple[str, ...], case: tuple[object, ...]):
    """Named with what to do instead; no server is started for it."""
    option, code, *parts = case
    done = call(*words, option)
    check(done, code, parts)
    assert "starting vllm" not in done.err
    assert (house.runs == []) == (code == 2)  # a run that could never be resumed is not kept
    assert ("enginehouse resume" in done.err) == bool(house.runs)


def check(done, code: object, parts: list[str]) -> None:
    """The exit code, every part of the message, no traceback, nothing on standard output."""
    assert done.code == code, done.err
    for part in parts:
        assert part in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


YAMLS = [
    ("modle: tiny\ntasks: [sums.yaml]", "'model'?"),
    ("model: tiny\ntaskss: [sums.yaml]", "'tasks'?"),
    ("model: tiny\ntasks: [sums.yaml]\nserver: {max_modl_len: 5}", "'max_model_len'?"),
    ("model: tiny\ntasks: [{name: sums.yaml, limt: 5}]", "'limit'?"),
    ("model: tiny\ntasks: [sums.yaml]\nlimit: few", "'limit'"),
    ("model: [tiny\ntasks: x", "line 2"),
    ("- model\n- tasks", "mapping"),
    ("tasks: [sums.yaml]", "model"),
    ("model: tiny", "'tasks'"),
    ("model: tiny\ntasks: []", "'tasks'"),
    ("", "mapping"),
]


@pytest.mark.parametrize(("text", "part"), YAMLS, ids=range(len(YAMLS)))
def test_a_wrong_yaml(house: House, call, words: tuple[str, ...], text: str, part: str):
    """The file and the key are named, and the nearest key."""
    house.write("eval.yaml", text)
    done = call("eval", "--config", "eval.yaml")
    check(done, 2, ["eval.yaml", part])
    assert house.runs == []


def test_several_mistakes_in_a_yaml_are_all_named(house: House, call, words: tuple[str, ...]):
    """One look is enough to fix the file."""
    house.write("eval.yaml", "model: tiny\ntasks: [sums.yaml]\nlimitt: 5\ntemperature: -1\n")
    check(call("eval", "--config", "eval.yaml"), 2, ["'limitt'", "'limit'?", "'temperature'"])


TASKS = [
    ({"promt": "x"}, 2, "'promt'", "'prompt'?"),
    ({"metric": "exactmatch"}, 2, "'exact_match'?"),
    ({"metric": "no_such_module:judge"}, 2, "no_such_module.py"),
    ({"prompt": "{{ askk }}"}, 7, "askk"),
    ({"prompt": "{{ ask"}, 2, "prompt"),
    ({"answer": "rihgt"}, 7, "'rihgt'", "'right'?"),
    ({"data": "nowhere.jsonl"}, 7, "nowhere.jsonl", "No such file"),
]


@pytest.mark.parametrize("case", TASKS, ids=lambda case: str(case[0]))
def test_a_wrong_task_of_the_user(house: House, call, case: tuple[object, ...]):
    """File, key, field and item are named before anything is started."""
    house.model()
    changes, code, *parts = case
    house.task(sums(right=1)[0], **changes)
    check(call("eval", "tiny", "--task", "sums.yaml"), code, parts)
    assert house.runs == []


def test_unreadable_data(house: House, call):
    """A file that is not JSONL is named with its line."""
    house.model()
    house.task(sums(right=1)[0])
    house.write("sums.jsonl", '{"ask": "1 + 1", "right": "2"}\n{"ask": \n')
    check(call("eval", "tiny", "--task", "sums.yaml"), 7, ["sums.jsonl", "line 2"])
    check(call("eval", "tiny", "-t", "hellaswag", "--data", "no.jsonl"), 7, ["no.jsonl"])
    several = call("eval", "tiny", "-t", "hellaswag", "-t", "ifeval", "--data", "no.jsonl")
    check(several, 2, ["--data", "--task"])


MODELS = [
    ("tinny", "'tinny'", "owner/name"),
    ("smolm2", "'smollm2'?"),
    ("./tinny", "tiny"),
    ("empty", "config.json"),
    ("adapter", "org/base"),
    ("pointer", "git lfs pull"),
    ("weightless", "weightless"),
    ("broken", "model.safetensors"),
    ("file.gguf", "file.gguf"),
    ("runs", "checkpoint-20?"),
]


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case[0])
def test_a_model_that_cannot_be_used(
    house: House, call, words: tuple[str, ...], case: tuple[str, ...]
):
    """Exit code 4, the reason and the way out, before a server is started."""
    (house.work / "empty").mkdir()
    house.write("adapter/adapter_config.json", json.dumps({"base_model_name_or_path": "org/base"}))
    house.write("pointer/config.json", "{}")
    house.write("pointer/model.safetensors", "version https://git-lfs.github.com/spec/v1\n")
    house.write("weightless/config.json", "{}")
    house.write("broken/config.json", "{}")
    house.write("broken/model.safetensors", "cut off")
    house.write("file.gguf", "no")
    house.write("runs/checkpoint-20/config.json", "{}")
    reference, *parts = case
    done = call("serve", reference)
    check(done, 4, parts)
    assert "starting vllm" not in done.err


def test_a_taken_port(house: House, call, words: tuple[str, ...]):
    """Exit code 5 and who has it."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = call(*words, "--port", str(port))
    check(done, 5, [str(port), f"(pid {os.getpid()})"])


def test_nothing_to_do(house: House, call):
    """A command without what it needs says what that is."""
    check(call("eval"), 2, ["enginehouse tasks"])
    check(call("serve"), 2, ["smollm2"])
    check(call("serve", "a", "b"), 2, ["b"])
    check(call("evel"), 2, ["evel"])
    check(call("resume"), 2, ["argument"])


@pytest.mark.slow
def test_an_unknown_run_or_server(house: House, call, words: tuple[str, ...]):
    """The nearest one is named, or how to make one."""
    check(call("show", "2026"), 8, ["2026", "enginehouse eval"])
    assert call(*words).code == 0
    (run,) = house.runs
    wrong = run.name[:-1]
    mistyped = call("show", wrong.replace("tiny", "tinny"))
    check(mistyped, 8, [f"'{run.name}'?"])
    check(call("resume", "none"), 8, [run.name])
    assert call(*words).code == 0
    check(call("show", "2"), 8, ["2 runs", run.name])
    for command in ("stop", "logs"):
        check(call(command, "mine"), 2, ["mine"])
    check(call("envs", "remove", "mine"), 2, ["mine"])


@pytest.mark.slow
def test_a_metric_that_breaks(house: House, call):
    """Exit code 9 with the user's own error; the answers are kept, and scored once it is fixed."""
    house.model()
    house.write("mine.py", "def judge(text, item):\n    return item['rigth'] == text\n")
    items, canned = sums(right=3)
    house.task(items, metric="mine:judge")
    done = call("eval", "tiny", "--task", "sums.yaml", "--env", house.answers(canned))
    assert done.code == 9, done.err
    assert "KeyError: 'rigth'" in done.err
    (run,) = house.runs
    assert f"enginehouse rescore {run.name}" in done.err
    shown = call("show", run.name, "--sample", "1")
    assert "outcome: unscored" in shown.out
    assert "ScoringError (task)" in shown.out
    house.write("mine.py", "def judge(text, item):\n    return 'e' in text\n")
    assert call("resume", run.name).code == 9
    again = call("rescore", run.name, "--json")
    assert again.code == 0, again.err
    (task,) = again.report["tasks"]
    assert task["answers"] == sum(task["changes"].values()) == 3
    assert task["version"] != task["version_before"]
    assert set(journaled(run).samples.values()) == {1}
    (task,) = call("rescore", run.name, "--json").report["tasks"]
    assert task["changes"] == {}
    house.nothing_left()


@pytest.mark.slow
def test_a_foreign_run_is_not_obeyed_without_asking(house: House, call, words, tmp_path: Path):
    """Neither its Python nor anything else of it runs; the flag that allows it is named."""
    assert call(*words).code == 0
    (run,) = house.runs
    foreign = tmp_path / "downloaded"
    shutil.copytree(run, foreign)
    lines = (foreign / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (foreign / "journal.jsonl").write_bytes(b"".join(lines[:3]))
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ntouch {tmp_path}/obeyed\nexit 1\n")
    python.chmod(0o755)
    config = (foreign / "config.yaml").read_text()
    (foreign / "config.yaml").write_text(f"{config}python: {python}\n")
    for command in ("resume", "rescore"):
        refused = call(command, str(foreign))
        check(refused, 2, [str(python), "--trust-run"])
    assert not (tmp_path / "obeyed").exists()
    call("resume", str(foreign), "--trust-run")
    assert (tmp_path / "obeyed").exists()


def test_verbose_adds_the_traceback(call, words: tuple[str, ...]):
    """-v: where in the program it happened, then the same words."""
    done = call(*words, "--extra-args", "--swap-space 4", "-v")
    assert done.code == 2
    assert "Traceback" in done.err
    assert "--swap-space" in done.err


def test_every_error_class_has_a_documented_exit_code():
    """0 to 14, a shell's two, and nothing else: scripts depend on them."""
    classes, codes = [EnginehouseError], set()
    while classes:
        found = classes.pop()
        codes.add(found.exit_code)
        classes += found.__subclasses__()
    assert codes == {*range(1, 15), 126, 127}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 300 KB."""
    with small_disk(tmp_path / "disk") as own:
        own.resize(300)
        yield own


@pytest.mark.slow
def test_a_full_disk(house: House, call, full_disk: SmallDisk):
    """Exit code 8 and the free space; with room again the run continues, and nothing is lost."""
    house.home = full_disk.place
    house.env["ENGINEHOUSE_HOME"] = str(full_disk.place)
    house.model()
    items, canned = sums(right=400)
    house.task(items)
    words = ("--concurrency", "4", "--env", house.answers(canned))
    done = call("eval", "tiny", "--task", "sums.yaml", *words)
    check(done, 8, ["0.0 MB", "resume"])
    house.nothing_left()
    full_disk.resize(4096)
    run = re.findall(r"enginehouse resume (\S+)", done.err)[0]
    resumed = call("resume", run, "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.report["tasks"][0]["outcomes"]["correct"] == 400
