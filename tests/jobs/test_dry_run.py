"""What a dry run says beyond the plan: refusals, and whether the model fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.launch_files import launch_file

from enginehouse.core.errors import ConfigurationError
from enginehouse.jobs.dry_run import DryRun, Fit, dry_run
from enginehouse.jobs.launch import launch
from enginehouse.jobs.launch_file import read_launch
from enginehouse.jobs.launch_report import fit_in_words, launch_lines
from enginehouse.jobs.plan import plan_launch
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

TASKS = "evaluation: {tasks: [{name: gsm8k_cot_instruct}, {name: ifeval}]}\n"
DEPLOYED = "deployment: {checkpoint_path: model, tensor_parallel_size: 1}\n"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def shown(folder: Path, sections: str, *overrides: str, deployment: str = "vllm") -> DryRun:
    """The dry run of a small launch file with these sections."""
    path = launch_file(folder, sections=sections, deployment=deployment)
    return dry_run(plan_launch(read_launch(path, overrides=overrides)), Context())


UNSET = DEPLOYED + TASKS + "env_vars: {HF_TOKEN: host:FIRST_UNSET, OTHER_KEY: host:SECOND_UNSET}\n"
UNSET_KEY = TASKS + (
    "target: {api_endpoint: {url: 'http://127.0.0.1:1/v1', model_id: a, api_key_name: UNSET_KEY}}\n"
)


@pytest.mark.parametrize(
    ("sections", "deployment", "names"),
    [
        (UNSET, "vllm", ("FIRST_UNSET", "SECOND_UNSET")),
        (UNSET_KEY, "none", ("UNSET_KEY",)),
    ],
)
async def test_unset_variables(
    tmp_path: Path, layout: Layout, sections: str, deployment: str, names: tuple[str, ...]
):
    """All are named, as at the launch, which is refused."""
    refusals = shown(tmp_path, sections, deployment=deployment).refusals
    plan = plan_launch(read_launch(tmp_path / "launch.yaml"))
    with pytest.raises(ConfigurationError) as caught:
        await launch(plan, Context(layout=layout))

    assert str(caught.value) in refusals
    assert all(name in str(caught.value) for name in names)


LEPTON = """
execution:
  type: lepton
  output_dir: jobs
  evaluation_tasks: {resource_shape: cpu.small}
  lepton_platform: {tasks: {mounts: [{path: /here, mount_path: /workspace}]}}
"""
KUBERNETES = """
execution:
  type: kubernetes
  output_dir: /results/jobs
  volumes: {/results: {claim: shared}}
"""
RAY = "execution: {type: ray, output_dir: /jobs}\n"
ENDPOINT = "target: {api_endpoint: {url: 'http://127.0.0.1:1/v1', model_id: a}}\n"


@pytest.mark.parametrize(
    ("execution", "advice"),
    [
        (LEPTON, "execution.image"),
        (KUBERNETES, "execution.image"),
        (RAY, "execution.address"),
    ],
)
def test_settings_that_submit_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, execution: str, advice: str
):
    """Executors that need nothing but their settings to know that say it before the launch."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "launch.yaml"
    path.write_text("defaults: [{deployment: none}, _self_]\n" + execution + ENDPOINT + TASKS)
    (refusal,) = dry_run(plan_launch(read_launch(path)), Context()).refusals

    assert advice in refusal


def test_tasks_that_run_under_another_name(tmp_path: Path):
    """The launch says which prompt and scorer each of them is, and nothing about the others."""
    path = launch_file(tmp_path, sections=DEPLOYED + TASKS)
    (line,) = [one for one in launch_lines(plan_launch(read_launch(path))) if "task: " in one]

    assert line.startswith("task: gsm8k_cot_instruct -> gsm8k: our own task gsm8k: ")
    assert "no examples there, four here" in line


def fit(
    *, available: int | None, cache_per_token: int | None = 131_072, executor: str = "local"
) -> Fit:
    """16 GB of weights on a GPU."""
    return Fit(
        weights=16_000_000_000,
        cache_per_token=cache_per_token,
        available=available,
        executor=executor,
        source="the hub",
    )


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (None, "the model's size is unknown"),
        (fit(available=72_000_000_000), "fits into 72.0 GB with up to 427,246 tokens"),
        (fit(available=15_000_000_000), "does not fit into 15.0 GB"),
        (fit(available=72_000_000_000, cache_per_token=None), "of weights on each GPU (the hub)"),
        (
            fit(available=None, executor="slurm"),
            "not known for the executor slurm: each needs more than 20.3 GB for 32,768 tokens",
        ),
        (
            fit(available=None, executor="lepton", cache_per_token=None),
            "not known for the executor lepton: each needs more than 16.0 GB",
        ),
    ],
)
def test_whether_the_model_fits(estimate: Fit | None, words: str):
    """Every answer is a sentence."""
    assert words in fit_in_words(estimate)


def test_every_refusal_is_said(tmp_path: Path):
    """One does not hide the others."""
    refusals = shown(tmp_path, UNSET, "deployment.tensor_parallel_size=64").refusals

    assert [("FIRST_UNSET" in text, "64 GPUs" in text) for text in refusals] == [
        (True, False),
        (False, True),
    ]
