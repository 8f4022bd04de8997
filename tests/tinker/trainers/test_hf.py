from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from tests.support import SUPPORT

from enginehouse.core.errors import ServerGoneError, StartError
from enginehouse.processes.process import Command
from enginehouse.processes.tree import identify
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.provisioning.programs import PAYLOADS
from enginehouse.runtime.context import Context
from enginehouse.testing.check_trainer import check_trainer
from enginehouse.testing.trainer_cases.base import STEP, Subject
from enginehouse.tinker.trainers.hf import HfTrainer, Patience, TrainerProgram

ROOT = SUPPORT.parents[1]
DEADLINE = 20
MODEL = ResolvedModel(
    reference="fake",
    name="fake",
    source="folder",
    path="/nowhere",
    weights_digest=None,
    chat_template_digest=None,
)


def fake_program(fault: str = "") -> TrainerProgram:
    """The real process, connection and messages, with the fake's mathematics."""
    env = {"PATH": os.environ["PATH"], "FAKE_TRAINER": fault}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), str(PAYLOADS)])
    argv = (sys.executable, str(SUPPORT / "fake_trainer_program.py"))
    return TrainerProgram(command=Command(argv=argv, env=env), model=MODEL, variant="cpu")


@pytest.fixture
async def started():
    """A function that makes a trainer, which is closed in the end."""
    trainers = []

    def make(fault: str = "", **patience: float) -> HfTrainer:
        program = fake_program(fault)
        trainer = HfTrainer(program, context=Context(), patience=Patience(**patience))
        trainers.append(trainer)
        return trainer

    yield make
    for trainer in trainers:
        await trainer.close()


def subject_of(trainer: HfTrainer, folder) -> Subject:
    """What the cases use, for tests of their own."""
    return Subject(trainer=trainer, kill=lambda: None, folder=folder, prefix="test")


async def until(condition) -> None:
    """Wait for a condition, at most DEADLINE seconds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - only the kernel knows
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_it_passes_the_suite_over_a_process(started):
    """Everything that is promised survives messages, frames and kills."""
    trainer = started()
    await trainer.start()
    pids = {trainer.pid}

    def kill() -> None:
        pids.add(trainer.pid)
        os.kill(trainer.pid, signal.SIGKILL)

    assert await check_trainer(trainer, kill=kill) == []
    assert trainer._starts == 3  # the suite has killed one, and closed one
    pids.add(trainer.pid)
    await trainer.close()
    assert [pid for pid in pids if identify(pid)] == []


@pytest.mark.slow
async def test_death_is_explained(started, tmp_path):
    """The error names the signal and the log, again and again until it is started."""
    trainer = started()
    await trainer.start()
    subject = subject_of(trainer, tmp_path)
    model = await subject.model()
    os.kill(trainer.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(ServerGoneError) as raised:
            await subject.compute(model)
        assert raised.value.message == "the trainer ended with signal SIGKILL"
        assert raised.value.log == trainer.log
        assert raised.value.why
    first = trainer.log
    await trainer.start()
    assert trainer.log != first
    await subject.model()


async def test_death_during_a_call_ends_the_call(started, tmp_path):
    """A caller that waits for an answer learns that there will be none."""
    trainer = started("stuck")
    await trainer.start()
    subject = subject_of(trainer, tmp_path)
    model = await subject.model()
    waiting = asyncio.create_task(subject.compute(model, loss="dro"))
    await asyncio.sleep(0)
    os.kill(trainer.pid, signal.SIGKILL)
    with pytest.raises(ServerGoneError, match="SIGKILL"):
        await waiting


@pytest.mark.slow
async def test_hang_is_ended(started, tmp_path):
    """A trainer that computes nothing while it is asked is killed, and starts again."""
    trainer = started("stuck", idle=0.3, look=0.05)
    await trainer.start()
    subject = subject_of(trainer, tmp_path)
    model = await subject.model()
    pid = trainer.pid
    with pytest.raises(ServerGoneError, match=r"hangs.* computed"):
        await subject.compute(model, loss="dro")
    assert identify(pid) is None
    await trainer.start()
    await subject.compute(await subject.model())


@pytest.mark.slow
async def test_a_removed_log_is_not_needed(started, tmp_path):
    """A service runs for weeks, and something may tidy up its logs meanwhile."""
    trainer = started("stuck", idle=0.3, look=0.05)
    await trainer.start()
    subject = subject_of(trainer, tmp_path)
    model = await subject.model()
    trainer.log.unlink()
    with pytest.raises(ServerGoneError, match=r"hangs.* computed"):
        await subject.compute(model, loss="dro")
    await trainer.start()


@pytest.mark.slow
async def test_a_call_has_a_limit(started, tmp_path):
    """Also one that seems to compute."""
    trainer = started("stuck", call=0.3, look=0.05)
    await trainer.start()
    subject = subject_of(trainer, tmp_path)
    model = await subject.model()
    with pytest.raises(ServerGoneError, match=r"hangs.* 0\.3 s"):
        await subject.compute(model, loss="dro")


async def test_cancelled_callers_leave_order(started, tmp_path):
    """The answer to a cancelled call is not taken for that of the next; its work is done."""
    trainer = started()
    await trainer.start()
    subject = subject_of(trainer, tmp_path)
    model, other = await subject.model("a"), await subject.model("b")
    waiting = asyncio.create_task(subject.compute(model))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert "grad_norm:mean" in await trainer.optim_step(model, STEP)
    result = await subject.compute(other)
    assert result.outputs[0]["logprobs"].shape == (12,)


@pytest.mark.slow
async def test_failed_start_is_explained(started):
    """With the cause from the log; a later start may succeed."""
    trainer = started("fail")
    with pytest.raises(StartError, match="exit code 1") as e:
        await trainer.start()
    assert e.value.kind == "host_memory"
    assert trainer.pid is None
    trainer.program = fake_program()
    await trainer.start()
    assert trainer.info.base_model == "fake/bigram"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patience", "words"),
    [
        ({"idle": 0.3, "look": 0.05}, "has not computed anything"),
        ({"start": 0.3, "look": 0.05}, "has not answered for 0.3 s"),
    ],
)
async def test_silent_start_is_ended(started, patience, words):
    """A start without progress, and one that takes too long, leave no process."""
    trainer = started("silent", **patience)
    with pytest.raises(StartError, match=words):
        await trainer.start()
    assert trainer.pid is None


async def test_cancelled_start_leaves_nothing(started):
    """Nor does one whose caller gives up."""
    trainer = started("silent")
    starting = asyncio.create_task(trainer.start())
    await until(lambda: trainer.pid is not None)
    pid = trainer.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert identify(pid) is None


async def test_missing_program_is_refused(started):
    """The environment may have been removed."""
    trainer = started()
    command = Command(argv=("/no/such/python",), env={})
    trainer.program = TrainerProgram(command=command, model=MODEL, variant="cpu")
    with pytest.raises(StartError, match="/no/such/python"):
        await trainer.start()


async def test_sigterm_ends_it_quickly(started, tmp_path):
    """Closing does not wait for what is being computed."""
    trainer = started("stuck", stop=60)
    await trainer.start()
    subject = subject_of(trainer, tmp_path)
    model = await subject.model()
    waiting = asyncio.create_task(subject.compute(model, loss="dro"))
    await asyncio.sleep(0.05)
    pid = trainer.pid
    async with asyncio.timeout(10):
        await trainer.close()
    assert identify(pid) is None
    with pytest.raises(ServerGoneError):
        await waiting


@pytest.mark.slow
def test_it_ends_with_its_parent(tmp_path):
    """Killed by kill -9, the parent takes the trainer along, even out of a computation."""
    code = (
        "import asyncio, sys\n"
        "from tests.tinker.trainers import test_hf as t\n"
        "async def main():\n"
        "    trainer = t.HfTrainer(t.fake_program('stuck'), context=t.Context())\n"
        "    await trainer.start()\n"
        "    subject = t.subject_of(trainer, None)\n"
        "    model = await subject.model()\n"
        "    asyncio.create_task(subject.compute(model, loss='dro'))\n"
        "    await asyncio.sleep(0.05)\n"
        "    print(trainer.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, cwd=tmp_path
    ) as parent:
        pid = int(parent.stdout.readline())
        assert identify(pid)
        parent.kill()
    asyncio.run(until(lambda: identify(pid) is None))
