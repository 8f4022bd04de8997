from typing import Any

import pytest

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.engines.registry import own_command
from enginehouse.jobs.engine_arguments import EngineArguments, sort_arguments

REMOVED = own_command("vllm").removed_flags


def sort(values: dict[str, Any], *given: str) -> EngineArguments:
    """The arguments of a deployment whose file has the keys `given`."""
    return sort_arguments(
        {"type": "vllm", **values},
        place="deployment",
        given=lambda key: key.removeprefix("deployment.") in given,
    )


def test_what_has_a_key_moves_there():
    """So that GPUs are counted, and nothing is given twice."""
    ordered = sort({"extra_args": "-tp 2 --pipeline-parallel-size=3 --max-num-seqs 8 -O3"})

    assert ordered.values["tensor_parallel_size"] == "2"
    assert ordered.values["pipeline_parallel_size"] == "3"
    assert ordered.values["extra_args"] == ["--max-num-seqs", "8", "-O3"]
    assert not ordered.notes


@pytest.mark.parametrize("flag", sorted(REMOVED))
def test_a_flag_that_is_gone_is_a_warning_with_its_replacement(flag: str):
    """The launcher's own page still uses one; its value goes with it."""
    ordered = sort({"extra_args": f"--enforce-eager {flag} 4 --max-num-seqs 8"})

    assert ordered.values["extra_args"] == ["--enforce-eager", "--max-num-seqs", "8"]
    (note,) = ordered.notes
    assert flag in note
    assert REMOVED[flag] in note


def test_another_version_may_have_the_flag():
    """Then it is left for that version to judge."""
    ordered = sort({"extra_args": ["--swap-space", "4"], "version": "0.6.0"})

    assert ordered.values["extra_args"] == ["--swap-space", "4"]


def test_a_flag_that_contradicts_a_key_of_the_file_is_noted():
    """The flag wins, as on vLLM's command line; a group's default is not worth a note."""
    values = {"extra_args": "--port 9000", "port": 8000}

    assert sort(values).values["port"] == "9000"
    assert not sort(values).notes
    assert len(sort(values, "port").notes) == 1


@pytest.mark.parametrize(
    "command",
    [
        "vllm serve /checkpoint --reasoning-parser qwen3",
        "vllm serve owner/model --tensor-parallel-size=4 --reasoning-parser qwen3",
        "python3 -m vllm.entrypoints.openai.api_server --model x --reasoning-parser qwen3",
    ],
)
def test_an_engines_own_command_is_read_for_its_flags(command: str):
    """The server is started by us, with the same flags."""
    ordered = sort({"command": command, "extra_args": "--enforce-eager"})

    assert ordered.values["extra_args"] == ["--enforce-eager", "--reasoning-parser", "qwen3"]
    assert "command" not in ordered.values


def test_flags_that_a_command_repeats_are_there_once():
    """The launcher's own command contains extra_args."""
    extra = "--max-num-seqs 8"
    ordered = sort({"command": f"vllm serve x {extra}", "base_command": f"vllm serve x {extra}"})

    assert ordered.values["extra_args"] == ["--max-num-seqs", "8"]


@pytest.mark.parametrize(
    "command",
    [
        "#!/bin/bash\nray start\nvllm serve x",
        "vllm serve x && sleep 1",
        "bash run.sh",
        "vllm bench",
    ],
)
def test_a_script_in_place_of_the_engine_is_refused(command: str):
    """What it would start could not be watched."""
    with pytest.raises(ConfigurationError, match="command") as caught:
        sort({"command": command})

    assert "pre_cmd" in str(caught.value.fix)


def test_a_generic_command_is_left_alone():
    """It is not an engine's."""
    values = {"type": "generic", "command": "bash run.sh && x", "extra_args": "--anything goes"}

    assert sort(values).values == values


@pytest.mark.parametrize(
    ("kind", "flags", "key"),
    [
        ("sglang", "--tp-size 2", "tensor_parallel_size"),
        ("sglang", "--mem-fraction-static 0.5", "gpu_memory_utilization"),
        ("vllm", "-dpl 2", "data_parallel_size_local"),
        ("vllm", "--distributed-executor-backend ray", "distributed_executor_backend"),
    ],
)
def test_each_engine_has_its_own_flags(kind: str, flags: str, key: str):
    """Named as that engine names them."""
    ordered = sort({"type": kind, "extra_args": flags})

    assert ordered.values[key] == flags.split()[1]
    assert ordered.values["extra_args"] == []


def test_the_servers_address_is_ours():
    """It is listed as not acted on."""
    ordered = sort({"extra_args": "--host 0.0.0.0"})

    assert list(ordered.not_acted_on) == ["deployment.extra_args --host"]
    assert ordered.values["extra_args"] == []


@pytest.mark.parametrize("extra", ["'unclosed", "word --flag"])
def test_what_is_not_a_command_line_is_refused(extra: str):
    """Before anything is submitted."""
    with pytest.raises(ConfigurationError):
        sort({"extra_args": extra})


def test_an_engine_that_does_not_exist():
    """The known ones are listed, and that nothing may be deployed."""
    with pytest.raises(UnknownNameError) as caught:
        sort({"type": "vlm"})

    assert {"vllm", "hf", "none"} <= set(caught.value.known)
    assert caught.value.name == "vlm"


def test_an_engine_that_is_not_started_here():
    """It is said how a launch asks it."""
    with pytest.raises(ConfigurationError, match=r"deployment\.type: openai") as caught:
        sort({"type": "openai"})

    assert "deployment: none" in str(caught.value.fix)


def test_nothing_deployed_has_no_arguments():
    """Its other keys have no effect either, which is said elsewhere."""
    assert sort({"type": "none", "extra_args": "--port 1"}).values["extra_args"] == "--port 1"
