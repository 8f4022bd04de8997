import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.launch_files import launch_file

from enginehouse.facades.nemo.__main__ import main

USUAL = "--include iter_* --include step_* --ready-marker metadata.json --ready-marker config.yaml"
OTHERS = "--checkpoint-patterns epoch_* --ready-markers done"


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
        ("kill aefc48.0 aefc48.1 b1", "launch kill aefc48\nlaunch kill b1"),
        ("info a1 b1 --copy-logs", "launch info a1\nlaunch info b1"),
        ("logs a1 b1", "launch logs --follow a1\nlaunch logs --follow b1"),
        (
            "watch --config e.yaml --watch-dir out -o a.b=c",
            f"watch out --launch e.yaml --interval 300 {USUAL} --order last -o a.b=c",
        ),
        (
            f"watch --config e.yaml --watch-dir out --once --order oldest {OTHERS}",
            "watch out --launch e.yaml --once --include epoch_* --ready-marker done --order first",
        ),
        ("resume aefc48", "launch resume aefc48"),
        ("ls", "launch ls tasks"),
        ("ls tasks --json", "launch ls tasks --json"),
        ("ls runs", "launch ls runs"),
        (
            "ls runs --limit 3 --since 2d --executor slurm",
            "launch ls runs --executor slurm --since 2d --limit 3",
        ),
        ("export a b --dest mlflow", "launch export a b --to mlflow"),
        (
            "export a --format csv --output-dir d",
            "launch export a --to local -o format=csv -o output_dir=d",
        ),
        ("export a", "launch export a --to local -o output_dir=."),
        (
            "export a --config e.yaml --dest wandb --copy-logs -o project=p",
            "launch export a --to wandb --config e.yaml -o copy_logs=true -o project=p",
        ),
        (
            "export a --config e.yaml --log-metrics acc f1",
            'launch export a --to local --config e.yaml -o log_metrics=["acc", "f1"]',
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


NEL_WATCH = """
cluster_config: {hostname: login, username: me, account: a, partition: batch, sbtch_flags: {qos: q}}
monitoring_config: {directories: [/out/a, /out/b], interval: null, checkpoint_patterns: [step_*]}
evaluation_configs: [one.yaml]
"""


def test_a_file_of_nel_watch(capsys: pytest.CaptureFixture[str]):
    """A watch for each of its folders, on its cluster."""
    Path("watch.yaml").write_text(NEL_WATCH)
    first, second = translated(capsys, "watch", "--config", "watch.yaml").splitlines()
    assert first == (
        "watch /out/a --launch one.yaml --once --include step_* --ready-marker metadata.json "
        "--ready-marker config.yaml --ready-marker config.json --order last "
        "-o ++execution.username=me -o ++execution.hostname=login -o ++execution.account=a "
        "-o ++execution.partition=batch -o ++execution.sbatch_extra_flags.qos=q"
    )
    assert second.startswith("watch /out/b")
    spaced = NEL_WATCH.replace("account: a", "account: 'it''s, mine'")
    Path("spaced.yaml").write_text(spaced)
    words = translated(capsys, "watch", "--config", "spaced.yaml")
    assert r"-o ++execution.account='it\'s, mine'" in words
    words = ("watch", "--config", "two.yaml", "--watch-config", "watch.yaml")
    assert "--launch two.yaml" in translated(capsys, *words)


@pytest.mark.parametrize(
    "more",
    [
        "conversion_config: {container: c}",
        "monitoring_config: {directories: ['me@host:/out']}",
        "monitoring_config: {directories: []}",
        "cluster: {}",
    ],
)
def test_a_file_of_nel_watch_that_cannot_be_followed(capsys: pytest.CaptureFixture[str], more: str):
    """It is refused with what to do."""
    name = more.partition(":")[0]
    kept = [line for line in NEL_WATCH.splitlines() if not line.startswith(name)]
    Path("watch.yaml").write_text("\n".join([*kept, more]))
    with pytest.raises(SystemExit) as caught:
        main(["watch", "--config", "watch.yaml"])
    assert caught.value.code == 2
    assert "next:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "run",
        "watch --config a.yaml --watch-dir d -n",
        "watch --config a.yaml --watch-dir d --tmux",
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


@pytest.mark.slow
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
