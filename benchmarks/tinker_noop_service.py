"""A Tinker service with a fake trainer and a fake sampling engine: HOME, or HOME held.

Everything between a request and those two is the service's own: HTTP, guard, database, journal,
queues and files. With "held", the engine answers nothing, so that samples wait for ever.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from enginehouse.runtime.context import Context
from enginehouse.runtime.http_service import listening, running
from enginehouse.testing.fake_sampling import FakeSampling
from enginehouse.testing.fake_trainer import FakeTrainer
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.service import open_service
from enginehouse.tinker.stores import open_stores

MODEL = "fake/bigram"


def main() -> None:
    """Serve from the folder in the arguments, until killed; the address is the first line."""
    asyncio.run(_serve(Path(sys.argv[1]), held="held" in sys.argv[2:]))


async def _serve(home: Path, *, held: bool) -> None:
    config = TinkerConfig(base_model=MODEL, home=home)
    context = Context()
    trainer, engine = FakeTrainer(base_model=MODEL), FakeSampling()
    if held:
        engine.running.clear()
    await trainer.start()
    with listening(None, option="--port") as listener:
        async with (
            open_stores(config, context) as stores,
            open_service(config, context, stores=stores, trainer=trainer, engine=engine) as service,
            running(service.application, listener) as http,
        ):
            print(http.url, flush=True)
            await http.ended()


if __name__ == "__main__":
    main()
