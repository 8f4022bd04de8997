"""Futures: requests that were accepted, and their answers. Nothing accepted is lost."""

from __future__ import annotations

import asyncio
import heapq
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

import msgspec

from enginehouse.core.errors import StoreError, TinkerError
from enginehouse.tinker.future import JSON, SAMPLE, Future, QueueState, failure
from enginehouse.tinker.future_journal import Accepted, Answered, Entry, FutureJournal, Outcome
from enginehouse.tinker.journal_thread import JournalThread
from enginehouse.tinker.polls import Polls
from enginehouse.tinker.session_answers import Completions, SessionAnswers
from enginehouse.tinker.wire.schema import PROTOBUF

_RETRY_INTERVAL: Final = 1.0  # seconds between attempts to write an answer to a full disk
_SPARE: Final = 1000  # times of removed futures that are not worth a look at all the others
_SHORTEST: Final = 60.0  # seconds until a job that cannot be removed yet is looked at again

Result = TypeVar("Result")


class Futures:
    """All futures of the service, in memory, with a journal on disk. For one event loop.

    A request is accepted once per key, in the journal before `accept` returns, and answered once.
    A thread writes the files, so that the event loop never waits for the disk.

    An answer is kept for `kept_retrieved` seconds after it was first retrieved (a reply can be
    lost), for `kept` seconds if nobody retrieves it, and not at all once its client acknowledged
    it. Afterwards its request_id is unknown, and an unknown request_id is answered by its kind.
    With 410 the SDK asks for the sample again, under a new seq_id, which has no effect but the
    work. For everything else that would invite applying a job twice, and so it is 404, which the
    SDK reports to its user at once. A job of a model whose body may still be needed to compute it
    again is kept in any case.
    """

    def __init__(self, journal: FutureJournal, *, kept_retrieved: float, kept: float) -> None:
        self._journal = journal
        self._kept_retrieved = kept_retrieved
        self._kept = kept
        self._futures: dict[str, Future] = {}
        self._by_key: dict[str, Future] = {}
        self._waiting: dict[str, Future] = {}
        self._replayable: dict[str, dict[str, Future]] = {}
        self._expiries: list[tuple[float, str]] = []
        self._accepting: dict[str, asyncio.Task[Future]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = JournalThread(journal)
        self._polls = Polls()
        self._sessions = SessionAnswers(self._polls)
        self._closing = False

    @classmethod
    def open(cls, folder: Path, *, kept_retrieved: float = 3600, kept: float = 86400) -> Self:
        """The futures of a folder, as they were when it was last open. Blocking.

        A future whose files a power cut has damaged is failed. Raises StoreError; RunLockedError
        if another service works with the folder.
        """
        journal = FutureJournal.open(folder)
        futures = cls(journal, kept_retrieved=kept_retrieved, kept=kept)
        try:
            for entry in journal.entries():
                futures._restore(entry)
        except BaseException:
            journal.close()
            raise
        return futures

    def waiting(self) -> list[Future]:
        """Those without an answer, in order of acceptance."""
        return list(self._waiting.values())

    def of_user(self, user: str) -> list[Future]:
        """All that are kept of a user, in the order in which they were accepted."""
        return [future for future in self._futures.values() if future.user == user]

    def accepted(self, key: str) -> Future | None:
        """The future of that key, answered or not."""
        return self._by_key.get(key)

    def models(self) -> Mapping[str, str]:
        """The models that have jobs which may have to be computed again, with their users."""
        return {
            model_id: next(iter(jobs.values())).user
            for model_id, jobs in self._replayable.items()
            if jobs
        }

    def answered(self, *, model_id: str, after: int) -> list[Future]:
        """The answered jobs of a model with a seq_id above `after`, by seq_id.

        Their bodies are kept, but for forward passes.
        """
        jobs = [
            future
            for future in self._replayable.get(model_id, {}).values()
            if future.state != "waiting" and future.details["seq_id"] > after
        ]
        return sorted(jobs, key=lambda future: int(future.details["seq_id"]))

    async def accept(
        self,
        *,
        key: str,
        kind: str,
        user: str,
        body: bytes,
        content_type: str,
        details: Mapping[str, Any],
    ) -> Future:
        """Accept a request; when this returns, it survives kill -9.

        A key that was used before gives the first future; see `Future.take`. `details` must hold
        `model_id` and `seq_id` for a job of a model, and `sampling_session_id` and `seq_id` for a
        sample. Raises TinkerError: 400 for another body under a used key, 429 for a large body
        while the disk is almost full; and StoreError if the journal cannot be written. Nothing was
        accepted then.
        """
        first = self._by_key.get(key)
        if first is None and key not in self._accepting:
            self._thread.raise_failure()
            self._expire()
            record = {
                "request_id": f"{kind}-{secrets.token_hex(16)}",
                "key": key,
                "kind": kind,
                "user": user,
                "body": body,
                "content_type": content_type,
                "details": details,
                "replayed": "model_id" in details and "seq_id" in details,
            }
            self._accepting[key] = self._start(self._accept(record))
            return await asyncio.shield(self._accepting[key])
        if first is None:
            first = await asyncio.shield(self._accepting[key])
        if first.user != user or not await asyncio.to_thread(first.is_request, body):
            raise TinkerError(
                f"another request was accepted as {key} before",
                fix="number requests consecutively; the SDK does, if a client is not shared "
                "between processes",
            )
        return first

    async def finish(self, future: Future, payload: bytes, *, content_type: str = PROTOBUF) -> None:
        """Answer it; when this returns, the answer survives kill -9 and can be retrieved.

        Does nothing if it has an answer already, such as a cancelled one. While the disk is full,
        it tries again each second, and the client is told so.
        """
        await self._conclude(future, "finished", payload, content_type)

    async def fail(
        self, future: Future, message: str, *, category: Literal["user", "server"]
    ) -> None:
        """As `finish`, with an error. The SDK raises it, and does not try again."""
        await self._conclude(future, "failed", failure(message, category), JSON)

    async def cancel(self, request_id: str, *, user: str) -> Future:
        """Give up a sample that its user no longer wants; its owner sees it in `until_answered`.

        Raises TinkerError: 400 for anything but a sample, and as `wait` for an unknown one.
        """
        future = self._known(request_id, user)
        if future.kind != SAMPLE:
            raise TinkerError(
                f"{request_id} is a {future.kind} job; only samples can be cancelled",
                why="the model's later jobs build on it",
            )
        payload = failure("the request was cancelled", "user")
        await self._conclude(future, "cancelled", payload, JSON)
        return future

    def hold(self, future: Future, reason: str | None, *, state: QueueState = "active") -> None:
        """Say why it waits; its client is told at the end of its next poll."""
        future.reason, future.queue_state = reason, state

    async def wait(self, request_id: str, *, user: str, timeout: float) -> Future:  # noqa: ASYNC109 (a long poll ends without an error)
        """The future, as soon as it has an answer, or as it is after `timeout` seconds.

        Raises TinkerError for one that is unknown or another user's: 410 for a sample, else 404.
        """
        future = self._known(request_id, user)
        if future.state == "waiting":
            await self._polls.wait(future.answered, seconds=timeout)
        return future

    async def until_answered(self, future: Future) -> None:
        """Return when it has an answer of any kind; at once if it has one."""
        await future.answered.wait()

    async def completions(
        self,
        *,
        user: str,
        sampling_session_id: str,
        clone: int,
        after: int,
        timeout: float,  # noqa: ASYNC109 (as for wait)
    ) -> Completions:
        """The samples of one client of a session that were answered after the cursor `after`.

        `clone` is the number of the client, which has the seq_ids from `clone` times 1e9 on. Waits
        up to `timeout` seconds for the first answer. What the cursor covers is not told again.
        """
        return await self._sessions.after(
            after,
            user=user,
            sampling_session_id=sampling_session_id,
            client=clone,
            seconds=timeout,
        )

    def retrieved(self, future: Future) -> None:
        """Its answer is on its way to the client: from now on it is kept for a shorter time."""
        expires = time.time() + self._kept_retrieved
        if expires < future.expires:
            self._expire_at(future, expires)

    def acknowledge(self, request_ids: Iterable[str], *, user: str) -> None:
        """The client has these answers; they are deleted.

        Ignored are unknown and foreign ones, those without an answer, and jobs that may have to be
        computed again.
        """
        known = filter(None, map(self._futures.get, set(request_ids)))
        self._remove(
            [f for f in known if f.user == user and f.state != "waiting" and not f.may_be_replayed]
        )

    def forget_bodies(self, *, model_id: str, up_to: int) -> None:
        """A saved state covers a model's jobs up to that seq_id: their bodies are not needed.

        The body of a job without an answer is kept in any case.
        """
        jobs = self._replayable.get(model_id, {})
        covered = [
            f for f in jobs.values() if f.state != "waiting" and f.details["seq_id"] <= up_to
        ]
        self._forget_bodies(covered)
        if not jobs:
            self._replayable.pop(model_id, None)
        if covered:
            self._thread.write_later(self._journal.forget_bodies, [f.request_id for f in covered])

    def release(self) -> None:
        """Answer every poll now, and later ones at once: the service is about to stop."""
        self._polls.release()

    async def close(self) -> None:
        """Release all polls, finish what is being written, and close the journal. Idempotent."""
        self.release()
        self._closing = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._thread.close()

    @property
    def polls(self) -> int:
        """How many clients wait for an answer now."""
        return len(self._polls)

    def _known(self, request_id: str, user: str) -> Future:
        future = self._futures.get(request_id)
        if future is not None and future.user == user:
            return future
        sample = request_id.startswith(f"{SAMPLE}-")
        raise TinkerError(
            f"there is no request {request_id}",
            why="it never existed, or its answer was retrieved and is no longer kept",
            fix="sample again" if sample else "see the model's checkpoints for what was trained",
            status=410 if sample else 404,
        )

    async def _accept(self, record: Mapping[str, Any]) -> Future:
        key = record["key"]
        try:
            accepted = await self._thread.write(partial(self._journal.accept, **record))
            return self._add(accepted)
        finally:
            del self._accepting[key]

    def _add(self, accepted: Accepted) -> Future:
        future = Future(accepted, self._journal)
        self._futures[future.request_id] = future
        self._by_key[future.key] = future
        self._waiting[future.request_id] = future
        if accepted.replayed:
            jobs = self._replayable.setdefault(accepted.details["model_id"], {})
            jobs[future.request_id] = future
        return future

    async def _conclude(
        self, future: Future, outcome: Outcome, payload: bytes, content_type: str
    ) -> None:
        if future.state != "waiting" or future.answering:
            return
        future.answering = True
        record = partial(
            self._journal.answer,
            request_id=future.request_id,
            outcome=outcome,
            payload=payload,
            content_type=content_type,
            replayed=future.needs_body,
        )
        await asyncio.shield(self._start(self._answer(future, record)))

    async def _answer(self, future: Future, record: Callable[[], Answered]) -> None:
        while True:
            try:
                answered = await self._thread.write(record)
                break
            except BaseException as error:
                if self._closing or not isinstance(error, StoreError):
                    future.answering = False  # another answer may be written
                    raise
                reason = f"the service cannot write its journal: {error.why or error.message}"
                self.hold(future, reason, state="paused_capacity")
                await asyncio.sleep(_RETRY_INTERVAL)
        self._show(future, answered)

    def _show(self, future: Future, answered: Answered) -> None:
        """Make an answer visible that is in the journal."""
        future.answer(answered)
        del self._waiting[future.request_id]
        self._expire_at(future, answered.at + self._kept)
        self._sessions.add(future)

    def _restore(self, entry: Entry) -> None:
        """Add a future as the journal has it, or fail it if a power cut has damaged its files."""
        future = self._add(entry.accepted)
        if not entry.body_kept:
            self._forget_bodies([future])
        answered = entry.answered
        if answered is None:
            path = self._journal.body_path(future.request_id)
            if entry.accepted.body is None and not _is_whole(path, entry.accepted.size):
                answered = self._journal.answer(
                    request_id=future.request_id,
                    outcome="failed",
                    payload=failure("a power cut damaged the request; send it again", "server"),
                    content_type=JSON,
                    replayed=False,
                )
        elif answered.payload is None:
            path = self._journal.answer_path(future.request_id)
            if not _is_whole(path, answered.size):
                payload = failure("a power cut damaged the answer", "server")
                answered = msgspec.structs.replace(
                    answered,
                    outcome="failed",
                    payload=payload,
                    size=len(payload),
                    content_type=JSON,
                )
        if answered is not None:
            self._show(future, answered)

    def _expire_at(self, future: Future, at: float) -> None:
        future.expires = at
        heapq.heappush(self._expiries, (at, future.request_id))
        if len(self._expiries) > 2 * len(self._futures) + _SPARE:  # of futures that are removed
            self._expiries = [
                (known.expires, name)
                for name, known in self._futures.items()
                if known.expires < float("inf")
            ]
            heapq.heapify(self._expiries)

    def _expire(self) -> None:
        """Remove the answers whose time is over, but no job that may have to be computed again."""
        now = time.time()
        expired: list[Future] = []
        while self._expiries and self._expiries[0][0] <= now:
            future = self._futures.get(heapq.heappop(self._expiries)[1])
            if future is None or future.expires > now:
                continue
            if future.may_be_replayed:
                self._expire_at(future, now + max(self._kept_retrieved, _SHORTEST))
            else:
                future.expires = float("inf")  # another entry may be there for the same time
                expired.append(future)
        self._remove(expired)

    def _remove(self, futures: Sequence[Future]) -> None:
        for future in futures:
            del self._futures[future.request_id]
            del self._by_key[future.key]
            self._sessions.remove(future)
        if futures:
            self._thread.write_later(self._journal.remove, [f.request_id for f in futures])

    def _forget_bodies(self, futures: Iterable[Future]) -> None:
        for future in futures:
            future.forget_body()
            jobs = self._replayable.get(future.details.get("model_id", ""), {})
            jobs.pop(future.request_id, None)

    def _start(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run it to its end, even if the caller is cancelled meanwhile."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
