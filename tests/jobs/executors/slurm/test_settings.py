"""What an `execution` section for Slurm may say."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from enginehouse.core.errors import ConfigurationError
from enginehouse.jobs.executors.slurm.settings import SlurmSettings


def settings(**values: object) -> SlurmSettings:
    """The settings of a section."""
    return SlurmSettings.model_validate({"output_dir": "/jobs", **values})


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("02:30:00", 9000), ("1-00:00:00", 86400), ("120:00:00", 432000), (5400, 5400)],
)
def test_times(written, seconds):
    """YAML reads an unquoted 1:30:00 as 5400."""
    assert settings(walltime=written).walltime == seconds


@pytest.mark.parametrize("written", ["30", "1:2", "two hours", 30, "00:00:10", 0])
def test_times_that_may_mean_two_things_are_refused(written):
    """A plain 30 is minutes for Slurm, and seconds for others."""
    with pytest.raises(ValidationError):
        settings(walltime=written)


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({"gres": "gpu:8"}, 8),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:h100:4"}, 4),
        ({"gres": "gpu:a100-80g:4,lustre:1"}, 4),
        ({"gpus_per_node": 2}, 2),
        ({}, 1),
    ],
)
def test_gpus(given, gpus):
    """Those that are asked for, or else those that are needed."""
    assert settings(**given).resources(gpus=1).gpus_per_node == gpus


def test_gpus_that_do_not_multiply_out():
    """More than are asked for, or not the same on each node."""
    with pytest.raises(ConfigurationError):
        settings(gres="gpu:4", num_nodes=2).resources(gpus=16)
    with pytest.raises(ConfigurationError):
        settings(num_nodes=2).resources(gpus=3)
    assert settings(gres="gpu:4", num_nodes=2).resources(gpus=8).nodes == 2
    assert settings(num_nodes=2).resources(gpus=8).gpus_per_node == 4


def test_no_gpus_are_asked_for_on_a_cluster_without_any():
    """An engine may run on CPUs."""
    assert settings(gpus_per_node=0).resources(gpus=1).gpus_per_node == 0


@pytest.mark.parametrize(
    "given",
    [
        {"sbatch_extra_flags": {"output": "/elsewhere"}},
        {"sbatch_extra_flags": {"--dependency": "afterok:1"}},
        {"sbatch_extra_flags": {"qos": "a\n#SBATCH --wrap=x"}},
        {"partition": "a b"},
        {"account": "a\n#SBATCH --wrap=x"},
        {"sbatch_comment": "a\n#SBATCH --wrap=x"},
        {"output_dir": '/jobs"'},
        {"hostname": "login", "output_dir": "jobs"},
        {"walltime": "02:00:00", "max_walltime": "01:00:00"},
        {"hostname": "-oProxyCommand=evil"},
    ],
)
def test_what_would_break_a_script_is_refused(given):
    """Before anything is submitted."""
    with pytest.raises(ValidationError):
        settings(**given)


def test_jobs_of_one_login_node_are_in_one_place():
    """They are asked for at once."""
    assert settings(hostname="login", partition="a").place == settings(hostname="login").place
    assert settings(hostname="login").place != settings(hostname="login", username="me").place
    assert settings(hostname="login").command_words == ("enginehouse",)


def test_mounts_without_a_container_are_named():
    """They belong to the original's containers."""
    mounts = {"deployment": {"/cache": "/root/.cache"}}
    assert set(settings(mounts=mounts).without_effect) == {"mounts"}
    assert settings(mounts=mounts, image="me/image:1").without_effect == {}
    assert settings().without_effect == {}
