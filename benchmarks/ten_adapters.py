"""Ten adapters on one resident server, and each with a server of its own, on a real vLLM.

python benchmarks/ten_adapters.py evaluates ten LoRAs of SmolLM2 on 30 sums with at most 64 tokens
per answer: together, as `enginehouse eval MODEL+A MODEL+B …` does, and one after another, as ten
commands do. What passes before the first question is told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop
from interleaved import machine, say
from random_loras import RANK, write_lora
from sums import write_task

from enginehouse import serve
from enginehouse.launch.configuration import EvaluationConfig, parse
from enginehouse.launch.evaluating import run_evaluation
from enginehouse.launch.evaluating_together import run_together
from enginehouse.report.summary import Progress
from enginehouse.store.layout import Layout


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
        task = write_task(folder, items=30)
        options = {"max_lora_rank": RANK}
        configs = [
            parse(
                EvaluationConfig,
                {"model": f"{checkpoint}+{lora}", "tasks": [str(task)], "server": options},
                origin="here",
            )
            for lora in loras
        ]
        layout = Layout.from_environment()
        together = Clock()
        await run_together(configs, layout=layout, notify=say, progress=together.progress)
        together.stop()
        apart = Clock()
        for config in configs:
            await run_evaluation(config, layout=layout, notify=say, progress=apart.progress)
        apart.stop()
    print("| ten adapters, 30 items each | seconds | of it asking | the rest |")
    print("|---|---|---|---|")
    for name, clock in (("one resident server", together), ("a server for each", apart)):
        rest = clock.total - clock.asking
        print(f"| {name} | {clock.total:.0f} | {clock.asking:.0f} | {rest:.0f} |")
    print(f"| ratio (wanted: at least 2) | {apart.total / together.total:.2f} | | |")


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
