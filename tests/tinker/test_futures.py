from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from enginehouse.core.errors import RunLockedError, StoreError, TinkerError
from enginehouse.tinker import futures as futures_module
from enginehouse.tinker.future import Future
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.wire.schema import PROTOBUF, messages

JSON = "application/json"
LARGE = b"x" * 40_000


@pytest.fixture
async def futures(tmp_path: Path) -> AsyncIterator[Futures]:
    """Futures in an empty folder."""
    opened = Futures.open(tmp_path / "futures")
    yield opened
    await opened.close()


async def reopened(futures: Futures, **settings: Any) -> Futures:
    """The same futures after a restart of the service."""
    await futures.close()
    return Futures.open(futures._journal.folder, **settings)


async def accept(futures: Futures, number: int = 1, **changes: Any) -> Future:
    """Job `number` of the model m of the user ann."""
    request: dict[str, Any] = {
        "key": f"model:m:{number}",
        "kind": "forward_backward",
        "user": "ann",
        "body": b"body",
        "content_type": PROTOBUF,
        "details": {"model_id": "m", "seq_id": number},
    }
    return await futures.accept(**(request | changes))


async def accept_sample(futures: Futures, seq_id: int = 1, **changes: Any) -> Future:
    """A sample of session s of the user ann."""
    request: dict[str, Any] = {
        "key": f"sampler:s:{seq_id}",
        "kind": "sample",
        "body": b"{}",
        "content_type": JSON,
        "details": {"sampling_session_id": "s", "seq_id": seq_id},
    }
    return await accept(futures, **(request | changes))


async def refused(work: Any) -> TinkerError:
    """The TinkerError of a coroutine."""
    with pytest.raises(TinkerError) as error:
        await work
    return error.value


def files(futures: Futures) -> dict[str, list[str]]:
    """The large contents on disk."""
    folder = futures._journal.folder
    return {
        name: sorted(file.name for file in (folder / name).iterdir())
        for name in ("bodies", "answers")
    }


def written(futures: Futures) -> Any:
    """Everything that was handed to the journal's thread until now has been written."""
    return asyncio.wrap_future(futures._thread._writer.submit(int))


async def test_an_answer_reaches_who_waits_for_it(futures):
    """A poll that began before the answer ends with it."""
    future = await accept(futures)
    poll = asyncio.create_task(futures.wait(future.request_id, user="ann", timeout=60))
    await asyncio.sleep(0)
    assert futures.polls == 1
    await futures.finish(future, b"answer", content_type=PROTOBUF)
    assert (await poll).payload == b"answer"
    assert (future.state, future.size, future.content_type) == ("finished", 6, PROTOBUF)
    assert futures.polls == 0


async def test_a_poll_ends_without_an_answer(futures):
    """After its time, with the reason why the request waits."""
    future = await accept(futures)
    futures.hold(future, "3 jobs of others are before it", state="paused_capacity")
    polled = await futures.wait(future.request_id, user="ann", timeout=0.001)
    assert (polled.state, polled.reason, polled.queue_state) == (
        "waiting",
        "3 jobs of others are before it",
        "paused_capacity",
    )


async def test_a_cancelled_poll_leaves_nothing(futures):
    """Neither a timer nor a waiter."""
    future = await accept(futures)
    poll = asyncio.create_task(futures.wait(future.request_id, user="ann", timeout=60))
    await asyncio.sleep(0)
    poll.cancel()
    await asyncio.gather(poll, return_exceptions=True)
    assert futures.polls == 0
    assert not future.answered._waiters


async def test_a_key_gives_the_first_future(futures):
    """Also to requests that come at the same time, and after the answer; taken only once."""
    same = await asyncio.gather(*(accept(futures) for _ in range(5)))
    assert len({id(future) for future in same}) == 1
    assert [future.take() for future in same] == [True, False, False, False, False]
    await futures.finish(same[0], b"done")
    again = await accept(futures)
    assert again is same[0]
    assert not again.take()
    assert futures.accepted("model:m:1") is again
    after = await reopened(futures)
    assert not (await accept(after)).take()
    assert after.accepted("model:m:2") is None
    await after.close()


@pytest.mark.parametrize("change", [{"body": b"another"}, {"user": "bob"}])
async def test_another_request_under_a_used_key_is_refused(futures, change):
    """It must not get the first one's answer."""
    await accept(futures)
    error = await refused(accept(futures, **change))
    assert (error.status, error.category) == (400, "user")


async def test_a_body_may_be_serialised_differently(futures):
    """Protobuf does not fix the order of maps."""
    maps = [messages().ForwardBackwardRequest(loss_fn_config={key: 1.0}) for key in "ab"]
    one, other = (message.SerializeToString() for message in maps)
    first = await accept(futures, body=one + other)
    assert await accept(futures, body=other + one) is first


@pytest.mark.parametrize("user", ["ann", "bob"])
@pytest.mark.parametrize(("kind", "status"), [("sample", 410), ("forward_backward", 404)])
async def test_unknown_and_foreign_futures_look_the_same(futures, user, kind, status):
    """410 has the SDK sample again; a job must not be applied again, so 404."""
    theirs = await accept(futures, user="cleo", kind=kind, details={})
    unknown = f"{kind}-{'0' * 32}"
    for request_id in (theirs.request_id, unknown):
        error = await refused(futures.wait(request_id, user=user, timeout=0))
        assert error.status == status
        assert error.message == f"there is no request {request_id}"


async def test_a_failed_job_says_whose_mistake_it_was(futures):
    """As the SDK reads it."""
    future = await accept(futures)
    await futures.fail(future, "NaN in datum 0", category="user")
    assert (future.state, future.content_type) == ("failed", JSON)
    assert json.loads(future.payload) == {"error": "NaN in datum 0", "category": "user"}


async def test_only_the_first_answer_counts(futures):
    """A result that comes after the cancellation changes nothing."""
    future = await accept_sample(futures)
    seen = asyncio.create_task(futures.until_answered(future))
    await futures.cancel(future.request_id, user="ann")
    await seen
    await futures.finish(future, b"late")
    assert future.state == "cancelled"
    assert json.loads(future.payload)["error"] == "the request was cancelled"


async def test_only_samples_can_be_cancelled(futures):
    """Later jobs of the model build on a job."""
    future = await accept(futures)
    error = await refused(futures.cancel(future.request_id, user="ann"))
    assert error.status == 400
    assert future.state == "waiting"
    sample = await accept_sample(futures)
    assert (await refused(futures.cancel(sample.request_id, user="bob"))).status == 410


async def test_everything_is_there_after_a_restart(futures):
    """Waiting ones in order of acceptance; answers, and the bodies of jobs to compute again."""
    small, large = await accept(futures, 1), await accept(futures, 2, body=LARGE)
    answered = await accept(futures, 3)
    failed = await accept_sample(futures, 1, body=LARGE)
    await futures.finish(answered, LARGE, content_type=PROTOBUF)
    await futures.fail(failed, "no", category="server")
    after = await reopened(futures)
    assert [f.request_id for f in after.waiting()] == [small.request_id, large.request_id]
    assert [f.body for f in after.waiting()] == [b"body", LARGE]
    assert all(f.take() for f in after.waiting())
    polled = await after.wait(answered.request_id, user="ann", timeout=0)
    assert (polled.state, polled.payload, polled.body) == ("finished", LARGE, b"body")
    polled = await after.wait(failed.request_id, user="ann", timeout=0)
    assert json.loads(polled.payload) == {"error": "no", "category": "server"}
    assert (await accept(after, 2, body=LARGE)).request_id == large.request_id
    assert files(after) == {"bodies": [large.request_id], "answers": [answered.request_id]}
    await after.close()


async def test_bodies_are_kept_until_a_saved_state_covers_them(futures):
    """Also when the answer has expired; answered jobs come back in the order of their numbers."""
    jobs = {number: await accept(futures, number, body=LARGE) for number in (3, 1, 0, 2, 4)}
    for number in (1, 2, 3):
        await futures.finish(jobs[number], b"done")
    assert [f.details["seq_id"] for f in futures.answered(model_id="m", after=1)] == [2, 3]
    assert futures.answered(model_id="other", after=0) == []
    futures.forget_bodies(model_id="m", up_to=2)
    await written(futures)
    assert files(futures)["bodies"] == sorted(jobs[n].request_id for n in (0, 3, 4))
    with pytest.raises(StoreError, match="kept"):
        _ = jobs[1].body
    after = await reopened(futures, kept=0)
    await accept(after, 5)
    assert [f.body for f in after.answered(model_id="m", after=0)] == [LARGE]
    assert after.accepted("model:m:2") is None
    assert after.accepted("model:m:3") is not None
    await after.close()


async def test_answers_are_kept_for_a_while(tmp_path):
    """For long if nobody retrieves them, for a short time afterwards, and then removed for good."""
    futures = Futures.open(tmp_path, kept_retrieved=0)
    lost, got = await accept_sample(futures, 1), await accept_sample(futures, 2)
    for future in (lost, got):
        await futures.finish(future, LARGE)
    futures.retrieved(got)
    futures.retrieved(got)
    await accept_sample(futures, 3)
    await written(futures)
    assert (await refused(futures.wait(got.request_id, user="ann", timeout=0))).status == 410
    assert files(futures)["answers"] == [lost.request_id]
    after = await reopened(futures)
    assert after.accepted(got.key) is None
    assert after.accepted(lost.key) is not None
    await after.close()


async def test_many_samples_are_polled_together(futures):
    """In the order of their answers; a cursor covers what was seen; clones are apart."""
    first, second = await accept_sample(futures, 1), await accept_sample(futures, 2)
    clone = await accept_sample(futures, 3 * 10**9 + 1)
    await accept_sample(futures, 4, user="bob", details={"sampling_session_id": "s", "seq_id": 4})

    async def poll(after: int, *, clone: int = 0, seconds: float = 0) -> Any:
        return await futures.completions(
            user="ann", sampling_session_id="s", clone=clone, after=after, timeout=seconds
        )

    assert (await poll(0)).cursor == 0
    waiting = asyncio.create_task(poll(0, seconds=60))
    await asyncio.sleep(0)
    await futures.finish(second, b"2")
    seen = await waiting
    assert seen.futures == [second]
    await futures.fail(first, "no", category="user")
    assert (await poll(0)).futures == [second, first]
    last = await poll(seen.cursor)
    assert last.futures == [first]
    assert (await poll(last.cursor)).futures == []
    assert (await poll(0)).futures == []
    await futures.finish(clone, b"3")
    assert (await poll(0, clone=3)).futures == [clone]


async def test_a_cursor_holds_over_a_restart(futures):
    """Answers after it are told, though those before were removed and the journal compacted."""
    for number in range(3):
        await futures.finish(await accept_sample(futures, number), b"")
    seen = await futures.completions(
        user="ann", sampling_session_id="s", clone=0, after=0, timeout=0
    )
    futures.acknowledge([f.request_id for f in seen.futures], user="ann")
    after = await reopened(await reopened(futures))
    late = await accept_sample(after, 3)
    await after.finish(late, b"")
    told = await after.completions(
        user="ann", sampling_session_id="s", clone=0, after=seen.cursor, timeout=0
    )
    assert told.futures == [late]
    await after.close()


async def test_nothing_is_left_of_many_acknowledged_answers(futures, monkeypatch):
    """Also not the times at which they would have been deleted, a day later."""
    monkeypatch.setattr(futures_module, "_SPARE", 10)
    for seq_id in range(100):
        sample = await accept_sample(futures, seq_id)
        await futures.finish(sample, b"answer")
        futures.acknowledge([sample.request_id], user="ann")
    assert len(futures._expiries) <= 11


async def test_acknowledged_answers_are_deleted(futures):
    """Only one's own, only answers, and no job that may have to be computed again."""
    mine, waiting = await accept_sample(futures, 1), await accept_sample(futures, 2)
    theirs = await accept_sample(futures, 3, user="bob")
    job = await accept(futures)
    for future in (mine, theirs, job):
        await futures.finish(future, LARGE)
    everyone = (mine, mine, waiting, theirs, job)
    futures.acknowledge([f.request_id for f in everyone] + ["sample-x"], user="ann")
    await written(futures)
    assert files(futures)["answers"] == sorted([theirs.request_id, job.request_id])
    assert futures.accepted(mine.key) is None
    for future in (waiting, theirs, job):
        assert futures.accepted(future.key) is future
    told = await futures.completions(
        user="ann", sampling_session_id="s", clone=0, after=0, timeout=0
    )
    assert told.futures == []
    assert [user for user, *_ in futures._sessions._clients] == ["bob"]


async def test_a_service_that_stops_answers_its_polls(futures):
    """Those in flight and those that come."""
    future = await accept(futures)
    poll = asyncio.create_task(futures.wait(future.request_id, user="ann", timeout=60))
    await asyncio.sleep(0)
    futures.release()
    assert (await poll).state == "waiting"
    assert (await futures.wait(future.request_id, user="ann", timeout=60)).state == "waiting"


async def test_a_full_disk_refuses_requests_and_holds_answers_back(futures, monkeypatch):
    """Nothing is lost: the request can be sent again, and the answer comes when there is room."""
    future = await accept(futures)
    real_write = os.write
    waited = asyncio.Event()

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def make_room(seconds: float) -> None:
        assert future.state == "waiting"
        assert "No space left" in str(future.reason)
        monkeypatch.setattr(os, "write", real_write)
        waited.set()

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="cannot append"):
        await accept(futures, 2, body=LARGE)
    assert files(futures)["bodies"] == []
    monkeypatch.setattr(futures_module.asyncio, "sleep", make_room)
    await futures.finish(future, b"answer")
    assert waited.is_set()
    assert (future.payload, future.reason) == (b"answer", None)
    monkeypatch.undo()
    assert (await accept(futures, 2, body=LARGE)).state == "waiting"


async def test_a_cancelled_caller_does_not_stop_a_write(futures):
    """What the journal has is visible, whoever asked for it."""
    accepting = asyncio.create_task(accept(futures))
    await asyncio.sleep(0)
    accepting.cancel()
    future = await accept(futures)
    finishing = asyncio.create_task(futures.finish(future, b"answer"))
    await asyncio.sleep(0)
    finishing.cancel()
    polled = await futures.wait(future.request_id, user="ann", timeout=60)
    assert polled.payload == b"answer"


async def test_what_a_power_cut_damaged_fails_clearly(futures):
    """A journal line whose file is not whole."""
    waiting, answered = await accept(futures, 1, body=LARGE), await accept(futures, 2)
    await futures.finish(answered, LARGE)
    journal = futures._journal
    await futures.close()
    os.truncate(journal.body_path(waiting.request_id), 10)
    os.truncate(journal.answer_path(answered.request_id), 0)
    after = Futures.open(journal.folder)
    for request_id in (waiting.request_id, answered.request_id):
        polled = await after.wait(request_id, user="ann", timeout=0)
        assert polled.state == "failed"
        assert json.loads(polled.payload)["category"] == "server"
        assert "power cut" in json.loads(polled.payload)["error"]
    assert after.waiting() == []
    await after.close()


async def test_one_service_has_the_folder(futures):
    """A second one would answer what the first one is computing."""
    with pytest.raises(RunLockedError, match="another Tinker"):
        Futures.open(futures._journal.folder)


KILLED = """
import asyncio, pathlib, random, sys
from enginehouse.tinker import future_journal
from enginehouse.tinker.futures import Futures

future_journal._GROWN = 20_000  # so that kills also meet compacting

async def work(futures, name):
    rng = random.Random(name)
    for number in range(1000):
        size = rng.choice([0, 100, 40_000])
        replayed = {"model_id": name, "seq_id": number} if rng.random() < 0.5 else {}
        future = await futures.accept(
            key=f"{name}:{number}", kind="sample", user="ann", body=b"x" * size,
            content_type="application/json", details=replayed)
        print("accepted", future.request_id, size, flush=True)
        if rng.random() < 0.8:
            await futures.finish(future, b"y" * size)
            print("finished", future.request_id, size, flush=True)
        if replayed and number % 7 == 0:
            futures.forget_bodies(model_id=name, up_to=number)
        if not replayed and rng.random() < 0.3:
            print("removed", future.request_id, 0, flush=True)
            futures.acknowledge([future.request_id], user="ann")

async def main():
    futures = Futures.open(pathlib.Path(sys.argv[1]))
    await asyncio.gather(*(work(futures, f"{sys.argv[2]}-{n}") for n in range(4)))

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
async def test_kill_9_at_any_moment_loses_nothing(tmp_path, seed):
    """Neither what was accepted nor what was answered, over three lives of one folder."""
    events: list[list[str]] = []
    for life in range(3):
        moment = random.Random(seed * 3 + life).randrange(5, 400)
        events += await lines_before_kill(tmp_path, f"{seed}-{life}", moment)
    finished = {request_id: int(size) for what, request_id, size in events if what == "finished"}
    removed = {request_id for what, request_id, _ in events if what == "removed"}
    futures = Futures.open(tmp_path)
    for what, request_id, size in events:
        if what != "accepted" or request_id in removed:
            continue
        future = await futures.wait(request_id, user="ann", timeout=0)
        if request_id in finished:
            assert future.state == "finished"
        if future.state == "finished":
            assert future.payload == b"y" * int(size)
        else:
            assert future.body == b"x" * int(size)
    assert all(f.request_id not in finished for f in futures.waiting())
    orders = [f.order for f in futures._futures.values() if f.state == "finished"]
    assert len(set(orders)) == len(orders)
    await futures.close()


async def lines_before_kill(folder: Path, name: str, moment: int) -> list[list[str]]:
    """What the program had written before it was killed, some time after `moment` lines."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(folder), name, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(moment)]
    process.kill()
    lines += (await process.stdout.read()).splitlines(keepends=True)
    assert await process.wait() == -9
    return [line.decode().split() for line in lines if line.endswith(b"\n")]


async def test_an_answer_that_cannot_be_written_leaves_room_for_another(futures, monkeypatch):
    """An error that is not the disk's is raised, and the future is not stuck with it."""
    future = await accept(futures)
    written = futures._journal.answer

    def defective(**record: Any) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(futures._journal, "answer", defective)
    with pytest.raises(ValueError, match="a defect"):
        await futures.finish(future, b"answer")
    monkeypatch.setattr(futures._journal, "answer", written)
    await futures.fail(future, "it failed", category="server")
    assert future.state == "failed"
