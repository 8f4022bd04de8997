"""The documents against the code: a name, a link, an option or a key in them is one that exists."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from enginehouse.cli.app import COMMANDS, build_app
from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.experiment_configuration import ExperimentConfig
from enginehouse.commands.experiment_plan import plan_experiment
from enginehouse.core import errors
from enginehouse.core.strict_model import StrictModel
from enginehouse.deployment.configuration import ServeConfig, merged, parse
from enginehouse.engines.base import RemoteEngine
from enginehouse.engines.registry import ENGINES
from enginehouse.evaluation.policy import Policy
from enginehouse.evaluation.scoring_processes import ScoringProcesses
from enginehouse.jobs.launch_file import read_launch
from enginehouse.jobs.plan import plan_launch
from enginehouse.store.layout import Layout
from enginehouse.store.runs import create_run
from enginehouse.tasks.custom import Definition
from enginehouse.tasks.registry import list_tasks, load_task

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/enginehouse"
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
WRITTEN_BY_HAND = [path for path in DOCUMENTS if path.name != "reference.md"]

by_document = pytest.mark.parametrize(
    "document", WRITTEN_BY_HAND, ids=lambda path: str(path.relative_to(ROOT))
)


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE
    )


def anchors(document: Path) -> set[str]:
    """What a link behind # may name: the headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.replace("`", "").lower()).replace(" ", "-") for h in headings}


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of every enginehouse command in a shell block, up to another program's (`--`)."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("enginehouse "):
            words = shlex.split(line, comments=True)[1:]
            yield words[: words.index("--")] if "--" in words else words


def options_of(words: list[str]) -> set[str]:
    """Every option of the command that the words call, and of the commands below it."""
    if words[0] not in COMMANDS:
        command: Any = typer.main.get_command(build_app([]))
    else:
        command = typer.main.get_command(build_app([words[0]])).commands[words[0]]
        for word in words[1:]:
            command = getattr(command, "commands", {}).get(word, command)
    below = getattr(command, "commands", {}) if words[0] in COMMANDS else {}
    parameters = [p for one in (command, *below.values()) for p in one.params]
    return {flag for p in parameters for flag in (*p.opts, *p.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    """Files and headings that are linked exist."""
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


@by_document
def test_every_command_and_option_exists(document: Path) -> None:
    """A command line of a document is one that the program takes."""
    for block in blocks(document, "sh"):
        for words in commands_in(block):
            assert words[0] in COMMANDS or words[0].startswith("--"), words
            given = {w.partition("=")[0] for w in words if re.fullmatch(r"--?[a-z][^ ]*", w)}
            assert given <= options_of(words), words


@by_document
def test_every_option_named_in_the_text_exists(document: Path) -> None:
    """`--option` in prose is an option of some command, or one that is named as the engine's."""
    known = {flag for name in COMMANDS for flag in options_of([name])} | options_of(["--help"])
    for engine in (SOURCE / "engines").rglob("*.py"):
        known |= set(engine.read_text().split('"'))
    for flags in (ROOT / "tests/engines").glob("*-flags.json"):
        known |= json.loads(flags.read_text()).keys()
    known |= {"--lora-modules", "--no-enable-chunked-prefill", "--max-modellen"}
    known |= {"--ipc", "--shm-size"}  # docker's
    for facade in (SOURCE / "facades/nemo").glob("*.py"):  # the launcher's own options
        known |= set(re.findall(r"--[a-z][a-z-]+", facade.read_text()))
    for command in ("run", "convert", "export", "ls runs"):
        known |= options_of(["launch", *command.split()])
    prose = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    if document.name == "coming-from.md":  # its first columns have other projects' options
        prose = re.sub(r"^\|.*? \| ", "", prose, flags=re.MULTILINE)
    for flag in re.findall(r"`(?:[^`\n]* )?(--[a-z][a-z-]+)", prose):
        assert flag in known, flag


LAUNCH_SECTIONS = {"deployment", "env_vars", "evaluation", "execution", "export", "target"}


def accept_launch(values: dict[str, Any], file: Path) -> None:
    """A launch file, or sections of one, which are then part of a small one."""
    if "defaults" not in values:
        kind = values.get("execution", {}).get("type", "local")
        small = {
            "defaults": [{"execution": kind}, {"deployment": "vllm"}, "_self_"],
            "execution": {"output_dir": "jobs"},
            "deployment": {"checkpoint_path": "model"},
            "evaluation": {"tasks": [{"name": "ifeval"}]},
        }
        values = merged(small, values)
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    plan_launch(read_launch(file))


def kind_of(values: dict[str, Any]) -> type[StrictModel]:
    """The configuration that a YAML example is meant for."""
    if {"default_provider", "team_a", "teams"} & values.keys():
        return ExperimentConfig
    if "margin" in values:
        return Policy
    return EvaluationConfig if "tasks" in values else ServeConfig


@by_document
def test_every_yaml_example_is_accepted(document: Path, tmp_path: Path) -> None:
    """Keys and values of the examples are right."""
    for block in blocks(document, "yaml"):
        values = yaml.safe_load(block)
        if "prompt" in values:
            assert Definition.model_validate(values).prompt == values["prompt"]
        elif LAUNCH_SECTIONS & values.keys():
            accept_launch(values, tmp_path / "launch.yaml")
        else:
            parsed = parse(kind_of(values), values, origin=str(document))
            assert parsed.model_dump(exclude_unset=True).keys() >= values.keys()


@pytest.mark.slow
@by_document
def test_every_python_example_compiles_and_imports_what_exists(document: Path) -> None:
    """Top-level imports of an example work, names taken from a module exist."""
    for block in blocks(document, "python"):
        tree = ast.parse(block)
        imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        found: dict[str, Any] = {}
        exec(compile(ast.Module(imports, []), str(document), "exec"), found)
        named = {(a.asname or a.name).partition(".")[0] for n in imports for a in n.names}
        assert named - {"annotations"} <= found.keys()


def test_the_smallest_task_of_the_documents_works() -> None:
    """The class in tasks.md loads, asks and scores."""
    code = next(b for b in blocks(ROOT / "docs/tasks.md", "python") if "class Doubling" in b)
    names: dict[str, Any] = {"__name__": "doubling"}
    exec(compile(code, "tasks.md", "exec", dont_inherit=True), names)
    task = names["Doubling"]()
    item = task.load(data=None, seed=0).items[20]
    assert "21" in task.ask(item).prompt.messages[0].content
    outcomes = [task.score_text(item, text).outcome for text in ("42.", "43", "forty-two")]
    assert outcomes == ["correct", "wrong", "unparsable"]


async def test_the_metric_of_the_documents_works(tmp_path: Path) -> None:
    """The task with a function as its metric loads and scores."""
    document = ROOT / "docs/tasks.md"
    (tmp_path / "judge.py").write_text(
        next(b for b in blocks(document, "python") if "at_most_five" in b)
    )
    file = tmp_path / "short.yaml"
    file.write_text(next(b for b in blocks(document, "yaml") if "at_most_five" in b))
    (tmp_path / "short.jsonl").write_text('{"wish": "What is water?"}\n')
    task = load_task(str(file))
    (item,) = task.load(data=None, seed=0).items
    calls = [task.score_text(item, text) for text in ("Wet.", "It is a liquid without taste", " ")]
    processes = ScoringProcesses()
    scores = [await processes.score(call) for call in calls]
    await processes.close()
    assert [score.outcome for score in scores] == ["correct", "wrong", "unparsable"]


def test_the_example_task_is_the_one_in_the_documents() -> None:
    """tasks.md shows examples/capitals.yaml as it is, and it loads, asks and scores."""
    file = ROOT / "examples/capitals.yaml"
    shown = next(b for b in blocks(ROOT / "docs/tasks.md", "yaml") if "capitals" in b)
    assert file.read_text().endswith(shown)
    task = load_task(str(file))
    items = {item.id: item for item in task.load(data=None, seed=0).items}
    assert task.ask(items["Japan"]).prompt.messages[-1].content == "What is the capital of Japan?"  # type: ignore[union-attr]
    assert task.score_text(items["Japan"], "Tokyo.").outcome == "correct"
    assert task.score_text(items["Japan"], "Kyoto.").outcome == "wrong"


@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/*.yaml")), ids=lambda path: path.name)
def test_every_example_file_is_accepted(file: Path) -> None:
    """No example has a key that does not exist."""
    values = yaml.safe_load(file.read_text())
    if "prompt" in values:
        assert load_task(str(file)).info.name == values["name"]
    elif LAUNCH_SECTIONS & values.keys():
        plan_launch(read_launch(file))
    else:
        config = parse(kind_of(values), values, origin=str(file))
        if isinstance(config, ExperimentConfig):
            assert plan_experiment(config, origin=str(file)).spec.matches == config.num_games


@pytest.mark.slow
def test_what_is_generated_is_up_to_date() -> None:
    """`make docs` would change nothing."""
    tool = ROOT / "tools/write_reference.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_drift_is_found(tmp_path: Path) -> None:
    """A generated document that somebody edited makes --check fail and say where."""
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("engines.md", "errors.md", "reference.md"):
        text = (ROOT / "docs" / name).read_text()
        (docs / name).write_text(text.replace("| 9 |", "| 10 |").replace("`--limit", "`--limits"))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "write_reference.py").write_text((ROOT / "tools/write_reference.py").read_text())
    done = subprocess.run(
        [sys.executable, str(tools / "write_reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "errors.md is out of date" in done.stderr
    assert "reference.md is out of date" in done.stderr


def error_classes(cls: type[errors.EnginehouseError]) -> Iterator[type[errors.EnginehouseError]]:
    """A class and all below it."""
    yield cls
    for child in cls.__subclasses__():
        yield from error_classes(child)


def test_the_exit_codes_are_those_of_the_code() -> None:
    """Each class is in the row of its code, and no row has a code that nothing ends with."""
    text = (ROOT / "docs/errors.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]*) \|$", text, re.MULTILINE))
    classes = {c for c in error_classes(errors.EnginehouseError) if c.__module__ == errors.__name__}
    for cls in classes:
        assert f"`{cls.__name__}`" in rows[str(cls.exit_code)]
    without_class = {"0", "130", "143"}
    assert set(rows) == {str(c.exit_code) for c in classes} | without_class


def test_every_error_has_its_paragraph() -> None:
    """The catalogue says for each class what to do, and has no class that is gone."""
    text = (ROOT / "docs/errors.md").read_text().partition("## What to do")[2]
    named = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    classes = [
        c.__name__
        for c in error_classes(errors.EnginehouseError)
        if c.__module__ == errors.__name__ and c is not errors.EnginehouseError
    ]
    assert sorted(named) == sorted(classes)


def test_every_task_is_explained() -> None:
    """tasks.md has a row for each task of the registry."""
    text = (ROOT / "docs/tasks.md").read_text()
    for task in list_tasks():
        assert f"| `{task.name}` |" in text, task.name


def test_every_environment_variable_of_ours_is_listed() -> None:
    """What the code reads from the environment stands in the reference."""
    listed = set(
        re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    )
    read: set[str] = set()
    for file in SOURCE.rglob("*.py"):
        if file.is_relative_to(SOURCE / "testing"):
            continue
        text = file.read_text()
        read |= set(re.findall(r"(?<![A-Z_])(?:ENGINEHOUSE|GRAIL)_[A-Z]+(?:_[A-Z]+)*", text))
        read |= set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", text))
    for engine in (ENGINES.load(name)() for name in ENGINES.names()):
        if isinstance(engine, RemoteEngine):
            read |= {*engine.url_variables, *engine.key_variables}
    assert read - {"PATH"} <= listed


def test_a_runs_files_are_listed(tmp_path: Path) -> None:
    """A run's folder has no file that the reference does not explain."""
    layout = Layout(cache=tmp_path, state=tmp_path, config=tmp_path)
    run = create_run(layout, model="m", tasks=["t"], config="", versions={})
    with run.hold():
        run.write_report(b"{}")
        run.journal_path.touch()
        found = {path.name for path in run.folder.iterdir()}
    listed = re.findall(
        r"^\| `([a-z.]+)` \|", (ROOT / "docs/reference.md").read_text(), re.MULTILINE
    )
    assert found <= set(listed)


def test_the_readmes_tree_is_the_tree() -> None:
    """Every room and top folder of the README exists, and every room is in it."""
    tree = next(b for b in blocks(ROOT / "README.md", "text") if b.startswith("src/enginehouse/"))
    names = re.findall(r"^(  )?([\w/]+)/ ", tree, re.MULTILINE)
    rooms = {name for indent, name in names if indent}
    tops = {name for indent, name in names if not indent}
    folders = {p.name for p in SOURCE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert rooms == folders
    for name in tops:
        assert (ROOT / name).is_dir(), name
    for file in re.findall(r"\b\w+\.py\b", tree):
        assert list(ROOT.glob(f"*/{file}")), file


def test_the_makes_targets_exist() -> None:
    """`make X` in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text()
        lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
        for called in (*re.findall(r"`(make [a-z -]+)`", text), *lines):
            if called.startswith("make "):
                assert set(called.partition("#")[0].split()[1:]) <= targets, called
