"""A loop that evaluates goes on like one that does not, whatever becomes of the evaluation."""

from __future__ import annotations

import ast
import json
import logging
import os
import random
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.command_line import House, journaled, scored, sums, until
from tests.support.fake_transformers import module, train
from tests.support.stand_in import Model, Optimizer, OutOfMemoryError, Tokenizer, Torch
from tests.support.tiny_adapters import BASE, write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

import enginehouse.training
from enginehouse.core.errors import ConfigurationError
from enginehouse.store.layout import Layout
from enginehouse.store.runs import RunStatus, list_runs
from enginehouse.training import (
    CheckpointEvaluator,
    Evaluation,
    read_evaluations,
    trainer_callback,
)
from enginehouse.weights.checkpoint import digest_of


class Loop:
    """A training loop of the stand-in torch; `state` is all that its next steps depend on."""

    def __init__(self, torch: Torch, *, device: str = "cuda") -> None:
        self.torch = torch
        self.model = Model(torch, device=device)
        self.optimizer = Optimizer(torch, self.model, device=device)

    @property
    def state(self) -> list[Any]:
        """Weights, gradient, optimizer and random numbers."""
        tensors = (self.model.first, self.model.first.grad, self.model.buffer)
        moments = (self.optimizer.moment, self.optimizer.second)
        contents = [(id(tensor), tensor.content) for tensor in (*tensors, *moments)]
        return [contents, random.getstate(), self.torch.get_rng_state()]

    def evaluate(self, evaluator: CheckpointEvaluator, step: int = 7) -> Evaluation:
        """Hand everything over."""
        return evaluator.evaluate(
            step, model=self.model, tokenizer=Tokenizer(), optimizer=self.optimizer
        )


@pytest.fixture
def loop(torch: Torch) -> Loop:
    """On the GPU."""
    return Loop(torch)


def settings(house: House, *, right: int = 3, wrong: int = 1, **env: str) -> dict[str, Any]:
    """A task and a server that answers it so."""
    items, canned = sums(right=right, wrong=wrong)
    name, _, path = house.answers(canned).partition("=")
    task = str(house.task(items))
    return {
        "tasks": [task],
        "folder": house.work / "training",
        "server": {"env_vars": {name: path} | env, "max_model_len": 512},
    }


@pytest.mark.slow
def test_a_model_is_evaluated(house: House, loop: Loop, torch: Torch):
    """A score with its interval, a run, a line in the journal; memory freed and given back."""
    notes: list[str] = []
    evaluator = CheckpointEvaluator(**settings(house), notify=notes.append)
    torch.take(200)  # what a step left in the cache
    torch.take(-200)
    before = loop.state
    result = loop.evaluate(evaluator)
    assert loop.state == before
    assert result.error is None
    assert result.headline is not None
    assert result.headline.value == 0.75
    assert result.headline.interval is not None
    assert (result.moved_bytes, result.freed_bytes) == (410, 610)
    (run,) = house.runs
    assert result.run == str(run)
    assert journaled(run).counts() == {"correct": 3, "wrong": 1}
    assert read_evaluations(evaluator.folder) == [result]
    assert [path.name for path in evaluator.folder.iterdir()] == ["evaluations.jsonl"]
    assert any("0.00 GB of the trainer to the host" in note for note in notes)
    assert notes[-1].startswith("step 7, sums 75.0% (")


@pytest.mark.slow
def test_on_the_cpu(house: House, torch: Torch):
    """There is nothing to move, and it says so; the model is kept if that is wanted."""
    torch.cuda.initialized = False
    notes: list[str] = []
    evaluator = CheckpointEvaluator(
        **settings(house), keep_checkpoints=True, limit=2, notify=notes.append
    )
    result = Loop(torch, device="cpu").evaluate(evaluator)
    assert (result.moved_bytes, result.freed_bytes) == (0, None)
    assert any("nothing on a GPU" in note for note in notes)
    assert result.checkpoint == str(evaluator.folder / "step-00000007")
    assert (Path(result.checkpoint) / "model.safetensors").exists()


@pytest.mark.slow
def test_a_server_that_does_not_start(house: House, loop: Loop):
    """The diagnosis and the log are in the error; the run is there to be looked at."""
    error = "RuntimeError: CUDA error: no kernel image is available"
    evaluator = CheckpointEvaluator(**settings(house, VLLM_FAKE_START_ERROR=error))
    before = loop.state
    result = loop.evaluate(evaluator)
    assert loop.state == before
    assert "log:" in (result.error or "")
    (run,) = list_runs(Layout.from_environment())
    assert run.status is RunStatus.INTERRUPTED
    assert result.run == str(house.runs[0])


@pytest.mark.slow
def test_a_failed_evaluation_is_not_repeated(house: House, loop: Loop, caplog):
    """One attempt, an error with its next step, and the run of it, which failed."""
    evaluator = CheckpointEvaluator(**settings(house), python=house.work / "no-python")
    before = loop.state
    with caplog.at_level(logging.WARNING, logger="enginehouse.training"):
        results = [loop.evaluate(evaluator, step) for step in (1, 2)]
    assert loop.state == before
    assert loop.model.saves == 2
    for result in results:
        assert "no-python" in (result.error or "")
        assert "next:" in (result.error or "")
        assert result.headline is None
    assert read_evaluations(evaluator.folder) == results
    assert "step 1, failed: " in caplog.text


def test_a_model_that_cannot_be_saved(house: House, loop: Loop):
    """Nothing is started; nothing stays behind."""

    def broken(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("weights are on fire")

    loop.model.save_pretrained = broken
    evaluator = CheckpointEvaluator(**settings(house))
    before = loop.state
    result = loop.evaluate(evaluator)
    assert result.error == "RuntimeError: weights are on fire"
    assert loop.state == before
    assert house.runs == []
    assert [path.name for path in evaluator.folder.iterdir()] == ["evaluations.jsonl"]


@pytest.mark.slow
def test_a_gpu_that_somebody_else_has_filled(house: House, loop: Loop, torch: Torch):
    """The trainer cannot go on: torch's error is raised, and the saved model is kept."""

    def note(text: str) -> None:
        if text.startswith("ready after"):
            torch.take(900)

    evaluator = CheckpointEvaluator(**settings(house), notify=note)
    with pytest.raises(OutOfMemoryError) as caught:
        loop.evaluate(evaluator)
    assert "cannot return to the GPU" in caught.value.__notes__[0]
    (recorded,) = read_evaluations(evaluator.folder)
    assert recorded.checkpoint is not None
    assert (Path(recorded.checkpoint) / "model.safetensors").exists()


def test_training_in_several_processes(house: House, loop: Loop):
    """It is said that this is not done, before anything is saved."""
    loop.torch.distributed.processes = 8
    result = loop.evaluate(CheckpointEvaluator(**settings(house)))
    assert "this training has 8 processes" in (result.error or "")
    assert loop.model.saves == 0


@pytest.mark.slow
def test_too_many_failed(house: House, loop: Loop):
    """No headline is an error of the evaluation, with the task's reason."""
    items, canned = sums(right=3, failed=1)
    given = settings(house)
    name, _, path = house.answers(canned).partition("=")
    given["server"]["env_vars"] = {name: path}
    given["tasks"] = [str(house.task(items))]
    result = loop.evaluate(CheckpointEvaluator(**given))
    assert result.headline is None
    assert "sums: 1 of 4 samples failed" in (result.error or "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(house: House, loop: Loop, number: signal.Signals):
    """State back, server stopped, recorded; only then the interrupt takes effect, once."""
    calls: list[list[Any]] = []

    def stop(*_: object) -> None:
        calls.append(loop.state)
        house.nothing_left()
        raise KeyboardInterrupt

    def note(text: str) -> None:
        if text.startswith("ready after"):
            os.kill(os.getpid(), number)

    kept = signal.signal(number, stop)
    try:
        slow = settings(house, right=8, VLLM_FAKE_TOKEN_LATENCY="0.5")
        evaluator = CheckpointEvaluator(**slow, notify=note)
        before = loop.state
        with pytest.raises(KeyboardInterrupt):
            loop.evaluate(evaluator)
    finally:
        signal.signal(number, kept)
    assert calls == [before]
    (recorded,) = read_evaluations(evaluator.folder)
    assert recorded.error == "it was interrupted"
    (run,) = list_runs(Layout.from_environment())
    assert run.status is RunStatus.INTERRUPTED
    assert recorded.run == str(house.runs[0])


@pytest.mark.slow
def test_from_another_thread_and_beside_a_loop(house: House, torch: Torch):
    """A trainer's own thread may evaluate; signals are the main thread's business."""
    evaluator = CheckpointEvaluator(**settings(house))
    results: list[Evaluation] = []
    loop = Loop(torch)
    thread = threading.Thread(target=lambda: results.append(loop.evaluate(evaluator)))
    thread.start()
    thread.join()
    assert results[0].error is None


def test_a_journal_that_cannot_be_written(
    house: House, loop: Loop, caplog: pytest.LogCaptureFixture
):
    """The loop goes on, and the log says what is missing."""
    given = settings(house)
    given["folder"].mkdir()
    (given["folder"] / "evaluations.jsonl").mkdir()
    loop.torch.distributed.processes = 2
    result = loop.evaluate(CheckpointEvaluator(**given))
    assert result.error
    assert "step 7 is not in the journal" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"limt": 3}, "did you mean 'limit'?"),
        ({"tasks": ["gsm9k"]}, "did you mean 'gsm8k'?"),
        ({"model": "org/name"}, "takes no model"),
        ({"engine": "openai"}, "openai cannot serve checkpoints"),
        ({"server": {"host": "0.0.0.0"}}, "needs an API key"),
        ({"engine": "llamacpp"}, "llamacpp cannot serve checkpoints"),
    ],
)
def test_wrong_settings_are_raised_before_training(
    tmp_path: Path, wrong: dict[str, Any], said: str
):
    """When the evaluator is made, and not at the first evaluation, hours later."""
    with pytest.raises(ConfigurationError) as caught:
        CheckpointEvaluator(**({"tasks": ["gsm8k"], "folder": tmp_path} | wrong))
    assert said in str(caught.value)


def test_a_trainers_callback(monkeypatch: pytest.MonkeyPatch):
    """Transformers' Trainer evaluates after each third step, with what the callback is handed."""
    calls: list[tuple[int, dict[str, Any]]] = []

    class Noting:
        def evaluate(self, step: int, **given: Any) -> None:
            calls.append((step, given))

    monkeypatch.setitem(sys.modules, "transformers", module())
    callback = trainer_callback(Noting(), every=3)  # type: ignore[arg-type]
    train(callback, steps=range(1, 8), model="m", optimizer="o", processing_class="t")
    handed = {"model": "m", "optimizer": "o", "tokenizer": "t"}
    assert calls == [(3, handed), (6, handed)]
    calls.clear()
    named = trainer_callback(Noting(), every=1, tokenizer="mine")  # type: ignore[arg-type]
    train(named, steps=[1], model="m", optimizer="o")
    assert calls == [(1, {"model": "m", "optimizer": "o", "tokenizer": "mine"})]


def test_heavy_imports_are_inside_functions():
    """import-linter lets this room import torch and transformers; here it is said where."""
    for file in Path(enginehouse.training.__file__).parent.glob("*.py"):
        for statement in ast.parse(file.read_text()).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                named = [getattr(statement, "module", None), *(a.name for a in statement.names)]
                assert not {str(n).partition(".")[0] for n in named} & {"torch", "transformers"}


class Running:
    """A server that somebody else has started, with a checkpoint of its own."""

    def __init__(self, house: House, *faults: dict[str, Any], **env: str) -> None:
        self.house = house
        items, canned = sums(right=2, wrong=2)
        write_checkpoint(house.work / "own", seed=1, shapes=dict(BASE))
        Tokenizer().save_pretrained(house.work / "own")
        env["VLLM_FAKE_FAULTS"] = str(house.write("faults.json", json.dumps(faults)))
        words = [f"{name}={value}" for name, value in env.items()]
        self.task = str(house.task(items))
        begun = house.run(
            *("serve", str(house.work / "own"), "--detach", "--name", "resident"),
            *("--enable-lora", "--enable-weight-swap", "--env", house.answers(canned)),
            *(word for pair in words for word in ("--env", pair)),
        )
        assert begun.code == 0, begun.err
        (server,) = house.run("ps", "--json").report
        self.url = str(server["record"]["base_url"])

    def get(self, path: str) -> Any:
        """What it answers."""
        with urllib.request.urlopen(self.url + path) as reply:
            return json.load(reply)

    @property
    def weights(self) -> Path:
        """Where those lie that it is to have."""
        return Path(self.house.run("weights", "info", "resident", "--json").report["path"])

    @property
    def models(self) -> list[str]:
        """What requests may name."""
        return [model["id"] for model in self.get("/v1/models")["data"]]


@pytest.fixture
def running(house: House) -> Iterator[Running]:
    """It is left running by the evaluator, and stopped here."""
    running = Running(house)
    yield running
    assert house.run("stop", "resident").code == 0


@pytest.mark.slow
def test_a_running_server_takes_the_adapter_in(house: House, loop: Loop, running: Running):
    """Under a name of its own, for as long as it is evaluated; the trainer stays on its GPU."""
    loop.model.peft_config, loop.model.merge_and_unload = {}, None
    loop.model.save_pretrained = write_adapter
    evaluator = CheckpointEvaluator([running.task], folder=house.work / "t", url=running.url)
    own = running.models
    first = loop.evaluate(evaluator)
    assert first.error is None
    assert first.headline is not None
    assert first.headline.value == 0.5
    assert (first.moved_bytes, first.freed_bytes) == (0, None)
    assert running.models == own
    (run,) = list_runs(Layout.from_environment())
    assert run.model.startswith("step-00000007.lent@")


@pytest.mark.slow
def test_an_adapter_that_is_broken_or_untrained(house: House, loop: Loop, running: Running):
    """A broken one is an error; before the first step it is the base."""
    loop.model.peft_config, loop.model.merge_and_unload = {}, None
    evaluator = CheckpointEvaluator([running.task], folder=house.work / "t", url=running.url)

    def untrained(folder: Path) -> None:
        write_adapter(folder, change=lambda made: [v.fill(0) for k, v in made.items() if "_B" in k])

    loop.model.save_pretrained = untrained
    assert loop.evaluate(evaluator, 0).error is None
    loop.model.save_pretrained = lambda folder: write_adapter(
        folder, change=lambda made: made.popitem()
    )
    result = loop.evaluate(evaluator, 1)
    assert result.headline is None
    assert "is incomplete" in (result.error or "")
    assert len(running.models) == 1


@pytest.mark.slow
def test_a_running_server_takes_the_weights_in(house: House, loop: Loop, running: Running):
    """They are swapped in, and its own again afterwards."""
    loop.model.save_pretrained = weights(2)
    notes: list[str] = []
    evaluator = CheckpointEvaluator(
        [running.task], folder=house.work / "t", url=running.url, notify=notes.append
    )
    result = loop.evaluate(evaluator)
    assert result.error is None
    assert any(note.startswith("swapped step-00000007 into the server") for note in notes)
    assert running.weights == house.work / "own"
    (run,) = house.runs
    (answered,) = json.loads((run / "report.json").read_text())["provenance"]
    assert answered["model"] == str(evaluator.folder / "step-00000007")
    assert answered["weights_digest"] == digest_of(
        write_checkpoint(house.work / "same", seed=2, shapes=dict(BASE)),
        layout=Layout.from_environment(),
    )


@pytest.mark.slow
def test_its_own_weights_do_not_come_back(house: House, loop: Loop):
    """The score is kept, the error says what the server answers with, and the next step mends it.

    What the server has stays on the disk for its restarts.
    """
    fault = {"fault": "status", "status": 500, "path": "/collective_rpc", "nth": [2]}
    running = Running(house, fault)
    evaluator = CheckpointEvaluator([running.task], folder=house.work / "t", url=running.url)
    loop.model.save_pretrained = weights(2)
    first = loop.evaluate(evaluator, 7)
    assert first.headline is not None
    assert "step-00000007" in (first.error or "")
    assert first.checkpoint == str(running.weights) == str(evaluator.folder / "step-00000007")
    loop.model.save_pretrained = weights(3)
    second = loop.evaluate(evaluator, 8)
    assert (second.error, second.checkpoint) == (None, None)
    assert running.weights == house.work / "own"
    assert house.run("stop", "resident").code == 0


@pytest.mark.slow
def test_a_run_of_a_step_is_not_resumed_by_the_base(house: House, loop: Loop):
    """The step's weights are gone from the server: resuming would mix two models in one figure."""
    running = Running(house, VLLM_FAKE_TOKEN_LATENCY="0.2")
    loop.model.save_pretrained = weights(2)
    settings = {"folder": house.work / "t", "url": running.url, "concurrency": 1}
    evaluator = CheckpointEvaluator([running.task], **settings)

    def interrupt() -> None:
        until(lambda: house.runs and scored(house.runs[0]), "a score")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        loop.evaluate(evaluator)
    (result,) = read_evaluations(evaluator.folder)
    (run,) = house.runs
    assert result.run == str(run)
    done = house.run("resume", run.name)
    assert done.code != 0
    assert "are not those that the run began with" in done.err
    assert len(journaled(run).samples) < 4
    assert house.run("stop", "resident").code == 0


def weights(seed: int) -> Callable[[Path], object]:
    """Saves others than the server's own."""
    return lambda folder: write_checkpoint(folder, seed=seed, shapes=dict(BASE))


@pytest.mark.slow
def test_an_adapter_that_has_diverged_never_reaches_the_server(
    house: House, loop: Loop, running: Running
):
    """Its reason is the error; the server is left alone."""
    loop.model.peft_config, loop.model.merge_and_unload = {}, None

    def diverged(folder: Path) -> None:
        write_adapter(folder, change=lambda made: next(iter(made.values())).fill(float("nan")))

    loop.model.save_pretrained = diverged
    evaluator = CheckpointEvaluator([running.task], folder=house.work / "t", url=running.url)
    result = loop.evaluate(evaluator)
    assert "its training has diverged" in (result.error or "")
    assert len(running.models) == 1


@pytest.mark.slow
def test_a_server_that_is_gone(house: House, loop: Loop):
    """start_server: false, and nobody there: an error in words, nothing is started."""
    url = "http://127.0.0.1:9"
    result = loop.evaluate(CheckpointEvaluator(["instructions"], folder=house.work, url=url))
    assert f"nothing answers at {url}" in (result.error or "")


def test_a_quantized_base_is_not_merged(loop: Loop, tmp_path: Path):
    """Refused in words, with a way to evaluate it."""

    class Params4bit:
        pass

    loop.model.peft_config, loop.model.merge_and_unload = {}, None
    loop.model.parameters = lambda: [Params4bit()]
    result = loop.evaluate(CheckpointEvaluator(["instructions"], folder=tmp_path))
    assert "quantized base (Params4bit)" in (result.error or "")
    assert "--enable-lora" in (result.error or "")


def test_what_is_told_cannot_break_the_training(loop: Loop, tmp_path: Path, caplog):
    """A broken pipe at the end of `notify`: the result is in the journal nevertheless."""

    def broken(_: str) -> None:
        raise BrokenPipeError

    loop.model.save_pretrained = broken
    result = loop.evaluate(CheckpointEvaluator(["instructions"], folder=tmp_path, notify=broken))
    assert read_evaluations(tmp_path) == [result]
    assert "could not be reported" in caplog.text
    with pytest.raises(ConfigurationError, match="every"):
        trainer_callback(None, every=0)  # type: ignore[arg-type]
