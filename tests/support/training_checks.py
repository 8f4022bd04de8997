"""What training with a real torch must keep, on tiny models: prints {check: problem or null}.

Runs where torch, transformers and PEFT are installed beside enginehouse, on the device that it is
given: cpu or cuda. No server is started: evaluations are stood in for, and what lies on the CPU is
moved as if it lay on a GPU.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from enginehouse.training import CheckpointEvaluator, evaluator, read_evaluations, trainer_callback
from enginehouse.training.device_memory import vacated
from enginehouse.training.saving import save_checkpoint

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    attention_dropout=0.1,
    tie_word_embeddings=True,
)
DEVICE = sys.argv[1]
torch.set_num_threads(1)
if DEVICE == "cpu":
    evaluator.vacated = partial(vacated, staying=())
else:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(mode=True)


class Tokenizer:
    """Nothing asks it here."""

    def save_pretrained(self, folder: Path) -> None:
        """A file."""
        (folder / "tokenizer.json").write_text("{}")


class Loop:
    """A plain loop: random batches, dropout, two backward passes for each step."""

    def __init__(self, *, lora: bool = False) -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        self.model: Any = LlamaForCausalLM(CONFIG).to(DEVICE)
        if lora:
            config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2)
            self.model = get_peft_model(self.model, config)
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-2)
        self.losses: list[float] = []

    def run(self, between: Callable[[int], object] = lambda _: None) -> Loop:
        """Six steps; `between` is called in the middle of each, when there are gradients."""
        self.model.train()
        for step in range(1, 7):
            for part in range(2):
                length = random.randint(4, 8) + int(np.random.randint(4))  # noqa: NPY002
                tokens = torch.randint(64, (2, length)).to(DEVICE)
                loss = self.model(input_ids=tokens, labels=tokens).loss
                loss.backward()
                self.losses.append(loss.item())
                if part == 0:
                    between(step)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def evaluated(self, folder: Path) -> Loop:
        """The same with an evaluation in each step."""
        asks = CheckpointEvaluator(["gsm8k"], folder=folder)

        def between(step: int) -> None:
            asks.evaluate(step, model=self.model, tokenizer=Tokenizer(), optimizer=self.optimizer)

        return self.run(between)

    def state(self) -> str:
        """A digest of everything that further steps depend on, and of all losses."""
        sha = hashlib.sha256(repr([loss.hex() for loss in self.losses]).encode())
        moments = [
            value for state in self.optimizer.state.values() for _, value in sorted(state.items())
        ]
        for tensor in (*self.model.parameters(), *self.model.buffers(), *moments):
            sha.update(repr(tensor.dtype).encode())
            sha.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
        draws = (random.random(), np.random.random(), torch.rand(4).tolist())  # noqa: NPY002
        draws = (*draws, torch.rand(4, device=DEVICE).tolist())
        sha.update(repr(draws).encode())
        return sha.hexdigest()


def stands_in(ending: Callable[[], object]) -> None:
    """Have evaluations draw random numbers and then end so."""

    async def evaluation(*_: object, **__: object) -> Any:
        random.seed(9)
        np.random.seed(9)  # noqa: NPY002
        torch.manual_seed(9)
        ending()
        raise RuntimeError("it ends like this")

    evaluator.run_evaluation = evaluation


def emptied(model: Callable[[], PreTrainedModel]) -> Callable[[], None]:
    """An ending that sees the weights gone."""

    def look() -> None:
        sizes = {p.untyped_storage().nbytes() for p in model().parameters()}
        if sizes != {0}:
            raise AssertionError(f"bytes of parameters: {sizes}")

    return look


def check_a_loop_that_evaluates_ends_alike(folder: Path) -> None:
    """Weights, optimizer state, losses and random numbers, though memory was taken away."""
    plain = Loop().run()
    expected = plain.state()
    loop = Loop()
    stands_in(emptied(lambda: loop.model))
    loop.evaluated(folder)
    assert loop.losses == plain.losses
    assert loop.state() == expected
    found = read_evaluations(folder)
    assert [e.step for e in found] == [1, 2, 3, 4, 5, 6]
    assert {e.error for e in found} == {"RuntimeError: it ends like this"}
    # from the second step on, there is optimizer state of twice the weights
    assert found[1].moved_bytes > 1.9 * found[0].moved_bytes
    if DEVICE == "cpu":
        assert {e.freed_bytes for e in found} == {None}
    else:
        assert all(e.freed_bytes >= e.moved_bytes for e in found)


def check_with_lora_too(folder: Path) -> None:
    """Of a PEFT model the merged copy is saved; the model in training keeps every bit."""
    plain = Loop(lora=True).run().state()
    loop = Loop(lora=True)
    stands_in(emptied(lambda: loop.model))
    assert loop.evaluated(folder).state() == plain


def check_tied_weights_stay_tied(folder: Path) -> None:
    """One change is a change of both, and each tensor is the object that it was."""
    stands_in(lambda: None)
    loop = Loop()
    before = [id(p) for p in loop.model.parameters()]
    loop.evaluated(folder)
    inputs = loop.model.get_input_embeddings().weight
    outputs = loop.model.get_output_embeddings().weight
    assert inputs.data_ptr() == outputs.data_ptr()
    assert [id(p) for p in loop.model.parameters()] == before


def check_an_interrupt_brings_everything_back(folder: Path) -> None:
    """Ctrl-C in the middle is raised once, with the state of the moment before."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

    async def evaluation(*_: object, **__: object) -> None:
        torch.manual_seed(9)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    evaluator.run_evaluation = evaluation
    plain = Loop().run().state()
    interrupted = Loop()
    asks = CheckpointEvaluator(["gsm8k"], folder=folder)

    def evaluate(step: int) -> None:
        if step == 2:
            model, optimizer = interrupted.model, interrupted.optimizer
            try:
                asks.evaluate(2, model=model, tokenizer=Tokenizer(), optimizer=optimizer)
            except KeyboardInterrupt:
                return
            raise AssertionError("it was not interrupted")

    assert interrupted.run(evaluate).state() == plain
    (found,) = read_evaluations(folder)
    assert found.error == "it was interrupted"


def check_a_merged_checkpoint_is_the_adapted_model(folder: Path) -> None:
    """An ordinary checkpoint, which says what base and adapter say together."""
    loop = Loop(lora=True).run()
    save_checkpoint(loop.model, tokenizer=Tokenizer(), folder=folder / "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged").to(DEVICE)
    tokens = torch.arange(10, device=DEVICE)[None]
    loop.model.eval()
    with torch.no_grad(), loop.model.disable_adapter():
        base = loop.model(tokens).logits
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(tokens).logits, loop.model(tokens).logits)
        assert not torch.allclose(merged(tokens).logits, base)
    assert not any("lora" in name for name in merged.state_dict())


def check_transformers_trainer(folder: Path) -> None:
    """With the callback it ends with the weights that it has without."""
    data = [{"input_ids": [i, i + 1, i + 2], "labels": [i, i + 1, i + 2]} for i in range(24)]

    def trained(name: str, *, every: int | None) -> tuple[Any, list[Any]]:
        torch.manual_seed(3)
        model = LlamaForCausalLM(CONFIG)
        asks = CheckpointEvaluator(["gsm8k"], folder=folder / name)
        arguments = TrainingArguments(
            output_dir=str(folder / name),
            max_steps=6,
            per_device_train_batch_size=2,
            save_strategy="no",
            report_to=[],
            use_cpu=DEVICE == "cpu",
            disable_tqdm=True,
            seed=5,
            logging_steps=1,
        )
        callbacks = [trainer_callback(asks, every=every, tokenizer=Tokenizer())] if every else []
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=callbacks)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return model, losses

    seen = []
    stands_in(lambda: seen.append(1))
    plain, losses = trained("plain", every=None)
    evaluated, with_evaluation = trained("evaluated", every=2)
    assert len(seen) == 3
    assert with_evaluation == losses
    for one, other in zip(plain.parameters(), evaluated.parameters(), strict=True):
        assert torch.equal(one, other)
    steps = [found.step for found in read_evaluations(folder / "evaluated")]
    assert steps == [2, 4, 6]


def main() -> None:
    """Run every check; what each says is on standard error."""
    found: dict[str, str | None] = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    check(Path(folder))
                    found[name] = None
                except BaseException as error:  # noqa: BLE001 - it is reported
                    traceback.print_exc()
                    found[name] = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
