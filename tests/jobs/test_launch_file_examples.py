"""The launcher's own examples, as users have them, are read as they are."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest
from tests.support.launch_files import SEED_EXAMPLE
from typer.testing import CliRunner

from enginehouse.cli.app import build_app
from enginehouse.core.errors import ConfigurationError
from enginehouse.jobs.configuration import LaunchConfig
from enginehouse.jobs.conversion import convert
from enginehouse.jobs.evaluation_plan import plan_evaluation
from enginehouse.jobs.launch_file import read_launch

FOLDER = next(
    (
        folder
        for parent in Path(__file__).parents
        if (folder := parent / "shared/data/nemo_yaml").is_dir()
    ),
    None,
)
pytestmark = pytest.mark.skipif(FOLDER is None, reason="shared/data/nemo_yaml is not here")
HERE = FOLDER or Path()
SLURM = {"execution.hostname": "localhost", "execution.account": "a", "execution.output_dir": "/o"}
MANDATORY = {
    "lepton_vllm": {},
    "lepton_vllm_llama_3_1_8b_instruct": {},
    "local_basic": {},
    "local_vllm_logprobs": {},
    "slurm_llama_3_1_8b_instruct": SLURM | {"deployment.checkpoint_path": "/c"},
    "slurm_llama_3_1_8b_instruct_hf": SLURM,
    "slurm_vllm_advanced_hf_caching": SLURM,
    "slurm_vllm_auxiliary_judge": SLURM,
    "slurm_vllm_basic": SLURM,
    "slurm_vllm_multinode_dp_haproxy": SLURM,
    "slurm_vllm_multinode_ray_tp_pp": SLURM,
}
"""What each file marks as mandatory, with a value."""
WITHOUT_EFFECT = {
    "lepton_vllm": {"execution.lepton_platform.tasks.api_tokens"},
    "slurm_vllm_auxiliary_judge": {
        "evaluation.nemo_evaluator_config.config.params.extra.judge.backend",
        "execution.mounts",
    },
}
"""Keys of some files that a dry run must list, as they cannot be acted on."""


@pytest.fixture(autouse=True)
def _user(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("USER", "me")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; the hub is not asked."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def read(name: str) -> LaunchConfig:
    """A file, given what it marks as mandatory."""
    overrides = [f"{key}={value}" for key, value in MANDATORY[name].items()]
    return read_launch(HERE / f"{name}.yaml", overrides=overrides)


def test_every_file_is_here():
    """None is forgotten."""
    assert {path.stem for path in HERE.glob("*.yaml")} == set(MANDATORY)


@pytest.mark.parametrize("name", sorted(MANDATORY))
def test_a_file_is_read_and_planned(name: str):
    """Every key is acted on, or listed with a reason."""
    config = read(name)
    planned = plan_evaluation(config, folder=PurePosixPath("/job"))

    assert len(planned.tasks) == len(config.evaluation.tasks)
    assert all(config.not_acted_on.values())
    assert config.execution.type == name.partition("_")[0]


def dry_run(path: Path, overrides: Sequence[str] = ()) -> str:
    """What `enginehouse launch run --dry-run` prints, run in this process."""
    words = ["launch", "run", "--config", str(path), "--dry-run"]
    for override in overrides:
        words += ["-o", override]
    result = CliRunner().invoke(build_app(words), words)
    assert result.exit_code == 0, result.exception or result.output
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MANDATORY))
def test_a_dry_run_of_a_file(name: str, offline: Path):
    """It succeeds, names every task, lists what has no effect, and writes nothing."""
    given = [f"{key}={value}" for key, value in MANDATORY[name].items()]
    shown = dry_run(HERE / f"{name}.yaml", given)

    config = read(name)
    assert all(f"\n{task.name} -> " in shown for task in config.evaluation.tasks)
    for key in config.not_acted_on.keys() | WITHOUT_EFFECT.get(name, set()):
        assert f"without effect: {key}: " in shown
    assert not list(offline.iterdir())


def test_a_dry_run_of_the_complete_example(tmp_path: Path, offline: Path):
    """The one of the launcher's page on vLLM."""
    path = tmp_path / "launch.yaml"
    path.write_text(SEED_EXAMPLE)
    shown = dry_run(path)

    assert "GPUs: 8 needed, 8 asked for" in shown
    assert "without effect: deployment.image: " in shown
    assert not list(offline.iterdir())


@pytest.mark.parametrize("name", sorted(name for name, given in MANDATORY.items() if given))
def test_what_is_mandatory_is_named_at_once(name: str):
    """With the option that gives it."""
    with pytest.raises(ConfigurationError) as caught:
        read_launch(HERE / f"{name}.yaml")

    assert all(f"-o {key}=…" in str(caught.value.fix) for key in MANDATORY[name])


def test_the_literal_token_is_named_with_its_line():
    """And is not shown."""
    config = read("slurm_llama_3_1_8b_instruct_hf")

    assert any("line 46" in note for note in config.notes)
    assert "hf_your_token" not in f"{config.values} {config.notes}"


def test_the_judge_has_what_its_group_says():
    """But for what the file overrides."""
    config = read("slurm_vllm_auxiliary_judge")
    judge = config.auxiliary_deployments["judge"]

    assert (judge.port, judge.tensor_parallel_size, judge.num_nodes) == (8001, 8, 1)
    assert config.auxiliary_variables["judge"].environment().secrets == {"HF_TOKEN"}


def test_data_parallel_on_each_node_is_counted():
    """Eight GPUs of each of two nodes."""
    assert read("slurm_vllm_multinode_dp_haproxy").deployment.gpus == 8


@pytest.mark.parametrize("name", ["01_gsm8k_chat", "15_slurm_gsm8k_vllm"])
def test_files_of_the_rewritten_launcher_are_converted(tmp_path: Path, name: str):
    """To files that are read."""
    path = tmp_path / "launch.yaml"
    conversion = convert(HERE / "main" / f"{name}.yaml")
    path.write_text(conversion.text)
    config = read_launch(path, overrides=["execution.output_dir=/o"])

    assert not conversion.left_out
    assert [task.name for task in config.evaluation.tasks] == ["gsm8k"]
