"""Ten adapters on one resident server, and each with a server of its own, on a real vLLM.

python benchmarks/ten_adapters.py has each of ten LoRAs of SmolLM2 begin 30 stories, which are cut
off after 64 tokens: together, as `enginehouse eval MODEL+A MODEL+B …` does, and one after another,
as ten commands do. What passes before the first question is told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop
from interleaved import machine, say
from random_loras import RANK, write_lora

from enginehouse import serve
from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.commands.evaluate import run_evaluation
from enginehouse.commands.evaluate_together import run_together
from enginehouse.deployment.configuration import parse
from enginehouse.results.summary import Progress
from enginehouse.runtime.context import Context

_ITEMS = 30
_TASK = """\
name: stories
data: stories.jsonl
prompt: "Tell a long story about {{ animal }}, in many sentences."
metric: number
answer: answer
max_tokens: 64
"""


class Clock:
    """Seconds in all, and those in which questions were asked."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._asking: dict[float, float] = {}  # by the moment when the asking began
        self.total = 0.0

    def progress(self, so_far: Progress) -> None:
        """How long this run has been asking."""
        now = time.perf_counter()
        began = now - so_far.elapsed
        near = next((moment for moment in self._asking if abs(moment - began) < 1), began)
        self._asking[near] = so_far.elapsed

    def stop(self) -> None:
        """It is over."""
        self.total = time.perf_counter() - self._began

    @property
    def asking(self) -> float:
        """The seconds of evaluation."""
        return sum(self._asking.values())


def _write_task(folder: Path) -> Path:
    items = [json.dumps({"animal": f"{n} owls", "answer": str(n)}) for n in range(2, _ITEMS + 2)]
    (folder / "stories.jsonl").write_text("\n".join(items) + "\n")
    task = folder / "stories.yaml"
    task.write_text(_TASK)
    return task


async def _measured(asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        async with serve(asked.model, notify=say) as ready:  # everything is built and warm
            assert ready.model is not None
            checkpoint = Path(ready.model.path)
        loras = [
            await asyncio.to_thread(write_lora, folder / f"lora-{seed}", checkpoint, seed=seed)
            for seed in range(asked.adapters)
        ]
        task = _write_task(folder)
        options = {"max_lora_rank": RANK}
        configs = [
            parse(
                EvaluationConfig,
                {"model": f"{checkpoint}+{lora}", "tasks": [str(task)], "server": options},
                origin="here",
            )
            for lora in loras
        ]
        context = Context(notify=say)
        together = Clock()
        done = await run_together(configs, context, progress=together.progress)
        together.stop()
        apart = Clock()
        alone = [
            await run_evaluation(config, context, progress=apart.progress) for config in configs
        ]
        apart.stop()
    print("| ten adapters, 30 items each | seconds | of it asking | the rest | tokens per answer |")
    print("|---|---|---|---|---|")
    for name, clock, reports in (
        ("one resident server", together, done.reports),
        ("a server for each", apart, alone),
    ):
        rest = clock.total - clock.asking
        tokens = sum(report.throughput.generated_tokens for report in reports) / (
            _ITEMS * len(reports)
        )
        print(f"| {name} | {clock.total:.0f} | {clock.asking:.0f} | {rest:.0f} | {tokens:.0f} |")
    print(f"| ratio (wanted: at least 2) | {apart.total / together.total:.2f} | | | |")


def main(arguments: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapters", type=int, default=10)
    asked = parser.parse_args(arguments)
    say(machine())
    uvloop.run(_measured(asked))


if __name__ == "__main__":
    main(sys.argv[1:])
