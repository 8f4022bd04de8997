import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.launch_files import launch_file

from enginehouse.facades.nemo.__main__ import main


def translated(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The arguments of `enginehouse` for a command of the launcher."""
    main(["--print-command", *words])
    return capsys.readouterr().out.strip()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("run --config a.yaml", "launch run --config a.yaml"),
        (
            "run --config-dir d --config-name n -o a=b -o +c.d=e --dry-run",
            "launch run --config d/n.yaml -o a=b -o +c.d=e --dry-run",
        ),
        ("run --config-name n.yaml -n", "launch run --config n.yaml --dry-run"),
        ("run --config a.yaml -t x -t y.1", "launch run --config a.yaml --task x --task y.1"),
        ("run --config a.yaml --env-file f", "launch run --config a.yaml --env-file f"),
        ("run --config a.yaml --config-mode raw", "launch run --config a.yaml"),
        ("status", "launch status"),
        ("status aefc48 aefc49.0 --json", "launch status aefc48 aefc49 --json"),
        ("logs aefc48", "launch logs --follow aefc48"),
        ("info aefc48.1", "launch info aefc48"),
        ("kill aefc48.1", "launch kill aefc48"),
        ("resume aefc48", "launch resume aefc48"),
        ("ls", "launch ls tasks"),
        ("ls tasks --json", "launch ls tasks --json"),
        ("ls runs", "launch ls runs"),
        ("export a b --dest mlflow", "launch export a b --to mlflow"),
        (
            "export a --format csv --output-dir d",
            "launch export a --to csv --out d/processed_results.csv",
        ),
        ("--version", "--version"),
    ],
)
def test_commands_of_the_launcher_are_commands_of_launch(
    capsys: pytest.CaptureFixture[str], given: str, expected: str
):
    """With the launcher's own spellings."""
    assert translated(capsys, *given.split()) == expected


def test_a_file_of_variables_in_the_current_folder_is_used(capsys: pytest.CaptureFixture[str]):
    """As the launcher does."""
    Path(".env").write_text("A=1\n")

    assert translated(capsys, "run", "--config", "a.yaml").endswith("--env-file .env")


@pytest.mark.parametrize(
    "words",
    [
        "run",
        "run --config a.yaml --config-name b",
        "run --config-dir d",
        "run --config a.yaml --config-mode raw -o a=b",
        "kill",
        "migrate",
    ],
)
def test_what_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], words: str):
    """With the exit code of wrong options."""
    with pytest.raises(SystemExit) as caught:
        main(words.split())

    assert caught.value.code == 2
    assert capsys.readouterr().err


def test_the_command_is_run(tmp_path: Path):
    """The process becomes it, with its exit code."""
    path = launch_file(
        tmp_path,
        sections="target: {api_endpoint: {url: 'http://127.0.0.1:1/v1', model_id: m}}\n"
        "evaluation: {tasks: [{name: gsm8k}]}\n",
        deployment="none",
    )
    words = [sys.executable, "-m", "enginehouse.facades.nemo", "run", "--config", str(path), "-n"]
    env = os.environ | {"ENGINEHOUSE_HOME": str(tmp_path / "home")}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    refused = subprocess.run(
        [*words, "-o", "evaluation.tsks=1"], capture_output=True, text=True, check=False, env=env
    )

    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:1/v1" in done.stdout
    assert refused.returncode == 2
    assert "'tasks'" in refused.stderr
    assert not (tmp_path / "home").exists()
