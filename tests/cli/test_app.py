"""The table of commands: help, version, completion."""

from __future__ import annotations

import subprocess
import sys

import pytest

from enginehouse.cli.app import COMMANDS
from enginehouse.engines.options import ServerOptions


@pytest.mark.parametrize("words", [("--help",), ()], ids=["help", "nothing"])
def test_help_lists_every_command(call, words: tuple[str, ...]):
    """`--help`, and no command at all, list the commands with their help."""
    done = call(*words)
    for name, entry in COMMANDS.items():
        assert f"  {name} " in done.out + done.err
        assert entry.help.split()[0] in done.out + done.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(call, name: str):
    """`COMMAND --help` says what it does; of eval and serve, every server option."""
    done = call(name, "--help")
    assert done.code == 0
    assert f"Usage: enginehouse {name}" in done.out
    if name in ("eval", "serve"):
        options = [option.replace("_", "-") for option in ServerOptions.model_fields]
        options[options.index("env-vars")] = "env NAME=VALUE;"
        options[options.index("env-names")] = "env NAME "
        shown = " ".join(done.out.split())
        assert [option for option in options if f"--{option}" not in shown] == []


def test_version(call):
    """The installed version."""
    from importlib.metadata import version

    assert call("--version").out == f"enginehouse {version('enginehouse')}\n"


def test_help_imports_no_engine_room():
    """--help is quick because it imports no command."""
    code = (
        "import sys; sys.argv = ['enginehouse', '--help']\n"
        "from enginehouse.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'aiohttp', 'pydantic', 'numpy', 'scipy', 'jinja2', 'enginehouse.deployment'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.stderr == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "offered"), [("ev", "eval"), ("eval --max-mod", "--max-model-len")]
)
def test_the_shell_completes(house, typed: str, offered: str):
    """Commands and options are completed by bash."""
    words = f"enginehouse {typed}"
    env = {"_ENGINEHOUSE_COMPLETE": "complete_bash", "COMP_WORDS": words}
    env["COMP_CWORD"] = str(len(words.split()) - 1)
    assert offered in house.run(**env).out.split()
