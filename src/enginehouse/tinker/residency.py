"""Models that are trained: which are in the trainer's memory, and how the others come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from enginehouse.core.errors import EnginehouseError, ServerGoneError, StoreError
from enginehouse.runtime.context import Notify
from enginehouse.tinker.data import LoraSpec
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.kl_figures import KlFigures
from enginehouse.tinker.model_states import Failure, ModelState, ModelStates
from enginehouse.tinker.order import Job, Line
from enginehouse.tinker.trainers.base import Trainer

_WORTHWHILE = 20  # a save may take one twentieth of the time whose loss it prevents
_MANY = 64  # jobs whose bodies and answers are kept until the next optimizer step at least
_LAST = 2**63 - 1  # the largest seq_id


@dataclass(eq=False, kw_only=True)
class Model:
    """A model, after all jobs before `line.next`. Only a `resident` one is in the trainer's memory.

    `saved` is the seq_id up to which its newest state on disk holds everything, -1 if there is no
    state. `pending` and `broken` are as in ModelState. `lost` is why it cannot be trained any more.
    `computed` is how many seconds the computing took that the state does not cover, `saving_took`
    how many the last save took, `used` when a job of it was last done, and `turn` the number of
    that turn. `kl` is of the last step with a loss that has such figures, from its first request
    on, and `step_kl` of each request since the last optim_step.
    """

    model_id: str
    user: str
    line: Line = field(default_factory=Line)
    spec: LoraSpec | None = None
    saved: int = -1
    pending: int = 0
    broken: Failure | None = None
    lost: Failure | None = None
    resident: bool = False
    retired: bool = False
    computed: float = 0.0
    used: float = 0.0
    turn: int = 0
    kl: KlFigures | None = None
    step_kl: list[KlFigures] = field(default_factory=list)
    saving_took: float = 0.0

    @property
    def dirty(self) -> bool:
        """Whether its newest state lacks something."""
        return self.resident and self.line.next - 1 > self.saved

    @property
    def divided(self) -> bool:
        """Whether some parts of its next job have been computed, and others have not."""
        job = self.line.ready()
        return job is not None and bool(job.results)

    @property
    def worth_saving(self) -> bool:
        """Whether losing what is not saved would cost much more than saving it."""
        return self.dirty and self.computed >= _WORTHWHILE * self.saving_took

    @property
    def keeps_many(self) -> bool:
        """Whether many jobs are kept as no state covers them: there was no step for a long time."""
        return self.line.next - 1 - self.saved >= _MANY


class Residency:
    """Brings models into the trainer and saves their states, so that each can be recovered exactly.

    At most `capacity` models are in the trainer's memory. A model that is needed takes the place of
    the one that was used longest ago. Who calls it is the trainer's only caller, and every method
    raises ServerGoneError as the trainer does.
    """

    def __init__(
        self,
        *,
        trainer: Trainer,
        states: ModelStates,
        futures: Futures,
        capacity: int,
        notify: Notify,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer = trainer
        self._states = states
        self._futures = futures
        self._capacity = capacity
        self._notify = notify
        self._clock = clock
        self._models: dict[str, Model] = {}

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._models.values()))

    def restore(self) -> None:
        """Know the models that have states on disk, or jobs that may have to be done again.

        Raises StoreError for the folder itself.
        """
        for model_id in self._states.model_ids():
            try:
                state = self._states.newest(model_id)
            except StoreError as error:
                self._notify(f"a model cannot be recovered: {error}")
            else:
                if state is not None:
                    self.model(model_id, user=state.user)
        for model_id, user in self._futures.models().items():
            self.model(model_id, user=user)

    def known(self, model_id: str) -> Model | None:
        """A model that was asked for before, or had a state when the service started."""
        return self._models.get(model_id)

    def model(self, model_id: str, *, user: str) -> Model:
        """A model, as it is after its newest state; a new one if it is not known."""
        model = self._models.get(model_id)
        if model is None:
            model = self._models[model_id] = Model(model_id=model_id, user=user, used=self._clock())
            self.recover(model)
        return model

    def recover(self, model: Model) -> None:
        """Go back to the newest state, and put the jobs after it that were done in line again."""
        model.resident = False
        model.computed = 0.0
        for job in model.line:
            job.results.clear()
        try:
            state = self._states.newest(model.model_id)
        except StoreError as error:
            model.lost = Failure(message=str(error), category="server")
            return
        model.saved = state.applied if state else -1
        model.pending = state.pending if state else 0
        model.broken = state.broken if state else None
        model.spec = state.spec if state else None
        answered = self._futures.answered(model_id=model.model_id, after=model.saved)
        repeated = [
            Job(future=future, seq_id=future.details["seq_id"], repeated=True)
            for future in answered
        ]
        model.line.restart(repeated, first=model.saved + 1)

    def lose_all(self) -> None:
        """The trainer has ended, and with it all that was in its memory."""
        for model in self:
            if model.resident:
                self.recover(model)

    async def bring_in(self, model: Model, *, keep: Collection[Model] = ()) -> None:
        """Have a model in memory, without removing those of `keep`. Idempotent.

        Raises TinkerError if its state cannot be loaded.
        """
        if model.resident or model.saved < 0:
            return
        await self.make_room(keep=keep)
        state = self._states.newest(model.model_id)
        if state is not None:
            folder = self._states.adapter(state)
            await self._trainer.load(model.model_id, folder, optimizer=True, gradients=True)
            model.resident = True

    async def make_room(self, *, keep: Collection[Model] = ()) -> None:
        """Make a place for one more model."""
        resident = [model for model in self if model.resident]
        for model in sorted(resident, key=lambda model: (model.divided, model.used)):
            if len(resident) < self._capacity:
                return
            if model not in keep:
                await self.evict(model)
                resident.remove(model)

    async def evict(self, model: Model) -> None:
        """Move a model from memory to disk.

        If its state cannot be saved, it will be computed again from the one before.
        """
        if await self.save(model):
            await self._trainer.unload(model.model_id)
            model.resident = False
        else:
            await self.drop(model)

    async def drop(self, model: Model) -> None:
        """Remove a model from memory as it is, and go back to its newest state."""
        await self._trainer.unload(model.model_id)
        self.recover(model)

    async def save(self, model: Model, *, applied: int | None = None) -> bool:
        """Save the state of a model in memory, if it has changed.

        `applied` is the last job that it contains, by default the last one that is finished.
        Returns False, and says why, if it cannot be saved: the older state is then still there. A
        model whose next job is divided cannot: its gradients belong to no whole number of jobs.
        """
        if model.divided:
            return False
        applied = model.line.next - 1 if applied is None else applied
        if not model.resident or applied <= model.saved or model.spec is None:
            return True
        state = ModelState(
            model_id=model.model_id,
            user=model.user,
            spec=model.spec,
            applied=applied,
            pending=model.pending,
            broken=model.broken,
        )
        began = self._clock()
        model.computed = 0.0  # also after a failure, or every step would try again
        try:
            async with self._states.saving(state) as folder:
                await self._trainer.save(model.model_id, folder, state=True)
        except ServerGoneError:
            raise
        except (EnginehouseError, OSError) as error:
            self._notify(f"the state of {model.model_id} was not saved: {error}")
            return False
        model.saving_took = self._clock() - began
        model.saved = applied
        self._futures.forget_bodies(model_id=model.model_id, up_to=applied)
        return True

    async def remove(self, model: Model) -> None:
        """Remove a model from memory and from disk: nobody will train it any more. Idempotent."""
        if model.resident:
            await self._trainer.unload(model.model_id)
            model.resident = False
        await asyncio.to_thread(self._states.remove, model.model_id)

    def forget(self, model: Model) -> None:
        """Know nothing of a model that was removed."""
        self._futures.forget_bodies(model_id=model.model_id, up_to=_LAST)
        self._models.pop(model.model_id, None)
