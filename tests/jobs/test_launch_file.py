from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.launch_files import SEED_EXAMPLE, AnyExecutor, launch_file

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.jobs.configuration import LaunchConfig
from enginehouse.jobs.executors.local import LocalExecutor
from enginehouse.jobs.executors.registry import EXECUTORS
from enginehouse.jobs.launch_file import read_launch
from enginehouse.jobs.plan import plan_launch

DEPLOYED = "deployment: {hf_model_handle: a/b}\n"
TASKS = "evaluation: {tasks: [{name: gsm8k}]}\n"


@pytest.fixture(autouse=True)
def _executors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(EXECUTORS, "load", lambda name: AnyExecutor)


def read(folder: Path, sections: str, *overrides: str, **kwargs: Any) -> LaunchConfig:
    """A small launch file with these sections."""
    return read_launch(launch_file(folder, sections=sections, **kwargs), overrides=overrides)


def test_the_complete_example_of_the_launchers_page(tmp_path: Path):
    """Its values arrive, and the image alone has no effect."""
    path = tmp_path / "launch.yaml"
    path.write_text(SEED_EXAMPLE)

    config = read_launch(path)

    assert config.name == "launch"
    assert config.execution.output_dir == "vllm_evaluation_results"
    assert config.deployment.model == "meta-llama/Llama-3.1-8B-Instruct"
    assert config.deployment.gpus == 8
    assert config.deployment.gpu_memory_utilization == 0.95
    assert config.deployment.extra_args == ("--max-model-len", "4096", "--enforce-eager")
    assert config.server_values == {
        "HF_HOME": "/cache/huggingface",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
    }
    assert [task.name for task in config.evaluation.tasks] == ["gpqa_diamond", "ifeval"]
    assert not config.notes
    assert set(config.not_acted_on) == {"deployment.image"}


@pytest.mark.parametrize(
    ("model", "main", "fallback"),
    [
        ("hf_model_handle: a/b", "a/b", None),
        ("checkpoint_path: /c", "/c", None),
        ("hf_model_handle: a/b, checkpoint_path: /c", "a/b", "/c"),
        ("hf_model_handle: null, checkpoint_path: /c", "/c", None),
    ],
)
def test_the_path_is_a_fallback(tmp_path: Path, model: str, main: str, fallback: str | None):
    """The handle is tried first where there are both."""
    deployment = read(tmp_path, f"deployment: {{{model}}}\n{TASKS}").deployment

    assert (deployment.model, deployment.fallback) == (main, fallback)


def test_no_model_is_an_error_of_its_own(tmp_path: Path):
    """It names both sources."""
    with pytest.raises(ConfigurationError, match=r"hf_model_handle.*checkpoint_path"):
        read(tmp_path, f"deployment: {{port: 1}}\n{TASKS}")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("deployment.tensor_paralel_size=2", "tensor_parallel_size"),
        ("evaluation.tasks.0.nam=x", "name"),
        ("evaluation.nemo_evaluator_config.config.params.temprature=1", "temperature"),
        ("evaluation.nemo_evaluator_config.config.params.extra.n_sample=1", "n_samples"),
        ("execution.output_dr=x", "output_dir"),
        ("+evalution={}", "evaluation"),
        ("+auxiliary_deployments.judge={type: vllm, hf_model_handle: a/b, prt: 1}", "port"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(tmp_path: Path, override: str, nearest: str):
    """Wherever they are."""
    with pytest.raises(ConfigurationError, match=f"'{nearest}'"):
        read(tmp_path, DEPLOYED + TASKS, override)


@pytest.mark.parametrize("kind", ["nim", "trtllm"])
@pytest.mark.parametrize("place", ["deployment", "auxiliary_deployments.judge"])
def test_types_that_are_not_served_here(tmp_path: Path, kind: str, place: str):
    """The advice is that for the group of this name, whatever the packaged group brings along."""
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, DEPLOYED + TASKS, f"{place}.type={kind}")

    assert f"{place}.type: {kind} " in str(caught.value)
    assert "deployment: none" in str(caught.value.fix)


def test_keys_without_effect_are_listed(tmp_path: Path):
    """Each with its path and a reason, and the rest is acted on."""
    config = read(
        tmp_path,
        DEPLOYED + "evaluation:\n  nemo_evaluator_config:\n    config:\n      params:\n"
        "        temperature: 0.5\n        extra: {n_samples: 2, downsampling_ratio: 5}\n"
        "    target: {api_endpoint: {adapter_config: {use_request_logging: true}}}\n"
        "  tasks: [{name: gsm8k, container: x}]\n",
    )
    general = "evaluation.nemo_evaluator_config"

    assert set(config.not_acted_on) == {
        f"{general}.config.params.extra.downsampling_ratio",
        f"{general}.target.api_endpoint.adapter_config.use_request_logging",
        "evaluation.tasks.0.container",
    }
    assert all(config.not_acted_on.values())
    assert config.evaluation.nemo_evaluator_config.params.extra.n_samples == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("deployment.image", "mine"),
        ("deployment.endpoints.health", "/ping"),
    ],
)
def test_an_override_without_effect_is_listed(tmp_path: Path, key: str, value: str):
    """What a packaged group says is not."""
    config = read(tmp_path, DEPLOYED + TASKS, deployment="vllm")
    assert not config.not_acted_on
    config = read(tmp_path, DEPLOYED + TASKS, f"{key}={value}", deployment="vllm")
    (listed,) = config.not_acted_on
    assert key.startswith(listed)


@pytest.mark.parametrize(
    ("sections", "listed"),
    [
        (
            "target: {api_endpoint: {model_id: m, api_key_name: SOME_KEY, adapter_config: {a: 1}}}",
            {"model_id", "api_key_name", "adapter_config"},
        ),
        (
            "evaluation: {nemo_evaluator_config: {target: {api_endpoint: {url: u, model_id: m}}}}",
            {"url", "model_id"},
        ),
        (
            "deployment: {type: hf, distributed_executor_backend: ray}",
            {"distributed_executor_backend"},
        ),
        (
            "deployment: {type: generic, command: serve, python: /p, gpu_memory_utilization: 0.5}",
            {"python", "gpu_memory_utilization", "checkpoint_path"},
        ),
        (
            "deployment: {type: generic, command: 'serve ${deployment.checkpoint_path}'}",
            set(),
        ),
    ],
)
def test_a_key_that_does_not_fit_the_others_is_listed(
    tmp_path: Path, sections: str, listed: set[str]
):
    """By its path; `deployed` is what the file says otherwise."""
    values = yaml.safe_load(f"deployment: {{checkpoint_path: /c}}\n{TASKS}")
    for name, section in yaml.safe_load(sections).items():
        values[name] = {**values.get(name, {}), **section}
    config = read(tmp_path, yaml.safe_dump(values), deployment="hf")

    assert {key.rpartition(".")[2] for key in config.not_acted_on} == listed
    assert not config.variables.environment().secrets, "a key that nobody uses is not needed"


def test_nothing_is_deployed_and_a_server_is_described(tmp_path: Path):
    """Its keys are listed, and its secrets are not needed; an adapter is loaded where it runs."""
    config = read(
        tmp_path,
        "target: {api_endpoint: {url: 'http://127.0.0.1:1'}}\n"
        "deployment: {checkpoint_path: /c, tensor_parallel_size: 2, adapter: /a, pre_cmd: 'true',\n"
        "  env_vars: {HF_TOKEN: 'host:HF_TOKEN'}}\n" + TASKS,
        deployment="none",
    )

    assert set(config.not_acted_on) == {
        "deployment.checkpoint_path",
        "deployment.tensor_parallel_size",
        "deployment.env_vars",
    }
    assert not config.variables.by_name
    assert plan_launch(config).evaluation.plan.adapter == Path("/a")


def test_an_adapter_that_nothing_loads_is_refused(tmp_path: Path):
    """The base would be evaluated in its place."""
    with pytest.raises(ConfigurationError, match=r"deployment\.adapter"):
        read(
            tmp_path,
            f"deployment: {{command: serve, adapter: /a, served_model_name: m}}\n{TASKS}",
            deployment="generic",
        )


def test_a_section_of_comments_alone_is_left_out(tmp_path: Path):
    """YAML reads it as null."""
    config = read(
        tmp_path,
        "deployment: {hf_model_handle: a/b, env_vars: null}\n"
        "evaluation: {env_vars: null, nemo_evaluator_config: {config: {params: null}}, tasks: [\n"
        "  {name: gsm8k, env_vars: null,\n"
        "   nemo_evaluator_config: {target: {api_endpoint: {adapter_config: null}}}}]}\n"
        "env_vars: null\ntarget: null\nauxiliary_deployments: null\nexport: null\n",
    )

    assert config.evaluation.settings_of(config.evaluation.tasks[0]).params.temperature is None


def test_a_task_has_its_own_settings_above_the_general_ones(tmp_path: Path):
    """Key by key."""
    evaluation = read(
        tmp_path,
        DEPLOYED + "evaluation:\n"
        "  nemo_evaluator_config: {config: {params: {temperature: 0.5, top_p: 0.9}}}\n"
        "  tasks:\n    - name: gsm8k\n"
        "      nemo_evaluator_config: {config: {params: {temperature: 0, extra: {n_samples: 3}}},\n"
        "        target: {api_endpoint: {adapter_config: {custom_system_prompt: Be brief.}}}}\n"
        "    - name: ifeval\n",
    ).evaluation
    gsm8k, ifeval = (evaluation.settings_of(task) for task in evaluation.tasks)

    assert (gsm8k.params.temperature, gsm8k.params.top_p) == (0, 0.9)
    assert gsm8k.params.extra.n_samples == 3
    assert gsm8k.adapter.custom_system_prompt == "Be brief."
    assert (ifeval.params.temperature, ifeval.params.extra.n_samples) == (0.5, None)


def test_something_must_answer(tmp_path: Path):
    """A deployment or a url."""
    with pytest.raises(ConfigurationError, match=r"target\.api_endpoint\.url"):
        read(tmp_path, TASKS, deployment="none")


def test_only_one_may_answer(tmp_path: Path):
    """The launcher's rule, too."""
    with pytest.raises(ConfigurationError, match="deployment: none"):
        read(tmp_path, DEPLOYED + TASKS + "target: {api_endpoint: {url: 'http://x'}}\n")


def test_a_server_elsewhere_has_its_key_from_here(tmp_path: Path):
    """By the name of a variable, which is a secret."""
    config = read(
        tmp_path,
        TASKS + "target: {api_endpoint: {url: 'http://x', model_id: m, api_key_name: MY_KEY}}\n",
        deployment="none",
    )

    assert config.variables.environment().secrets == {"MY_KEY"}


def test_variables_of_every_section_arrive(tmp_path: Path):
    """A later section wins; secrets of the server reach it through the job."""
    config = read(
        tmp_path,
        "env_vars: {EVERYWHERE: lit:1, HF_HOME: lit:1}\n"
        "deployment: {hf_model_handle: a/b, env_vars: {SERVER: lit:2, HF_TOKEN: host:MINE}}\n"
        "evaluation:\n  env_vars: {EVALUATION: false}\n"
        "  tasks: [{name: gsm8k, env_vars: {HF_HOME: lit:3, LATER: runtime:THERE}}]\n"
        "auxiliary_deployments: {judge: {type: hf, hf_model_handle: c/d, env_vars: {J: lit:4}}}\n",
        "execution.env_vars.deployment.OLDER=lit:5",
        "execution.env_vars.evaluation.OLD=lit:6",
    )
    job = config.variables.environment()

    assert job.values == {
        "EVERYWHERE": "1",
        "HF_HOME": "3",
        "EVALUATION": "false",
        "OLD": "6",
        "SERVER": "2",
        "OLDER": "5",
    }
    assert job.secrets == {"HF_TOKEN"}
    assert job.from_machine == {"LATER": "THERE"}
    assert config.server_values == {"HF_HOME": "1"}
    assert config.server_names == ("EVERYWHERE", "HF_TOKEN", "OLDER", "SERVER")
    judge = config.auxiliary_variables["judge"].environment()
    assert judge.values == {"EVERYWHERE": "1", "HF_HOME": "1", "J": "4"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HF_TOKEN", "MY_OWN"])
def test_what_passes_through_the_job_has_one_value(tmp_path: Path, name: str):
    """Server and evaluation are one job."""
    with pytest.raises(ConfigurationError, match=f"{name} .*two"):
        read(
            tmp_path,
            f"deployment: {{hf_model_handle: a/b, env_vars: {{{name}: lit:one}}}}\n"
            f"evaluation: {{tasks: [{{name: gsm8k, env_vars: {{{name}: lit:other}}}}]}}\n",
        )


def test_a_secret_in_the_file_is_noted_with_its_line_and_hidden(tmp_path: Path):
    """It still works, as the launcher's own example has one."""
    config = read(
        tmp_path,
        TASKS + "deployment:\n  hf_model_handle: a/b\n  env_vars:\n    HF_TOKEN: hf_your_token\n",
    )

    (note,) = config.notes
    assert "line 10" in note
    assert "hf_your_token" not in f"{config} {config.values} {config.notes}"
    assert config.variables.secret_values({}) == {"HF_TOKEN": "hf_your_token"}


def test_a_name_without_prefix_is_noted(tmp_path: Path):
    """Older files write them so."""
    config = read(
        tmp_path,
        DEPLOYED + "evaluation: {tasks: [{name: gsm8k, env_vars: {HF_TOKEN: MY_TOKEN_FOR_IT}}]}\n",
    )

    assert config.variables.environment().secrets == {"HF_TOKEN"}
    assert "host:MY_TOKEN_FOR_IT" in config.notes[0]


def test_a_token_elsewhere_is_refused(tmp_path: Path):
    """It would be seen in scripts and by ps; the message does not show it."""
    token = "hf_" + "a" * 34
    with pytest.raises(ConfigurationError, match=r"deployment\.extra_args") as caught:
        read(tmp_path, DEPLOYED + TASKS, f"deployment.extra_args='--hf-token {token}'")

    assert token not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "deployment.pre_cmd='export WANDB_API_KEY=sesame'",
        "deployment.pre_cmd='curl https://user:sesame@host/file'",
        "deployment.extra_args='--api-key sesame'",
        "deployment.extra_args='--hf-token=sesame'",
        "+execution.extra_docker_args='-e DEPLOYMENT_TOKEN=sesame'",
        "+execution.extra_docker_args=[-e, 'DEPLOYMENT_TOKEN=sesame']",
        "deployment={type: generic, command: 'HF_TOKEN=sesame serve'}",
        "deployment={type: generic, command: serve --api-key sesame}",
        "deployment={type: generic, command: serve, extra_args: --token sesame}",
        "deployment={type: generic, command: serve, extra_args: [--api-key, sesame]}",
    ],
)
def test_a_secret_elsewhere_is_refused(
    tmp_path: Path, override: str, monkeypatch: pytest.MonkeyPatch
):
    """By the name that it is given, or by its place."""
    monkeypatch.setattr(EXECUTORS, "load", lambda name: LocalExecutor)
    with pytest.raises(ConfigurationError, match=r"deployment|docker") as caught:
        read(tmp_path, DEPLOYED + TASKS, override)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "export HF_TOKEN=$(cat ~/.token)",
        "curl https://me:$PW@host",
        "export A=b",
        "serve --api-key $MY_KEY",
        "serve --api-key --max-new-tokens=8 --eos-token=x",
    ],
)
def test_shell_may_look_secrets_up(tmp_path: Path, line: str):
    """They are not in the file then."""
    config = read(tmp_path, f"deployment: {{hf_model_handle: a/b, pre_cmd: '{line}'}}\n{TASKS}")
    assert config.deployment.pre_cmd == line


def test_a_secret_of_the_file_is_not_copied_elsewhere(tmp_path: Path):
    """As an interpolation would, whatever it looks like."""
    override = "deployment.extra_args='--secret-phrase ${env_vars.THE_PASSWORD}'"
    with pytest.raises(ConfigurationError, match=r"deployment\.extra_args") as caught:
        read(tmp_path, DEPLOYED + TASKS + "env_vars: {THE_PASSWORD: open-sesame}\n", override)
    assert "open-sesame" not in str(caught.value)


def test_a_secret_of_an_auxiliary_deployment_is_noted_and_hidden(tmp_path: Path):
    """As the deployment's own is."""
    judge = "{type: vllm, hf_model_handle: a/b, env_vars: {HF_TOKEN: hf_your_token}}"
    config = read(tmp_path, DEPLOYED + TASKS, f"+auxiliary_deployments.judge={judge}")
    assert "auxiliary_deployments.judge.env_vars.HF_TOKEN" in config.notes[0]
    assert "hf_your_token" not in f"{config.values} {config.notes}"


def test_a_token_in_an_executors_own_variables_is_refused(tmp_path: Path):
    """Nobody else reads them; a name is not a token."""
    config = DEPLOYED + TASKS
    read(tmp_path, config, "deployment.lepton_config={envs: {HF_TOKEN: MY_TOKEN}}")
    with pytest.raises(ConfigurationError, match=r"lepton_config\.envs\.HF_TOKEN"):
        read(tmp_path, config, "deployment.lepton_config={envs: {HF_TOKEN: hf_your_token}}")


def test_an_executors_settings_hold_no_variables(tmp_path: Path):
    """They are recorded."""
    config = read(tmp_path, DEPLOYED + TASKS, "execution.env_vars.deployment.A_KEY=sesame")

    assert "sesame" not in config.execution.model_dump_json()
    assert config.server_names == ("A_KEY",)


def test_a_removed_flag_is_noted_with_its_line(tmp_path: Path):
    """As are those of auxiliary deployments."""
    config = read(
        tmp_path,
        TASKS + "deployment:\n  hf_model_handle: a/b\n  extra_args: --swap-space 4\n",
        "auxiliary_deployments.judge={type: vllm, hf_model_handle: c/d, "
        "extra_args: --use-v2-block-manager}",
    )

    assert config.deployment.extra_args == ()
    assert config.auxiliary_deployments["judge"].extra_args == ()
    assert "line 9" in config.notes[0]
    assert "auxiliary_deployments.judge" in config.notes[1]


def test_no_executor_is_an_error_of_its_own(tmp_path: Path):
    """The fix is a group."""
    path = tmp_path / "launch.yaml"
    path.write_text(DEPLOYED + TASKS)
    with pytest.raises(ConfigurationError, match=r"execution\.type") as caught:
        read_launch(path)

    assert "execution: local" in str(caught.value.fix)


def test_an_unknown_executor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With those that there are."""
    monkeypatch.undo()
    with pytest.raises(UnknownNameError, match="locl"):
        read(tmp_path, DEPLOYED + TASKS, "execution.type=locl")


@pytest.mark.parametrize(
    "sections",
    ["execution: 3\n", "deployment: 3\n", "deployment: [1]\n", "evaluation: {tasks: 3}\n"],
)
def test_sections_of_another_shape_are_refused(tmp_path: Path, sections: str):
    """As configuration errors, not as a traceback."""
    path = tmp_path / "launch.yaml"
    sections += "" if sections.startswith("execution") else "execution: {type: x, output_dir: y}\n"
    path.write_text(sections)
    with pytest.raises(ConfigurationError):
        read_launch(path)


def test_the_oldest_files_list_tasks_below_evaluation(tmp_path: Path):
    """They mean the same."""
    config = read(tmp_path, DEPLOYED + "evaluation: [{name: gsm8k}, {name: ifeval}]\n")

    assert [task.name for task in config.evaluation.tasks] == ["gsm8k", "ifeval"]


def test_some_of_the_tasks_are_chosen(tmp_path: Path):
    """By name or with their index; the variables of the others are not asked for."""
    sections = (
        DEPLOYED + "evaluation:\n  tasks:\n    - name: a.t\n      env_vars: {A: host:A}\n"
        "    - name: u\n      env_vars:\n        U_TOKEN: hf_your_token\n    - name: u\n"
    )
    path = launch_file(tmp_path, sections=sections)
    by_name = read_launch(path, tasks=["u"])
    by_index = read_launch(path, tasks=["u.1"])

    assert [task.name for task in by_name.evaluation.tasks] == ["u", "u"]
    assert [task.name for task in by_index.evaluation.tasks] == ["u"]
    assert by_index.variables.environment().secrets == {"U_TOKEN"}
    assert "line 13" in by_index.notes[0]
    with pytest.raises(UnknownNameError, match=r"'a\.t'"):
        read_launch(path, tasks=["a.tt"])
