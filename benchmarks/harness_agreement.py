"""Our gsm8k, hellaswag and ifeval against lm-eval's own, item by item, on one served model.

python benchmarks/harness_agreement.py FOLDER --lm-eval PYTHON: serves SmolLM2 in float32 behind the
gateway (`run-with`), asks the same items by our tasks and by lm-eval's YAML (of which only the data
source is replaced), and compares the outcomes. Then both scorers are given the same answers, so
that scoring alone is compared. What was asked is recorded in FOLDER: the same command asks nothing
twice. `enginehouse envs` shows where lm-eval's Python is. With --given there is no server: both
score the data's own texts.

The items are the first ones of the GSM8K test set and of IFEval's prompts in --data, and of the
hundred HellaSwag items in a package. lm-eval's worked examples for gsm8k come from the training
set, for which the last items of the test set stand here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import yaml
from interleaved import machine, say

from enginehouse.core.messages import ChatPrompt
from enginehouse.evaluation.records import Record, SampleRecord, ScoreRecord
from enginehouse.statistics.intervals import wilson
from enginehouse.store.journal import read_journal
from enginehouse.tasks import hellaswag
from enginehouse.tasks.base import Task
from enginehouse.tasks.data import package_source, read_rows
from enginehouse.tasks.instruction_checkers.scoring import METRICS
from enginehouse.tasks.numbers import final_number, written
from enginehouse.tasks.registry import load_task

PEERS = Path(__file__).parent / "peers"
DATA = Path(__file__).parents[2] / "shared/data"
TASKS = ("gsm8k", "hellaswag", "ifeval")
THEIRS = "agreement_"
EXAMPLES = 100  # items at the end of the GSM8K test set that stand for the training set


def main(arguments: Sequence[str]) -> None:
    """Ask, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--items", type=int, default=30, help="of each task")
    parser.add_argument("--max-tokens", type=int, default=160, help="of every written answer")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--lm-eval", type=Path, required=True, help="Python with lm-eval 0.4.13")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--task", action="append", choices=TASKS)
    parser.add_argument(
        "--given", action="store_true", help="compare scoring alone, on texts that no model wrote"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    asked.folder = asked.folder.absolute()
    asked.task = asked.task or list(TASKS)
    if asked.inside:
        for task in asked.task:
            _ask(asked, task)
        return
    if asked.given:
        _compare_given(asked)
        return
    say(machine())
    for task in asked.task:
        _prepare(asked, task)
    _serve(asked, arguments)
    for task in asked.task:
        _compare(asked, task)


def _prepare(asked: argparse.Namespace, task: str) -> None:
    """Write the items, and lm-eval's task with them as its data."""
    folder = asked.folder / task
    folder.mkdir(parents=True, exist_ok=True)
    files = {"train": "items.jsonl", "validation": "items.jsonl", "test": "items.jsonl"}
    if task == "hellaswag":
        _write(folder / "items.jsonl", list(_hellaswag_rows())[: asked.items])
    else:
        name = {"gsm8k": "gsm8k/test.jsonl", "ifeval": "ifeval/input_data.jsonl"}[task]
        rows = _read(asked.data / name)
        _write(folder / "items.jsonl", rows[: asked.items])
        if task == "gsm8k":
            files["train"] = "examples.jsonl"
            _write(folder / "examples.jsonl", rows[-EXAMPLES:])
    package = subprocess.run(
        [asked.lm_eval, "-c", "import lm_eval.tasks as t; print(t.__path__[0])"],
        check=True,
        capture_output=True,
        text=True,
    )
    original = Path(package.stdout.strip()) / task
    for code in original.glob("*.py"):
        shutil.copy(code, folder)
    lines = (original / f"{task}.yaml").read_text().splitlines()
    own = {
        "task": THEIRS + task,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {split: str(folder / file) for split, file in files.items()}
        },
    }
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(own) + "\n".join(_remaining(lines)))


def _remaining(lines: Sequence[str]) -> Iterator[str]:
    """The lines of a task's YAML without its name, its data and its tags."""
    in_tags = False
    for line in lines:
        in_tags = line.startswith("tag:") or (in_tags and line.startswith("  - "))
        if not in_tags and not line.startswith(("dataset_", "task:")):
            yield line


def _hellaswag_rows() -> Iterator[dict[str, Any]]:
    """The package's items in the original's format, which has the context in two parts."""
    source = package_source(hellaswag.PACKAGE, member=hellaswag.MEMBER, sha256=hellaswag.SHA256)
    for row in read_rows(source):
        begun = hellaswag.split_context(row.text("ctx"))
        yield {
            "activity_label": row.text("activity_label"),
            "ctx_a": begun[0],
            "ctx_b": begun[1],
            "endings": row.texts("endings"),
            "label": str(row.fields["expected_index"]),
        }


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _serve(asked: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Run ourselves behind a gateway, which answers what it has been asked before."""
    command = [sys.executable, "-m", "enginehouse", "run-with", asked.model]
    command += ["--dtype", "float32", "--max-model-len", "4096"]
    command += ["--record", str(asked.folder / "record"), "--replay", "--"]
    subprocess.run([*command, sys.executable, __file__, *arguments, "--inside"], check=True)


def _ask(asked: argparse.Namespace, task: str) -> None:
    """Both harnesses, through the gateway that our variables name."""
    folder = asked.folder / task
    url, model = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_MODEL"]
    shutil.rmtree(folder / "native", ignore_errors=True)
    ours = [sys.executable, "-m", "enginehouse", "eval", "--url", url, "--task", task]
    ours += ["--data", str(folder / "items.jsonl"), "--folder", str(folder / "native")]
    ours += ["--concurrency", str(asked.concurrency)]
    if task != "hellaswag":
        ours += ["--max-tokens", str(asked.max_tokens)]
    environment = os.environ | {"ENGINEHOUSE_API_KEY": os.environ["OPENAI_API_KEY"]}
    subprocess.run(ours, env=environment, check=True)

    arguments = {"model": model, "num_concurrent": asked.concurrency, "max_retries": 1}
    if task == "hellaswag":
        kind, path = "local-completions", "/completions"
        arguments |= {"tokenizer": str(_tokenizer(asked)), "tokenizer_backend": "huggingface"}
    else:
        kind, path = "local-chat-completions", "/chat/completions"
    arguments["base_url"] = url + path
    theirs = [str(asked.lm_eval), "-m", "lm_eval", "run", "--model", kind]
    theirs += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    theirs += ["--tasks", THEIRS + task, "--include_path", str(folder), "--log_samples"]
    shutil.rmtree(folder / "lm-eval", ignore_errors=True)
    theirs += ["--output_path", str(folder / "lm-eval")]
    if task != "hellaswag":
        theirs += ["--apply_chat_template", "--gen_kwargs", f"max_gen_toks={asked.max_tokens}"]
    if task == "gsm8k":
        theirs += ["--fewshot_as_multiturn", "true"]
    subprocess.run(theirs, env=_their_variables(asked), check=True)


def _tokenizer(asked: argparse.Namespace) -> Path:
    """The served checkpoint's folder, from the server's record."""
    command = [sys.executable, "-m", "enginehouse", "ps", "--json"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True)
    url = os.environ["OPENAI_BASE_URL"]
    for server in json.loads(listed.stdout):
        words = server["record"]["command"]
        for word in words:
            if (Path(word) / "tokenizer.json").exists():
                return Path(word)
    sys.exit(f"no checkpoint of {asked.model} behind {url} was found")


def _their_variables(asked: argparse.Namespace) -> dict[str, str]:
    """No hub, and the model of English sentences where nltk looks for it."""
    nltk = asked.folder / "nltk"
    _write_punkt(nltk / "tokenizers/punkt_tab/english")
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(asked.folder / "hf"),
        "NLTK_DATA": str(nltk),
    }


def _write_punkt(folder: Path) -> None:
    """Punkt's English model, from the package that our checkers use, as nltk stores it."""
    import punkt

    model = punkt.load_model("english")
    folder.mkdir(parents=True, exist_ok=True)
    pairs = "".join(f"{first}\t{second}\n" for first, second in sorted(model.collocations))
    contexts = "".join(f"{word}\t{flags}\n" for word, flags in sorted(model.ortho_context.items()))
    (folder / "collocations.tab").write_text(pairs)
    (folder / "sent_starters.txt").write_text("\n".join(sorted(model.sent_starters)))
    (folder / "abbrev_types.txt").write_text("\n".join(sorted(model.abbrev_types)))
    (folder / "ortho_context.tab").write_text(contexts)


class Native(msgspec.Struct, frozen=True, kw_only=True):
    """What our task recorded of an item."""

    text: str
    outcome: str
    answer: str | None
    measures: Mapping[str, float]
    loglikelihoods: tuple[float, ...]
    prompt: str


def _native(folder: Path) -> dict[str, Native]:
    """By the item's place in its file."""
    records = [entry.record for entry in read_journal(folder / "native/journal.jsonl", Record)]
    scores = {r.position: r for r in records if isinstance(r, ScoreRecord)}
    found = {}
    for sample in records:
        if not isinstance(sample, SampleRecord):
            continue
        score = scores[sample.position]
        prompt = sample.requests[0].prompt
        turns = prompt.messages if isinstance(prompt, ChatPrompt) else ()
        found[str(sample.position)] = Native(
            text=sample.responses[0].completions[0].text if sample.continuations is None else "",
            outcome=score.outcome.value,
            answer=score.answer,
            measures={name: measure.value for name, measure in score.measures.items()},
            loglikelihoods=tuple(c.loglikelihood for c in sample.continuations or ()),
            prompt=str(turns[-1].content) if turns else "",
        )
    return found


def _theirs(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """By document id and filter, what lm-eval logged."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for file in (folder / "lm-eval").rglob("samples_*.jsonl"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found.setdefault(str(row["doc_id"]), {})[row["filter"]] = row
    return found


def _compare(asked: argparse.Namespace, task: str) -> None:
    folder = asked.folder / task
    ours, theirs = _native(folder), _theirs(folder)
    if ours.keys() != theirs.keys():
        sys.exit(f"{task}: different items: {sorted(ours.keys() ^ theirs.keys())}")
    print(f"\n## {task}: {len(ours)} items\n")
    if task == "hellaswag":
        _compare_choices(ours, theirs)
        return
    metric = {"gsm8k": "exact_match", "ifeval": "prompt_level_strict_acc"}[task]
    filters = ("flexible-extract", "strict-match") if task == "gsm8k" else ("none",)
    texts = {"ours": {k: o.text for k, o in ours.items()}}
    texts["lm-eval's"] = {k: next(iter(t.values()))["resps"][0][0] for k, t in theirs.items()}
    same = sum(texts["ours"][k] == texts["lm-eval's"][k] for k in ours)
    print(f"identical answers: {same} of {len(ours)}")
    for name in filters:
        right = {k: bool(t[name][metric]) for k, t in theirs.items()}
        native = {k: o.outcome == "correct" for k, o in ours.items()}
        if name == "strict-match":
            native = {k: o.measures["strict_match"] == 1.0 for k, o in ours.items()}
        _agreement(f"whole protocol, {name}", native, right)
    for whose, answers in texts.items():
        _compare_scorers(asked, task, whose, answers, filters, metric)


def _compare_choices(
    ours: Mapping[str, Native], theirs: Mapping[str, Mapping[str, dict[str, Any]]]
) -> None:
    rows = {k: next(iter(t.values())) for k, t in theirs.items()}
    for measure in ("acc_norm", "acc"):
        native = {k: o.outcome == "correct" for k, o in ours.items()}
        if measure == "acc":
            native = {k: o.measures["acc"] == 1.0 for k, o in ours.items()}
        _agreement(measure, native, {k: bool(row[measure]) for k, row in rows.items()})
    differences = [
        abs(mine - float(response[0][0]))
        for k, o in ours.items()
        for mine, response in zip(o.loglikelihoods, rows[k]["resps"], strict=True)
    ]
    print(f"largest difference of {len(differences)} log-likelihoods: {max(differences):.2g} nats")


def _compare_scorers(
    asked: argparse.Namespace,
    task: str,
    whose: str,
    answers: Mapping[str, str],
    filters: Sequence[str],
    metric: str,
) -> None:
    """Our scorer and lm-eval's on the same texts; what differs is printed in full."""
    own = load_task(task)
    items = own.load(data=str(asked.folder / task / "items.jsonl"), seed=0).items
    request, reply = asked.folder / "request.json", asked.folder / "reply.json"
    folder = str(asked.folder / task)
    request.write_text(json.dumps({"folder": folder, "task": THEIRS + task, "texts": answers}))
    command = [asked.lm_eval, PEERS / "lm_eval_scores.py", request, reply]
    subprocess.run(command, env=_their_variables(asked), check=True)
    scored = json.loads(reply.read_text())
    for name in filters:
        mine, other = {}, {}
        for k, text in answers.items():
            score = own.score_text(items[int(k)], text)
            mine[k] = score.outcome.value == "correct"
            if name == "strict-match":
                mine[k] = score.measures["strict_match"].value == 1.0
            other[k] = bool(scored[k][name]["metrics"][metric])
        _agreement(f"scoring alone, {whose} answers, {name}", mine, other)
        for k in (k for k in answers if mine[k] != other[k]):
            print(f"- item {k}: ours {mine[k]}, lm-eval {other[k]}: …{answers[k][-300:]!r}")
    if task == "gsm8k":
        _compare_numbers(whose, answers, scored)
    else:
        _compare_instructions(own, items, answers, scored)


def _compare_given(asked: argparse.Namespace) -> None:
    """Score GSM8K's own solutions, and for IFEval its prompts, alone and three in one text."""
    asked.items = None  # all of them
    for task in ("gsm8k", "ifeval"):
        _prepare(asked, task)
    rows = _read(asked.folder / "gsm8k/items.jsonl")
    solutions = {str(place): row["answer"] for place, row in enumerate(rows)}
    filters = ("flexible-extract", "strict-match")
    _compare_scorers(asked, "gsm8k", "the data's", solutions, filters, "exact_match")
    prompts = [row["prompt"] for row in _read(asked.folder / "ifeval/items.jsonl")]
    alone = {str(place): prompt for place, prompt in enumerate(prompts)}
    mixed = {
        str(n): f"<<Title>>\n\n* {prompts[n - 1]}\n\n***\n\n*bold* {prompts[n - 2].upper()}\n\n"
        f"P.S. {prompt}"
        for n, prompt in enumerate(prompts)
    }
    for whose, texts in (("prompts as", alone), ("three prompts as", mixed)):
        _compare_scorers(asked, "ifeval", whose, texts, ("none",), "prompt_level_strict_acc")


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _compare_numbers(
    whose: str, answers: Mapping[str, str], scored: Mapping[str, Mapping[str, Any]]
) -> None:
    """The numbers that both read from the same texts, right or wrong."""
    numbers = {}
    for k, text in answers.items():
        number = final_number(text)
        read = scored[k]["flexible-extract"]["answer"]
        numbers[k] = (None if number is None else written(number), _plain(read), read)
    different = [k for k, (mine, theirs, _) in numbers.items() if mine != theirs]
    same = len(numbers) - len(different)
    _share(f"the number read, {whose} answers", same, len(numbers))
    for k in different:
        print(
            f"- item {k}: ours {numbers[k][0]}, lm-eval {numbers[k][2]!r}: …{answers[k][-240:]!r}"
        )


def _plain(read: str) -> str | None:
    """lm-eval's text as a number in our writing; None where it found none."""
    try:
        return written(Fraction(read.replace(",", "").replace("$", "").rstrip(".")))
    except (ValueError, ZeroDivisionError):
        return None


def _compare_instructions(
    own: Task, items: Sequence[Any], answers: Mapping[str, str], scored: Mapping[str, Any]
) -> None:
    """The instructions that both count as followed, item by item."""
    for name in METRICS:
        mine, theirs = {}, {}
        for k, text in answers.items():
            mine[k] = own.score_text(items[int(k)], text).measures[name].value
            value = scored[k]["none"]["metrics"][name]
            theirs[k] = float(sum(value) if isinstance(value, list) else value)
        _share(f"scoring alone, {name}", sum(mine[k] == theirs[k] for k in mine), len(mine))
        for k in (k for k in mine if mine[k] != theirs[k]):
            print(f"- item {k}: ours {mine[k]}, lm-eval {theirs[k]}: {answers[k][:200]!r}")


def _agreement(what: str, ours: Mapping[str, bool], theirs: Mapping[str, bool]) -> None:
    """Scores, agreement with its interval, and the items on which they differ."""
    different = [k for k in ours if ours[k] != theirs[k]]
    _share(what, len(ours) - len(different), len(ours))
    right = f"ours {sum(ours.values())}, lm-eval {sum(theirs.values())} of {len(ours)} right"
    print(f"  {right}; differ on {', '.join(different) or 'none'}")


def _share(what: str, same: int, of: int) -> None:
    interval = wilson(same, of)
    assert interval is not None
    print(f"{what}: agree on {same} of {of} ({interval.low:.1%} to {interval.high:.1%})")


if __name__ == "__main__":
    main(sys.argv[1:])
