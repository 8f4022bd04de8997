"""payloads/trainer without torch: its messages, connection and serving, before the fake's numbers.

Started as that program is, with the payloads on PYTHONPATH. The environment variable FAKE_TRAINER
names what goes wrong:
"fail" ends the start with an error, "silent" never becomes ready, and "stuck" hangs in compute.
"""

# ruff: noqa: D102 - the methods are those of Trainer; payloads are found by a path
from __future__ import annotations

import argparse
import asyncio
import logging
import os
import threading
from pathlib import Path
from typing import Any

from trainer.connection import Connection
from trainer.errors import RequestError
from trainer.serving import serve

from enginehouse.core.errors import TinkerError
from enginehouse.testing.fake_trainer import FakeTrainer
from enginehouse.tinker import data

FAULT = os.environ.get("FAKE_TRAINER", "")


class Engine:
    """The fake trainer with the payload's types and without coroutines."""

    def __init__(self) -> None:
        self._trainer = FakeTrainer()
        asyncio.run(self._trainer.start())

    @property
    def info(self) -> Any:
        return self._trainer.info

    def create(self, model_id: str, spec: Any) -> None:
        return self._run(self._trainer.create(model_id, _ours(spec)))

    def compute(self, requests: Any) -> list[Any]:
        if FAULT == "stuck" and any(request.loss == "dro" for request in requests):
            threading.Event().wait()
        results = self._run(self._trainer.compute([_ours(request) for request in requests]))
        return [RequestError(str(r)) if isinstance(r, TinkerError) else r for r in results]

    def optim_step(self, model_id: str, step: Any) -> Any:
        return self._run(self._trainer.optim_step(model_id, _ours(step)))

    def drop_gradients(self, model_id: str) -> None:
        return self._run(self._trainer.drop_gradients(model_id))

    def save(self, model_id: str, folder: Path, *, state: bool) -> None:
        return self._run(self._trainer.save(model_id, folder, state=state))

    def load(self, model_id: str, folder: Path, **changes: bool) -> Any:
        return self._run(self._trainer.load(model_id, folder, **changes))

    def unload(self, model_id: str) -> None:
        return self._run(self._trainer.unload(model_id))

    def _run(self, work: Any) -> Any:
        try:
            return asyncio.run(work)
        except TinkerError as error:
            if error.category == "user":
                raise RequestError(str(error)) from error
            raise


def _ours(theirs: Any) -> Any:
    """The payload's object as the one of the same name in enginehouse.tinker.data."""
    kind = getattr(data, type(theirs).__name__)
    fields = {name: getattr(theirs, name) for name in kind.__dataclass_fields__}
    if kind is data.LossRequest:
        fields["data"] = tuple(_ours(datum) for datum in fields["data"])
    return kind(**fields)


def main() -> None:
    """Serve the fake on the socket that is inherited."""
    logging.basicConfig(format="%(levelname)s %(asctime)s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser()
    parser.add_argument("--descriptor", type=int, required=True)
    connection = Connection(parser.parse_args().descriptor)
    if FAULT == "fail":
        raise MemoryError("Cannot allocate memory")
    if FAULT == "silent":
        threading.Event().wait()
    serve(Engine(), connection)


if __name__ == "__main__":
    main()
