from pathlib import Path

import pytest
from tests.support.launch_files import SEED_EXAMPLE

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.jobs.composition import compose_launch


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    """The complete example of the launcher's page on vLLM."""
    path = tmp_path / "launch.yaml"
    path.write_text(SEED_EXAMPLE)
    return path


def written(folder: Path, text: str) -> Path:
    """A launch file with this text."""
    path = folder / "launch.yaml"
    path.write_text(text)
    return path


def test_groups_give_what_the_file_leaves_open(seed: Path):
    """The file's own values are above its groups'."""
    deployment = compose_launch(seed).values["deployment"]

    assert deployment["gpu_memory_utilization"] == 0.95
    assert deployment["port"] == 8000


@pytest.mark.parametrize(
    "override",
    [
        "deployment.extra_args=--enforce-eager",
        "+deployment.version=1.2",
        "++deployment.version=1.2",
        "deployment.version=1.2",
        "~deployment.port",
    ],
)
def test_overrides_change_add_and_remove(seed: Path, override: str):
    """A dotted key is set whether or not it is there; the launcher's prefixes work as well."""
    key, _, value = override.lstrip("+~").partition("=")
    deployment = compose_launch(seed, overrides=[override]).values["deployment"]

    assert str(deployment.get(key.removeprefix("deployment."), "")) == value


def test_adding_what_is_there_is_refused(seed: Path):
    """As Hydra does."""
    with pytest.raises(ConfigurationError, match="already at"):
        compose_launch(seed, overrides=["+deployment.port=1"])


def test_tasks_are_overridden_by_name_and_by_index(seed: Path):
    """`evaluation.tasks.NAME` is what `evaluation.tasks.INDEX` is."""
    composed = compose_launch(
        seed,
        overrides=[
            "evaluation.tasks.ifeval.endpoint_type=chat",
            "++evaluation.tasks.0.dataset_dir=/data",
        ],
    )

    assert composed.values["evaluation"]["tasks"] == [
        {"name": "gpqa_diamond", "dataset_dir": "/data"},
        {"name": "ifeval", "endpoint_type": "chat"},
    ]


def test_a_task_is_found_without_its_harness(tmp_path: Path):
    """The whole name has a dot in it, and works, too."""
    path = written(
        tmp_path, "evaluation: {tasks: [{name: simple_evals.gpqa_diamond}, {name: a.b}]}\n"
    )
    words = ["evaluation.tasks.gpqa_diamond.x=1", "evaluation.tasks.a.b.x=2"]
    tasks = compose_launch(path, overrides=words).values["evaluation"]["tasks"]

    assert [task["x"] for task in tasks] == [1, 2]


def test_a_task_that_is_not_there_is_named(seed: Path):
    """With the nearest one."""
    with pytest.raises(UnknownNameError, match="'ifeval'"):
        compose_launch(seed, overrides=["evaluation.tasks.ifevl.endpoint_type=chat"])


def test_a_task_that_is_there_twice_is_not_guessed(tmp_path: Path):
    """Indices tell them apart."""
    path = written(tmp_path, "evaluation: {tasks: [{name: a.t}, {name: b.t}]}\n")
    with pytest.raises(ConfigurationError, match=r"tasks\.0.*tasks\.1"):
        compose_launch(path, overrides=["evaluation.tasks.t.x=1"])


def test_all_missing_values_are_named_at_once(tmp_path: Path):
    """Those of the file and those of its groups, also inside lists."""
    path = written(
        tmp_path,
        'defaults: [execution: local, _self_]\na: ???\nb: [{c: "???"}]\nd: ${a}\n',
    )
    with pytest.raises(ConfigurationError) as caught:
        compose_launch(path)

    for key in ("execution.output_dir", "a", "b.0.c"):
        assert f"-o {key}=…" in str(caught.value.fix)


@pytest.mark.parametrize("resolver", ["oc.select", "select_not_null"])
@pytest.mark.parametrize("given", ["null", "owner/model"])
def test_a_null_handle_falls_back(tmp_path: Path, resolver: str, given: str):
    """Never to the text "None"."""
    path = written(
        tmp_path,
        f"deployment:\n  hf_model_handle: {given}\n"
        f"  command: serve ${{{resolver}:deployment.hf_model_handle,/checkpoint}} --x\n",
    )
    expected = "/checkpoint" if given == "null" else given

    assert compose_launch(path).values["deployment"]["command"] == f"serve {expected} --x"


def test_a_key_that_does_not_exist_falls_back(tmp_path: Path):
    """As `oc.select` does by itself."""
    path = written(tmp_path, "a: ${oc.select:nothing.there,b}\n")

    assert compose_launch(path).values["a"] == "b"


def test_variables_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are read, unless one is the whole value of a variable of the job."""
    monkeypatch.setenv("SOME_NAME", "me")
    path = written(
        tmp_path,
        "a: /home/${oc.env:SOME_NAME}/x\nenv_vars: {B: '${oc.env:SOME_NAME}'}\n"
        "c: ${oc.env:SURELY_UNSET_NAME,default}\n",
    )

    assert compose_launch(path).values == {
        "a": "/home/me/x",
        "env_vars": {"B": "host:SOME_NAME"},
        "c": "default",
    }


def test_a_variable_that_is_not_set_is_named(tmp_path: Path):
    """With the key that needs it."""
    path = written(tmp_path, "deep: {key: '${oc.env:SURELY_UNSET_NAME}'}\n")
    with pytest.raises(ConfigurationError, match="SURELY_UNSET_NAME") as caught:
        compose_launch(path)

    assert "deep.key" in caught.value.message
    assert "export SURELY_UNSET_NAME" in str(caught.value.fix)


def test_a_key_in_a_list_is_named_as_overrides_write_it(tmp_path: Path):
    """By its index, without brackets, which Hydra refuses."""
    path = written(tmp_path, "deep: [{key: '${oc.env:SURELY_UNSET_NAME}'}]\n")
    with pytest.raises(ConfigurationError) as caught:
        compose_launch(path)
    assert "-o deep.0.key=" in str(caught.value.fix)
    assert compose_launch(path, overrides=["deep.0.key=1"]).values == {"deep": [{"key": 1}]}


def test_a_secret_is_not_read_into_other_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It would end up in scripts; the message does not hold it either."""
    monkeypatch.setenv("MY_API_KEY", "not-to-be-seen")
    path = written(tmp_path, "deployment: {command: 'serve --key ${oc.env:MY_API_KEY}'}\n")
    with pytest.raises(ConfigurationError, match=r"deployment\.command") as caught:
        compose_launch(path)

    assert "not-to-be-seen" not in str(caught.value)


def test_a_group_can_be_placed_elsewhere(tmp_path: Path):
    """As the launcher's examples deploy a judge."""
    path = written(
        tmp_path,
        "defaults:\n  - deployment: vllm\n  - deployment/vllm@auxiliary_deployments.judge\n"
        "  - _self_\nauxiliary_deployments: {judge: {port: 8001}}\n",
    )
    judge = compose_launch(path).values["auxiliary_deployments"]["judge"]

    assert (judge["type"], judge["port"]) == ("vllm", 8001)


@pytest.mark.parametrize("name", ["slurm", "slurm/default", "lepton", "lepton/default"])
def test_groups_in_folders_have_short_names(tmp_path: Path, name: str):
    """Both are seen in real files."""
    path = written(
        tmp_path,
        f"defaults: [execution: {name}, _self_]\n"
        "execution: {output_dir: /x, hostname: h, account: a}\n",
    )

    assert compose_launch(path).values["execution"]["type"] == name.partition("/")[0]


def test_groups_of_the_user_lie_beside_the_file(tmp_path: Path):
    """They are found like the packaged ones."""
    (tmp_path / "deployment").mkdir()
    (tmp_path / "deployment" / "mine.yaml").write_text("defaults: [vllm, _self_]\nport: 7\n")
    path = written(tmp_path, "defaults: [deployment: mine, _self_]\n")
    deployment = compose_launch(path).values["deployment"]

    assert (deployment["type"], deployment["port"]) == ("vllm", 7)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("deployment=vlm", "'vllm'"),
        ("deployment=nim", "deployment: none"),
        ("execution=slrum", "'slurm'"),
        ("foo", "KEY=VALUE"),
        ("a=b=c", "KEY=VALUE"),
    ],
)
def test_wrong_overrides_say_what_to_do(seed: Path, override: str, hint: str):
    """Each is an error of its own."""
    with pytest.raises(ConfigurationError) as caught:
        compose_launch(seed, overrides=[override])

    assert hint in str(caught.value.fix)


def test_lines_are_those_of_the_file(seed: Path):
    """A key that was overridden has none."""
    composed = compose_launch(seed, overrides=["++deployment.port=1", "deployment.env_vars.A=b"])
    lines = seed.read_text().splitlines()

    assert "HF_HOME" in lines[composed.lines["deployment.env_vars.HF_HOME"] - 1]
    assert "name: ifeval" in lines[composed.lines["evaluation.tasks.1.name"] - 1]
    assert "deployment.port" not in composed.lines


def test_the_rewritten_launchers_format_is_recognised(tmp_path: Path):
    """It is converted, not composed."""
    path = written(tmp_path, "services: {}\nbenchmarks: []\n")
    with pytest.raises(ConfigurationError, match=r"0\.3") as caught:
        compose_launch(path)

    assert "launch convert" in str(caught.value.fix)


@pytest.mark.parametrize("name", ["launch.yml", "launch"])
def test_hydra_reads_only_yaml(tmp_path: Path, name: str):
    """Its own message would be that there is no such file."""
    path = tmp_path / name
    path.write_text("a: 1\n")
    with pytest.raises(ConfigurationError, match=r"\.yaml"):
        compose_launch(path)


def test_an_application_of_hydra_can_compose(seed: Path):
    """Its own state is as it was."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(seed.parent), version_base="1.3"):
        compose_launch(seed)
        assert compose("launch", overrides=["hydra.searchpath=[pkg://enginehouse.jobs.conf]"])


def test_times_stay_as_they_were_written(tmp_path: Path):
    """YAML 1.1 reads those that do not begin with a zero as numbers."""
    path = written(
        tmp_path, "execution:\n  walltime: 10:00:00\n  max: 02:00:00\nlist: [{a: 1:30}]\n"
    )
    composed = compose_launch(path, overrides=["++execution.other=11:00:00"])

    assert composed.values == {
        "execution": {"walltime": "10:00:00", "max": "02:00:00", "other": "11:00:00"},
        "list": [{"a": "1:30"}],
    }


def test_a_mandatory_value_is_missing_although_a_group_has_none(tmp_path: Path):
    """OmegaConf would keep the group's null."""
    path = written(
        tmp_path,
        "defaults: [deployment: vllm, _self_]\n"
        "deployment:\n  checkpoint_path: ???\n  port: ???\n  tensor_parallel_size: 1\n",
    )
    with pytest.raises(ConfigurationError, match=r"checkpoint_path.*port"):
        compose_launch(path)

    given = ["deployment.checkpoint_path=null", "deployment.port=1"]
    assert compose_launch(path, overrides=given).values["deployment"]["port"] == 1
