"""MODEL+FOLDER wherever a model is named, and several of them evaluated by one server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.command_line import House
from tests.support.tiny_adapters import write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

ITEMS = [{"ask": f"What is {n} + 1?", "right": str(n + 1)} for n in range(4)]


def adapters(house: House, *seeds: int) -> list[str]:
    """Folders of adapters, all different."""
    return [write_adapter(house.work / f"step-{seed}", seed=seed).name for seed in seeds]


@pytest.mark.slow
def test_an_adapter_answers(house: House, call):
    """The run says whose answers they are: the adapter's name has its content's digest."""
    (one,) = adapters(house, 1)
    task = house.task(ITEMS)
    done = call("eval", f"{house.model()}+{one}", "--task", str(task), "--json")
    assert done.code == 0, done.err
    (who,) = done.report["provenance"]
    assert who["model"] == f"step-1@{who['adapter_digest'][:12]}"
    assert who["model"] in done.err
    assert "--enable-lora" in who["engine_arguments"]


@pytest.mark.slow
def test_a_model_and_two_adapters_on_one_server(house: House, call):
    """Three runs, one start, and the bare model is what the others are compared with."""
    one, two = adapters(house, 1, 2)
    model, task = house.model(), house.task(ITEMS)
    words = [f"{model}+{one}", f"{model}+{two}", str(model)]
    done = call("eval", *words, "--task", str(task), "--json")
    assert done.code == 0, done.err
    assert done.err.count("ready after") == 1
    who = [report["provenance"][0]["model"] for report in done.report["reports"]]
    assert [Path(model).name.partition("@")[0] for model in who] == ["step-1", "step-2", "tiny"]
    assert len(house.runs) == 3
    pairs = [(c["a"]["model"], c["b"]["model"]) for c in done.report["comparisons"]]
    assert pairs == [(who[2], who[0]), (who[2], who[1])]
    house.nothing_left()


def test_a_broken_adapter_costs_no_start(house: House, call):
    """It is refused before a server is started, and no run is left."""
    (one,) = adapters(house, 1)
    path = house.work / one / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    done = call("eval", f"{house.model()}+{one}", "--task", str(house.task(ITEMS)))
    assert done.code == 4
    assert "adapter_model.safetensors" in done.err
    assert "starting" not in done.err
    assert house.runs == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{m}+{a}", "{m}+{a}"), "twice"),
        (("{m}+{a}", "{m}2"), "tiny2"),
        (("{m}+nowhere",), "nowhere"),
        (("{m}+{a}", "--engine", "llamacpp"), "LoRA"),
    ],
)
def test_wrong_usage(house: House, call, words: tuple[str, ...], said: str):
    """Refused before anything is started."""
    (one,) = adapters(house, 1)
    model = house.model()
    house.model("tiny2")
    named = [word.format(m=model, a=one) for word in words]
    done = call("eval", *named, "--task", str(house.task(ITEMS)))
    assert done.code in (2, 4, 6), done.err
    assert said in done.err
    assert "starting" not in done.err
    assert house.runs == []


@pytest.mark.slow
def test_samples_of_an_adapter(house: House, call):
    """Every command that takes a model takes one."""
    (one,) = adapters(house, 1)
    house.write("prompts.jsonl", json.dumps({"prompt": "Hello", "max_tokens": 4}) + "\n")
    files = ("--prompts", "prompts.jsonl", "--out", "out.jsonl")
    done = call("sample", f"{house.model()}+{one}", *files)
    assert done.code == 0, done.err
    line = json.loads((house.work / "out.jsonl").read_text())
    assert line["model"].startswith("step-1@")


@pytest.mark.slow
def test_load_list_verify_unload(house: House, call):
    """By the server's name or its address; the digest is in the name that requests use."""
    one, two = adapters(house, 1, 2)
    served = call(
        "serve", str(house.model()), "--enable-lora", "--detach", "--name", "it", "--json"
    )
    assert served.code == 0, served.err
    loaded = call("adapters", "load", "it", f"mine={one}", "--json")
    assert loaded.code == 0, loaded.err
    model = loaded.report["adapter"]["model"]
    assert model == f"mine@{loaded.report['adapter']['digest'][:12]}"
    assert loaded.report["effect"]["mean_difference"] > 0
    url = served.report["url"]
    assert [a["model"] for a in call("adapters", "list", url, "--json").report] == [model]
    assert call("adapters", "verify", "it", "mine").code == 0
    again = call("adapters", "load", url, f"mine={two}", "--json")
    assert again.code == 0, again.err
    listed = call("adapters", "list", "it", "--json").report
    assert [a["alias"] for a in listed] == ["mine"]
    assert listed[0]["model"] == again.report["adapter"]["model"] != model
    gone = call("adapters", "unload", "it", "mine")
    assert (gone.code, call("adapters", "list", "it").out.strip()) == (0, "")
    unknown = call("adapters", "unload", "it", "mine")
    assert unknown.code == 2
    assert "mine" in unknown.err
    assert call("stop", "it").code == 0


@pytest.mark.slow
def test_an_overwritten_store_is_found_by_verify(house: House, call):
    """The server still has the old content; the folder that it came from has not."""
    one, two = adapters(house, 1, 2)
    assert call("serve", str(house.model()), "--enable-lora", "-d", "--name", "it").code == 0
    loaded = call("adapters", "load", "it", one, "--json")
    folder = Path(loaded.report["adapter"]["path"])
    tensors = folder / "adapter_model.safetensors"
    folder.chmod(0o755)
    tensors.chmod(0o644)
    tensors.write_bytes((house.work / two / "adapter_model.safetensors").read_bytes())
    done = call("adapters", "verify", "it", "step-1")
    assert done.code == 4
    assert call("stop", "it").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("detach", [True, False])
def test_an_adapter_is_served(house: House, call, detach: bool):  # noqa: FBT001
    """It is the first of the models, and what the command to try asks for."""
    (one,) = adapters(house, 1)
    words = ("serve", f"{house.model()}+{one}", "--name", "it")
    if detach:
        said = call(*words, "--detach").out
    else:
        running = house.start(*words)
        said = running.until("stop:")
    assert "models: step-1@" in said
    assert '"model":"step-1@' in said
    listed = call("adapters", "list", "it", "--json").report
    assert [adapter["alias"] for adapter in listed] == ["step-1"]
    if detach:
        assert call("stop", "it").code == 0
    else:
        running.interrupt()
        assert running.end().code == 130


@pytest.mark.slow
def test_an_adapter_that_does_not_fit_leaves_no_server(house: House, call):
    """A detached server is stopped if the adapter cannot be loaded."""
    (one,) = adapters(house, 1)
    model = write_checkpoint(house.model())
    done = call("serve", f"{model}+{one}", "--detach")
    assert done.code == 4
    house.nothing_left()


@pytest.mark.slow
def test_an_adapter_is_measured(house: House, call):
    """`bench` asks the adapter."""
    (one,) = adapters(house, 1)
    words = ("--concurrency", "1", "--requests", "4", "--input-tokens", "8", "--output-tokens", "4")
    done = call("bench", f"{house.model()}+{one}", *words, "--json")
    assert done.code == 0, done.err
    assert done.report["model"].startswith("step-1@")


@pytest.mark.slow
def test_an_adapter_on_a_server_that_is_not_ours(house: House, call):
    """It is loaded for the run and taken back; others of its name stay."""
    (one,) = adapters(house, 1)
    other = write_adapter(house.work / "elsewhere" / one, seed=9)
    task = str(house.task(ITEMS))
    served = call("serve", str(house.model()), "--enable-lora", "-d", "--name", "it", "--json")
    url = served.report["url"]
    theirs = call("adapters", "load", "it", str(other), "--json").report["adapter"]["model"]
    done = call("eval", f"tiny+{one}", "--url", url, "--task", task, "--json")
    assert done.code == 0, done.err
    (who,) = done.report["provenance"]
    assert who["model"].startswith("step-1.lent@")
    assert [a["model"] for a in call("adapters", "list", "it", "--json").report] == [theirs]
    refused = call("eval", f"gpt-4+{one}", "--engine", "openai", "--task", task, OPENAI_API_KEY="k")
    assert refused.code != 0
    assert "LoRA" in refused.err
    assert call("stop", "it").code == 0


@pytest.mark.slow
def test_an_adapter_is_measured_on_a_server_that_is_not_ours(house: House, call):
    """It is loaded for the measurement, and nothing of it is left."""
    (one,) = adapters(house, 1)
    served = call("serve", str(house.model()), "--enable-lora", "-d", "--name", "it", "--json")
    words = ("--concurrency", "1", "--requests", "4", "--input-tokens", "8", "--output-tokens", "4")
    url = ("--url", served.report["url"])
    for named in ((f"tiny+{one}",), ("--adapter", one)):
        done = call("bench", *named, *url, *words, "--json")
        assert done.code == 0, done.err
        assert done.report["model"].startswith("step-1.lent@")
        assert call("adapters", "list", "it", "--json").report == []
    assert call("stop", "it").code == 0


@pytest.mark.slow
def test_folders_with_an_equals_sign(house: House, call):
    """As sweeps name them: a folder that is there is one, and a name ends at the first sign."""
    write_adapter(house.work / "lr=0.1" / "step", seed=1)
    assert call("serve", str(house.model()), "--enable-lora", "-d", "--name", "it").code == 0
    for given, alias in (("lr=0.1/step", "step"), ("x=lr=0.1/step", "x")):
        done = call("adapters", "load", "it", given, "--json")
        assert done.code == 0, done.err
        assert done.report["adapter"]["alias"] == alias
    missing = call("adapters", "load", "it", "lr=0.2/step")
    assert missing.code == 4
    assert call("stop", "it").code == 0


@pytest.mark.slow
def test_a_folder_s_name_becomes_one_for_requests(house: House, call):
    """Whatever characters it has; a dot is the folder that one is in."""
    write_adapter(house.work / "out of step é", seed=3)
    task = str(house.task(ITEMS))
    done = call("eval", f"{house.model()}+out of step é", "--task", task, "--json")
    assert done.code == 0, done.err
    assert done.report["provenance"][0]["model"].startswith("out-of-step--@")
