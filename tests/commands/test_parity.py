"""Parity with stand-ins for the server and for transformers: what is asked of both, and said."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.commands import parity
from enginehouse.commands.configuration import ParityConfig
from enginehouse.commands.parity import run_parity
from enginehouse.core.errors import ModelError
from enginehouse.deployment import reference_scores
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.deployment.preparation import Prepared
from enginehouse.deployment.reference_scores import TEXTS, score_with_peft
from enginehouse.engines.registry import ENGINES
from enginehouse.results.parity import ParityReport
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.store.layout import Layout

TOKENS = (5, 6, 7, 8)
SCORES = [-1.0, -2.0, -3.0]


class Place:
    """Both programs' values, and what each was asked for."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.ours = [list(SCORES) for _ in TEXTS]
        self.reference: list[list[float | None]] = [list(SCORES) for _ in TEXTS]
        self.argv: list[str] = []
        self.served: Prepared | None = None
        self.said: list[str] = []
        self.server = Server(
            name="it",
            base_url="http://127.0.0.1:1",
            models=("tiny",),
            pid=None,
            log=None,
            engine="vllm",
            version="0.32.0",
            environment=None,
            command=("vllm",),
            api_key=None,
            owned=True,
        )
        self.chosen: dict[str, str] = {}  # what `prepare` adds to the options
        self._asked = 0

    async def tokenize(self, _: str) -> tuple[int, ...]:
        """As a sampler's."""
        return TOKENS

    async def sample(self, _: Any) -> Any:
        """As a sampler's, of the next text."""
        scores = self.ours[self._asked]
        self._asked += 1
        tokens = [None, *(SimpleNamespace(logprob=value) for value in scores)]
        return SimpleNamespace(prompt_logprobs=tokens)

    async def prepare(self, plan: ServeConfig, context: Context) -> Any:
        """As `deployment.preparation.prepare`."""
        context.notify("environment: it")
        return Prepared(
            plan=plan,
            engine=ENGINES.load(plan.engine or "vllm")(),
            environment=None,  # type: ignore[arg-type]
            model=SimpleNamespace(path=str(self.checkpoint), name="tiny"),  # type: ignore[arg-type]
            options=plan.server.model_copy(update=self.chosen),
        )

    @asynccontextmanager
    async def served_deployment(self, prepared: Prepared, *_: Any, **__: Any) -> AsyncIterator[Any]:
        """As `deployment.served.served_deployment`."""
        self.served = prepared
        extra = prepared.options.extra_args
        dtype = ("--dtype", prepared.options.dtype) if prepared.options.dtype else ()
        command = ("vllm", *dtype, *(extra.split() if isinstance(extra, str) else extra))
        server = replace(self.server, command=command)
        default = SimpleNamespace(adapter=prepared.plan.adapter)
        yield SimpleNamespace(server=server, sampler=self, default=default)

    async def run_program(self, argv: Sequence[str], **_: Any) -> Any:
        """As a run of the payload."""
        self.argv = list(argv)[2:]
        output = json.dumps({"logprobs": self.reference, "dtype": self.argv[2]})
        return SimpleNamespace(returncode=0, output=f"noise\n{output}\n")

    async def parity(self, **values: Any) -> ParityReport:
        """`enginehouse parity`."""
        self._asked = 0
        config = parse(ParityConfig, {"model": str(self.checkpoint)} | values, origin="it")
        layout = Layout.from_environment()
        return await run_parity(config, Context(layout=layout, notify=self.said.append))

    async def verify(self, *command: str) -> Any:
        """What `enginehouse adapters verify --prove peft` asks."""
        return await score_with_peft(
            self,  # type: ignore[arg-type]
            server=replace(self.server, command=("vllm", *command)),
            model="a@1",
            checkpoint=self.checkpoint,
            adapter=Path("lora"),
            context=Context(notify=self.said.append),
        )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A float32 checkpoint whose configuration names no type."""
    made = Place(write_checkpoint(tmp_path / "tiny"))

    async def environment(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(executable="python", key=None)

    monkeypatch.setattr(reference_scores, "find_environment", environment)
    monkeypatch.setattr(reference_scores, "run_program", made.run_program)
    for name in ("prepare", "served_deployment"):
        monkeypatch.setattr(parity, name, getattr(made, name))
    return made


@pytest.mark.parametrize(
    ("config", "tensors", "engine", "dtype"),
    [
        ({"torch_dtype": "float32"}, "float32", "vllm", "bfloat16"),
        ({"torch_dtype": "bfloat16"}, "float32", "vllm", "bfloat16"),
        ({"torch_dtype": "float16"}, "float32", "vllm", "float16"),
        ({"text_config": {"dtype": "float16"}}, "float32", "vllm", "float16"),
        ({}, "float16", "vllm", "float16"),
        ({}, "float32", "vllm", "bfloat16"),
        ({"torch_dtype": "float16"}, "float16", "hf", "bfloat16"),
    ],
)
async def test_both_compute_in_the_engine_s_own_type(
    place: Place, config: dict[str, Any], tensors: str, engine: str, dtype: str
):
    """Also where transformers alone would take another; the report names it for both."""
    write_checkpoint(place.checkpoint, dtype=tensors, **config)
    report = await place.parity(engine=engine)
    assert place.served is not None
    assert place.served.options.dtype == dtype
    assert place.argv[2:] == [dtype, "auto"]
    assert (report.engine_dtype, report.reference_dtype) == (dtype, dtype)
    assert place.said.count("environment: it") == 1


@pytest.mark.parametrize("engine", ["vllm", "hf"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
async def test_both_compute_in_the_type_that_was_chosen_for_the_cpu(
    place: Place, engine: str, dtype: str
):
    """The checkpoint's own type does not matter then."""
    write_checkpoint(place.checkpoint, dtype="float16", torch_dtype="float16")
    place.chosen = {"dtype": dtype}
    report = await place.parity(engine=engine)
    assert place.served is not None
    assert place.served.options.dtype == dtype
    assert (report.engine_dtype, report.reference_dtype) == (dtype, dtype)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"dtype": "float32"}, "float32"),
        ({"dtype": "auto"}, "bfloat16"),
        ({"extra_args": "--dtype half"}, "float16"),
        ({"extra_args": ["--dtype=float"]}, "float32"),
        ({"extra_args": "--dtype auto"}, "bfloat16"),
    ],
)
async def test_the_type_that_was_asked_for(place: Place, options: dict[str, Any], dtype: str):
    """However it was; nothing is said twice to the engine, which would refuse it."""
    await place.parity(server=options)
    assert place.served is not None
    assert place.argv[2] == dtype
    if "extra_args" in options:
        assert place.served.options.dtype is None


@pytest.mark.parametrize(
    ("command", "dtype"),
    [(("--dtype", "float32"), "float32"), (("--dtype=half",), "float16"), ((), "bfloat16")],
)
async def test_a_running_server_s_type_and_its_gpu(place: Place, command: tuple, dtype: str):
    """PEFT takes the server's type, and leaves the GPU to it."""
    assert (await place.verify(*command)).mean == 0
    assert place.argv[2:] == [dtype, "cpu", "lora"]
    assert f"scoring the same tokens with PEFT in {dtype}, on the CPU" in place.said


async def test_the_report_names_the_adapter_and_the_verdict(place: Place):
    """As data: a program need not know the rule."""
    place.ours[0][0] -= 0.9
    report = await place.parity(adapter="lora", threshold=0.2)
    assert (report.adapter, report.agrees) == ("lora", True)
    report = await place.parity(threshold=0.01)
    assert (report.adapter, report.agrees) == (None, False)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("prove", ["parity", "verify"])
async def test_the_engine_s_overflow_is_said(place: Place, value: float, prove: str):
    """Which side, which text and which token; not a traceback."""
    place.ours[1][2] = value
    with pytest.raises(ModelError, match=r"^vllm gives .* not finite: text 2, token 4\n") as caught:
        await getattr(place, prove)()
    assert caught.value.fix


@pytest.mark.parametrize("prove", ["parity", "verify"])
async def test_the_reference_s_overflow_is_said(place: Place, prove: str):
    """The payload writes null for it; the first place, and how many there are."""
    place.reference[0] = [-1.0, None, None]
    said = r"^transformers gives .* not finite: text 1, token 3 and 1 more\n"
    with pytest.raises(ModelError, match=said):
        await getattr(place, prove)()
