"""`enginehouse eval` from the command line to the report, every outcome counted."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import msgspec
import pytest
from tests.support.command_line import Finished, House, port_is_free, sums, url_of

from enginehouse.deployment.compute_type import type_on_cpu
from enginehouse.engines.options import ServerOptions
from enginehouse.processes.cpu import read_cpu
from enginehouse.processes.process import Command
from enginehouse.testing.fake_engine import tokenizer
from enginehouse.testing.fake_engine.model import logprobs, weights_digest

OUTCOMES = {"correct": 10, "wrong": 5, "unparsable": 4, "truncated": 3, "unscored": 0, "failed": 2}
ENDINGS = ("runs away.", "sits down and sings a song.", "is a boat.", "opens the door to the sea.")


def many_sums(house: House) -> tuple[str, ...]:
    """Arguments for a task with OUTCOMES."""
    items, canned = sums(right=10, wrong=5, unparsable=4, truncated=3, failed=2)
    task = str(house.task(items))
    return ("--task", task, "--env", house.answers(canned), "--max-model-len", "512")


def line(text: str, *words: str) -> bool:
    """Whether some line of `text` holds exactly these words, in this order, at its beginning."""
    return any(tuple(found.split()[: len(words)]) == words for found in text.splitlines())


@pytest.mark.slow
def test_report_has_the_known_scores(house: House, call):
    """Counts of all six outcomes, correct / (all - failed), its interval, and a clean end."""
    house.model()
    done = call("eval", "tiny", *many_sums(house), "--max-failed", "0.1")
    assert done.code == 0, done.err
    assert line(done.out, "sums", "24", "10", "5", "4", "3", "0", "2")
    assert "45.5%  26.9% to 65.3%  wilson" in done.out
    (run,) = house.runs
    assert line(done.out, "run", run.name)
    assert str(run) in "".join(done.out.split())  # a long path is folded
    assert re.search(
        r"answered by\s+vllm 0\.32\.0 at http://127\.0\.0\.1:\d+, weights \w{12}", done.out
    )
    assert re.search(r"throughput\s+[\d,]+ generated tokens/s", done.out)
    assert "24 of 24 items" in done.out
    house.nothing_left()
    assert port_is_free(url_of(done.err))


@pytest.mark.slow
def test_progress_goes_to_standard_error(house: House, call):
    """What was chosen and how far it is stands in lines on standard error; -q leaves nothing."""
    house.model()
    words = ("eval", "tiny", *many_sums(house), "--max-failed", "0.1")
    done = call(*words)
    for said in (
        "run: ",
        "engine: vllm",
        "environment: ",
        "model: ",
        "starting vllm",
        "ready after",
    ):
        assert said in done.err
        assert said not in done.out
    assert re.search(r"24/24 samples, \d+ requests, 2 failed", done.err)
    quiet = call(*words, "-q")
    assert (quiet.code, quiet.err) == (0, "")
    assert line(quiet.out, "sums", "24", "10", "5", "4", "3", "0", "2")


@pytest.mark.slow
def test_json_agrees_with_the_table_and_runs_again(house: House, call):
    """--json is one document; the resolved config.yaml gives the same result from anywhere."""
    house.model()
    first = call("eval", "tiny", *many_sums(house), "--max-failed", "0.1", "--json").report
    (task,) = first["tasks"]
    assert task["outcomes"] == OUTCOMES
    assert task["headline"]["value"] == pytest.approx(10 / 22)
    assert first["complete"]
    (run,) = house.runs
    shown = call("show", first["run"], "--json").report
    assert shown == first == json.loads((run / "report.json").read_text())
    house.work = house.folder  # another working folder
    again = call("eval", "--config", str(run / "config.yaml"), "--json").report
    assert again["tasks"] == first["tasks"]
    assert again["run"] != first["run"]


@pytest.mark.slow
def test_three_tasks_on_one_server(house: House, call):
    """A user's task, instructions and hellaswag (by log-likelihood) share one start."""
    model = house.model()
    hellaswag = house.write("hellaswag.jsonl", "".join(json.dumps(row) + "\n" for row in rows()))
    items, canned = sums(right=3, wrong=1)
    canned |= {
        "Is ice colder than steam": "My answer is yes.",
        "List 3 fruits": "* a\n* b\n* c",
        "Describe a red apple": '{"name": "apple", "color": "red"}',
        ".*": " ",
    }
    config = {
        "model": str(model),
        "tasks": [
            str(house.task(items)),
            "instructions",
            {"name": "hellaswag", "data": str(hellaswag)},
        ],
        "server": {"env_vars": {"VLLM_FAKE_RECORD": str(house.folder / "starts")}},
    }
    path = house.write("eval.yaml", json.dumps(config))
    done = call("eval", "--config", str(path), "--env", house.answers(canned), "--json")
    assert done.code == 0, done.err
    reports = {task["task"]: task for task in done.report["tasks"]}
    assert list(reports) == ["sums", "instructions", "hellaswag"]
    assert reports["sums"]["headline"]["value"] == 0.75
    assert reports["instructions"]["outcomes"]["correct"] == 3
    assert reports["instructions"]["headline"]["value"] == 0.05
    acc_norm, acc = hellaswag_by_hand(model)
    assert reports["hellaswag"]["headline"]["value"] == pytest.approx(acc_norm)
    assert reports["hellaswag"]["metrics"]["acc"]["value"] == pytest.approx(acc)
    assert reports["hellaswag"]["subset"]
    assert len((house.folder / "starts").read_text().splitlines()) == 1


def rows() -> list[dict[str, object]]:
    """HellaSwag's own format, eight items."""
    return [
        {
            "activity_label": "Testing",
            "ctx_a": f"A man walks for {n} hours.",
            "ctx_b": "he",
            "endings": list(ENDINGS),
            "label": n % 4,
        }
        for n in range(8)
    ]


def hellaswag_by_hand(model: Path) -> tuple[float, float]:
    """acc_norm and acc of `rows`, from the fake's own log-probabilities."""
    weights, norm, plain = weights_digest(str(model)), 0, 0
    for n in range(8):
        context = f"Testing: A man walks for {n} hours. He"
        start = len(tokenizer.encode(context))
        values = []
        for ending in ENDINGS:
            ids = tokenizer.encode(f"{context} {ending}")
            values.append(sum(logprobs(weights, (), ids)[start:]))
        scaled = [value / len(ending) for value, ending in zip(values, ENDINGS, strict=True)]
        norm += scaled.index(max(scaled)) == n % 4
        plain += values.index(max(values)) == n % 4
    return norm / 8, plain / 8


@pytest.mark.slow
def test_every_sample_can_be_shown(house: House, call):
    """`runs` lists the run, `show --sample` gives request, answer and outcome of each sample."""
    house.model()
    done = call("eval", "tiny", *many_sums(house), "--max-failed", "0.1")
    assert done.code == 0, done.err
    (run,) = house.runs
    listed = call("runs")
    assert line(listed.out, run.name, "complete")
    assert call("runs", "--json").report[0]["id"] == run.name
    first = call("show", run.name[:15], "--sample", "1")
    assert "outcome: correct" in first.out
    assert "what is 0 + 0?" in first.out
    assert "It is 0." in first.out
    last = call("show", str(run), "--sample", "24", "--json").report
    assert last["outcome"] == "failed"
    assert "ContextOverflowError" in last["failure"]
    beyond = call("show", run.name, "--sample", "25")
    assert beyond.code == 2
    assert "24" in beyond.err


@pytest.mark.slow
def test_provenance_is_whole(house: House, call):
    """Engine, its arguments, environment and digests are in the report of our own server."""
    house.model()
    done = call("eval", "tiny", *many_sums(house), "--max-failed", "0.1", "--json")
    (provenance,) = done.report["provenance"]
    assert (provenance["engine"], provenance["engine_version"]) == ("vllm", "0.32.0")
    assert provenance["engine_arguments"][1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert "--max-model-len" in provenance["engine_arguments"]
    assert re.fullmatch("[0-9a-f]{64}", provenance["weights_digest"])
    assert re.fullmatch("[0-9a-f]{64}", provenance["chat_template_digest"])
    assert provenance["environment"] == house.env["ENGINEHOUSE_VLLM_PYTHON"]
    chosen = type_on_cpu(read_cpu())
    assert (provenance["dtype"], provenance["dtype_reason"]) == (chosen.dtype, chosen.reason)
    assert chosen.reason in done.err
    shown = call("show", done.report["run"])
    assert f"computed in  {chosen.dtype}: {chosen.reason}" in shown.out


@pytest.mark.slow
def test_secrets_are_nowhere(house: House, call):
    """The API key and a token reach the engine, but no file, report or message that we write."""
    house.model()
    secrets = {"api-key": "k3y-of-the-server", "token": "hf_of_the_user", "other": "p4ss-w0rd"}
    secrets |= {"plain": "s3cret-without-a-telling-name", "engine": "of-an-engine"}
    started = house.folder / "starts"
    done = call(
        "eval",
        "tiny",
        *many_sums(house),
        *("--max-failed", "0.1", "--api-key", secrets["api-key"], "-v"),
        *("--env", f"HF_TOKEN={secrets['token']}", "--env", f"DB_PASSWORD={secrets['other']}"),
        *("--env", f"VLLM_FAKE_RECORD={started}", "--env", "TOKENIZERS_PARALLELISM=false"),
        *("--env", f"INTERNAL={secrets['plain']}", "--env", f"VLLM_AUTH={secrets['engine']}"),
    )
    assert done.code == 0, done.err
    seen = json.loads(started.read_text())["env"]
    names = ("GUARD_API_KEY", "HF_TOKEN", "DB_PASSWORD", "INTERNAL", "VLLM_AUTH")
    assert [seen[name] for name in names] == [*secrets.values()]
    files = [file for file in house.home.rglob("*") if file.is_file()]
    texts = [done.out, done.err, *(file.read_text(errors="replace") for file in files)]
    assert len(files) > 8
    assert not [secret for secret in secrets.values() for text in texts if secret in text]
    config = (house.runs[0] / "config.yaml").read_text()
    hidden = "api_key, " + ", ".join(f"env_vars.{name}" for name in sorted(names[1:]))
    assert f"secrets: {hidden}" in config
    assert "TOKENIZERS_PARALLELISM: 'false'" in config


@pytest.mark.slow
def test_what_is_kept_is_its_owners_alone(house: House, call):
    """Run, journal, report, server record and log, whatever the umask; a user's own file is not."""
    house.model()
    house.write("prompts.jsonl", '{"prompt": "a"}\n')
    umask = os.umask(0)
    try:
        for words in (
            ["eval", "tiny", *many_sums(house), "--max-failed", "1"],
            ["sample", "tiny", "--prompts", "prompts.jsonl", "--out", "out.jsonl"],
        ):
            done = call(*words)
            assert done.code == 0, done.err
    finally:
        os.umask(umask)
    state = house.home / "state"
    kept = [state, *(p for name in ("runs", "servers") for p in (state / name).rglob("*"))]
    assert len(kept) > 10
    assert [p for p in kept if p.stat().st_mode & 0o077] == []
    assert (house.work / "out.jsonl").stat().st_mode & 0o777 == 0o666


def test_a_wrong_value_may_be_a_secret(house: House, call):
    """Neither a variable's value nor the options around it are repeated in an error."""
    values = {"env_vars": {"HF_TOKEN": ["hf_secret"], "A": "hf_secret"}, "port": "x"}
    for server in (values, {**values, "enable_lora": False, "max_loras": 2}, [values]):
        house.write("plan.yaml", json.dumps({"model": "tiny", "tasks": ["sums"], "server": server}))
        done = call("eval", "--config", "plan.yaml")
        assert done.code == 2
        assert "hf_secret" not in done.err
    options = ServerOptions(env_vars={"HF_TOKEN": "hf_secret"}, api_key="hf_secret")
    command = Command(argv=("a",), env={"HF_TOKEN": "hf_secret"})
    assert "hf_secret" not in f"{options!r} {options} {command!r} {command}"


@pytest.mark.slow
def test_options_win_over_a_tasks_own_settings(house: House, call):
    """--limit on the command line also replaces the limit that the file gives one task."""
    house.model()
    items, canned = sums(right=6)
    # from the file's own folder, not from where the command is called
    task = {"name": f"../{house.task(items).name}", "data": "../sums.jsonl", "limit": 4}
    config = house.write("plans/eval.yaml", json.dumps({"model": "tiny", "tasks": [task]}))
    words = ("eval", "--config", str(config), "--env", house.answers(canned), "--json")
    assert call(*words).report["tasks"][0]["items"] == 4
    assert call(*words, "--limit", "2").report["tasks"][0]["items"] == 2


@pytest.mark.slow
def test_the_first_items_of_a_seeded_order(house: House, call):
    """--limit is a seeded choice, labelled a subset; --samples asks each item again."""
    house.model()
    words = (*many_sums(house), "--max-failed", "1", "--json")

    def asked(seed: str) -> set[str]:
        done = call("eval", "tiny", *words, "--limit", "6", "--seed", seed)
        journal = (Path(done.report["folder"]) / "journal.jsonl").read_bytes()
        assert done.report["tasks"][0]["subset"]
        records = [msgspec.json.decode(record) for record in journal.splitlines()]
        return {record["item"] for record in records if record["record"] == "sample"}

    one, same, other = asked("1"), asked("1"), asked("2")
    assert len(one) == 6
    assert one == same != other
    sampled = call("eval", "tiny", *words, "--limit", "2", "--samples", "3").report
    (task,) = sampled["tasks"]
    assert (task["samples"], task["items"], task["samples_per_item"]) == (6, 2, 3)


@pytest.mark.slow
def test_options_beat_the_config(house: House, call):
    """A value on the command line wins over the same key of the YAML; the rest stays."""
    model = house.model()
    items, canned = sums(right=4)
    config = {
        "model": str(model),
        "tasks": [str(house.task(items))],
        "limit": 3,
        "temperature": 0.5,
        "server": {"max_model_len": 512, "dtype": "float16"},
    }
    path = str(house.write("eval.yaml", json.dumps(config)))
    words = ("--limit", "2", "--max-model-len", "640", "--env", house.answers(canned), "--json")
    done: Finished = call("eval", "--config", path, *words)
    (provenance,) = done.report["provenance"]
    arguments = " ".join(provenance["engine_arguments"])
    assert done.report["tasks"][0]["items"] == 2
    assert done.report["temperature"] == 0.5
    assert "--max-model-len 640" in arguments
    assert "--dtype float16" in arguments
