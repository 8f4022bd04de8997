"""Requests that are sent again with the same X-Idempotency-Key, and are not done again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast

from fastapi import Request

from enginehouse.tinker.application import current_user

_KEPT: Final = 64  # answers of a user; the SDK sends a request again within seconds

Answer = TypeVar("Answer")


class Repeats:
    """The last answers of each user, by key. In memory: a restarted service has none.

    For requests that nothing else tells apart: jobs and samples are futures, which have keys of
    their own and outlive the service.
    """

    def __init__(self) -> None:
        self._answers: defaultdict[str, OrderedDict[str, asyncio.Task[Any]]]
        self._answers = defaultdict(OrderedDict)

    async def once(
        self, request: Request, answer: Callable[[], Coroutine[Any, Any, Answer]]
    ) -> Answer:
        """Answer the request, or as its first sending was or will be answered.

        What fails is not kept, and so is done again. Goes on if the first client is gone.
        """
        name = request.headers.get("x-idempotency-key")
        if name is None:
            return await answer()
        answers = self._answers[current_user(request)]
        key = f"{request.method} {request.url.path} {name}"
        task = answers.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = answers[key] = asyncio.create_task(answer())
            answers.move_to_end(key)
            done = [known for known, each in answers.items() if each.done()]
            for known in done[: max(0, len(answers) - _KEPT)]:
                del answers[known]
        return cast("Answer", await asyncio.shield(task))
