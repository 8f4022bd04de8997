"""The executors by name, with the class of their settings."""

from __future__ import annotations

from enginehouse.core.registry import Registry

# "module:Class" of an executor, which is made as Executor(settings, context). The class names its
# settings as `settings_class`.
EXECUTORS = Registry(
    "executor",
    {
        "kubernetes": "enginehouse.jobs.executors.kubernetes.executor:KubernetesExecutor",
        "lepton": "enginehouse.jobs.executors.lepton.executor:LeptonExecutor",
        "local": "enginehouse.jobs.executors.local:LocalExecutor",
        "docker": "enginehouse.jobs.executors.docker.executor:DockerExecutor",
        "ray": "enginehouse.jobs.executors.ray.executor:RayExecutor",
        "slurm": "enginehouse.jobs.executors.slurm.executor:SlurmExecutor",
    },
    group="enginehouse.executors",
)
