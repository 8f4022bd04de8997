"""The packages of docs/contributing, built from the pages themselves and used as the pages say."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.support.command_line import House

DOCS = Path(__file__).parents[2] / "docs/contributing"
VLLM_LOG = (
    "(EngineCore_DP0 pid=68) ERROR 02-06 16:34:06 [core.py:936] torch.OutOfMemoryError: "
    "CUDA out of memory. Tried to allocate 2.00 GiB.\n"
)
FILE = re.compile(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def page(name: str) -> str:
    """A page's text."""
    return (DOCS / name).read_text()


def install(name: str, site: Path) -> None:
    """What pip makes of the package on a page: its modules, and its metadata."""
    files = dict(FILE.findall(page(name)))
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    for file, text in files.items():
        path = site / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{entry} = {target}" for entry, target in entries.items())]
    register(site, project["name"], "\n".join(lines))


def register(site: Path, name: str, entry_points: str) -> None:
    """The metadata of an installed package."""
    information = site / f"{name.replace('-', '_')}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"{entry_points}\n")


@pytest.fixture
def site(house: House, tmp_path: Path) -> Path:
    """A folder of packages that this house's commands see."""
    folder = tmp_path / "site"
    folder.mkdir()
    house.env["PYTHONPATH"] += f":{folder}"
    return folder


@pytest.mark.slow
def test_a_toy_engine_and_a_toy_task(house: House, site: Path):
    """Listed, judged, served, evaluated and checked, with no other file touched."""
    install("adding-an-engine.md", site)
    install("adding-a-task.md", site)
    assert "toy" in house.run("engines").out.splitlines()[0].split()
    assert "capitals" in house.run("tasks").out
    assert "is not provisioned" in line(house.run("doctor").out, "engine toy")
    house.env["ENGINEHOUSE_TOY_PYTHON"] = sys.executable
    assert "ENGINEHOUSE_TOY_PYTHON" in line(house.run("doctor").out, "engine toy")

    model = str(house.model())
    served = house.run("serve", model, "--engine", "toy", "--name", "toy", "--detach")
    assert served.code == 0, served.err
    (url,) = re.findall(r"ready after \S+ s: (http://\S+)", served.err + served.out)
    done = house.run("check", url, "--conformance", "--json")  # the engine is in its record
    outcomes = {line["name"]: line["outcome"] for line in done.report["lines"]}
    assert (done.code, outcomes["greedy"], outcomes["adapter"]) == (0, "passed", "not supported")
    assert house.run("stop", "toy").code == 0

    answers = house.answers({"France": "Paris", "Italy": "Rome", "Spain": "", "Japan": "Kyoto"})
    done = house.run(
        *("eval", model, "--engine", "toy", "--task", "capitals", "--env", answers, "--json")
    )
    assert done.code == 0, done.err
    assert done.report["tasks"][0]["outcomes"]["correct"] == 2
    assert "letters" in done.report["tasks"][0]["metrics"]
    (shown,) = re.findall(r"^enginehouse (show RUN .*?) +#", page("adding-a-task.md"), re.MULTILINE)
    done = house.run(*shown.replace("RUN", done.report["run"]).split())
    assert done.code == 0, done.err
    assert "What is the capital of" in done.out


@pytest.mark.slow
def test_a_toy_engine_in_a_launch_file(house: House, site: Path):
    """Its flags are read as its class says, and it is what the job serves with."""
    install("adding-an-engine.md", site)
    path = house.write(
        "launch.yaml",
        "defaults: [execution: local, _self_]\n"
        "execution: {output_dir: results}\n"
        "deployment:\n"
        "  type: toy\n"
        f"  checkpoint_path: {house.model()}\n"
        "  extra_args: --port 8123 --max-num-seqs 4\n"
        "evaluation: {tasks: [{name: gsm8k}]}\n",
    )
    done = house.run("launch", "run", "--config", str(path), "--dry-run")
    assert done.code == 0, done.err
    assert "engine: toy" in done.out
    assert "port: 8123" in done.out
    assert "--max-num-seqs" in done.out


@pytest.mark.slow
def test_a_toy_game_keeps_its_promises(house: House, site: Path):
    """Made by its name from the package, and played by the page's own test."""
    install("adding-a-game.md", site)
    test = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_pennies.py")
    done = subprocess.run(
        test, check=False, env=house.env, cwd=site, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert "heads" in house.run("play", "--list").out
    done = house.run("play", str(site / "pennies.yaml"), "--json")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_a_game_that_lacks_a_method_is_named(house: House, site: Path):
    """With its package; the games of the tree are unaffected."""
    install("adding-a-game.md", site)
    module = site / "toy_game/pennies.py"
    module.write_text(module.read_text().replace("def welfare(", "def welfear("))
    code = (
        "from enginehouse.games.registry import list_games\n"
        "print([info.name for info in list_games(notify=print)])"
    )
    done = subprocess.run(
        (sys.executable, "-c", code), check=False, env=house.env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "the package toy-game lacks: welfare" in done.stdout
    assert "red_black" in done.stdout.splitlines()[-1]
    assert "pennies" not in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_logs_are_diagnosed_with_the_toy_installed(house: House, site: Path):
    """Its own by its own rules, others as before."""
    install("adding-an-engine.md", site)
    log = house.write("toy.log", "INFO the toy engine starts\ntoy engine: no such colour: green\n")
    done = house.run("diagnose", str(log), "--json")
    assert done.code == 0, done.err
    assert (done.report["engine"], done.report["kind"]) == ("toy", "wrong_value")
    assert "green" in done.report["cause"]
    log = house.write("vllm.log", VLLM_LOG)
    done = house.run("diagnose", str(log), "--json")
    assert (done.code, done.report["engine"]) == (0, "vllm")
    assert done.report["kind"] == "out_of_memory"


@pytest.mark.slow
@pytest.mark.parametrize("broken", [("(?P<colour>", "(?P<colour"), ("{colour}", "{color}")])
def test_a_profile_that_cannot_be_read_is_left_out(
    house: House, site: Path, broken: tuple[str, str]
):
    """With a line that names its package; the other engines' logs are still explained."""
    install("adding-an-engine.md", site)
    module = site / "toy_engine/engine.py"
    module.write_text(module.read_text().replace(*broken))
    done = house.run("diagnose", str(house.write("vllm.log", VLLM_LOG)), "--json")
    assert (done.code, done.report["engine"]) == (0, "vllm")
    assert "toy-engine" in done.err


@pytest.mark.slow
def test_a_forgotten_method_is_named(house: House, site: Path):
    """The engine is not taken for one that runs elsewhere."""
    install("adding-an-engine.md", site)
    module = site / "toy_engine/engine.py"
    module.write_text(module.read_text().replace("def check(", "def chekc("))
    assert "lacks: check" in house.run("engines").err
    done = house.run("doctor")
    assert "lacks: check" in " ".join(line(done.out, "engine toy").split())
    done = house.run("serve", "m", "--engine", "toy")
    assert (done.code, "lacks: check" in done.err) == (2, True)


@pytest.mark.slow
def test_an_engine_with_chat_alone_is_served(house: House, site: Path):
    """Asked for a token, and shown, by a chat."""
    install("adding-an-engine.md", site)
    house.env["ENGINEHOUSE_TOY_PYTHON"] = sys.executable
    module = site / "toy_engine/engine.py"
    module.write_text(module.read_text().replace("Capability.TEXT, ", ""))
    done = house.run("serve", str(house.model()), "--engine", "toy", "--name", "toy", "--detach")
    assert done.code == 0, done.err
    assert house.run("stop", "toy").code == 0
    assert "/v1/chat/completions" in done.out


@pytest.mark.slow
def test_a_wrong_flag_is_refused_before_the_start(house: House, site: Path):
    """By the flags that the describe payload read."""
    install("adding-an-engine.md", site)
    house.env["ENGINEHOUSE_TOY_PYTHON"] = sys.executable
    done = house.run(
        *("serve", str(house.model()), "--engine", "toy"),
        *("--extra-args", "--max-num-sequences 4"),
    )
    assert done.code == 2
    assert "--max-num-seqs" in done.err


@pytest.mark.slow
def test_an_exception_in_check_is_one_line(house: House, site: Path):
    """Which engine raised what, and where."""
    install("adding-an-engine.md", site)
    house.env["ENGINEHOUSE_TOY_PYTHON"] = sys.executable
    module = site / "toy_engine/engine.py"
    module.write_text(module.read_text().replace("extra = arguments.read", "raise ValueError()  #"))
    done = house.run("serve", str(house.model()), "--engine", "toy")
    assert (done.code, "Traceback" in done.err) == (2, False)
    assert "the engine toy raised ValueError in check (engine.py:" in done.err


@pytest.mark.slow
def test_a_built_in_name_cannot_be_overridden(house: House, site: Path):
    """The plug-in is not used, and doctor names its package."""
    register(site, "greedy-things", "[enginehouse.engines]\nvllm = no_such_module:Engine\n")
    assert "greedy-things" in line(house.run("doctor").out, "engine vllm")
    assert house.run("engines").code == 0


@pytest.mark.slow
def test_a_broken_plug_in_names_its_package(house: House, site: Path):
    """And the others go on working."""
    install("adding-a-task.md", site)
    register(
        site,
        "broken-things",
        "[enginehouse.engines]\nwreck = no_such_module:Engine\n"
        "[enginehouse.tasks]\nwreck = toy_task.capitals:NoSuchTask\n",
    )
    for command in ("engines", "tasks"):
        done = house.run(command)
        assert done.code == 0, done.err
        assert "broken-things" in done.err
    assert "capitals" in house.run("tasks").out
    assert "broken-things" in line(house.run("doctor").out, "engine wreck")
    done = house.run("eval", "m", "--engine", "wreck", "--task", "capitals")
    assert (done.code, "broken-things" in done.err) == (2, True)
    done = house.run("eval", "m", "--engine", "wrek", "--task", "capitals")
    assert (done.code, "wreck" in done.err) == (2, True)


def line(text: str, start: str) -> str:
    """What a command said about something, with the line below."""
    lines = text.splitlines()
    at = next(n for n, written in enumerate(lines) if start in written)
    return "\n".join(lines[at : at + 2])
