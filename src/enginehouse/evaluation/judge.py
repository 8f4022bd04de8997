"""Asks another model about answers."""

from __future__ import annotations

from enginehouse.core.errors import (
    ConnectionFailedError,
    MalformedResponseError,
    NoCreditError,
    ScoringError,
    ServerGoneError,
    UnauthorizedError,
)
from enginehouse.core.reasoning import separate_reasoning
from enginehouse.core.sampler import (
    Capability,
    Delivery,
    Provenance,
    Sampler,
    SampleRequest,
    SampleResponse,
)
from enginehouse.core.sampling import SamplingParameters
from enginehouse.evaluation.patience import patient
from enginehouse.evaluation.plan import sample_seed
from enginehouse.evaluation.records import EvaluationSpec, JudgeSpec, SampleRecord
from enginehouse.tasks.base import JudgeCall

# Failures that the next answers would have, too: the run ends, and is resumed once they are fixed.
_LASTING = (ConnectionFailedError, UnauthorizedError, NoCreditError, ServerGoneError)


class Judge:
    """Another model, which is asked about answers through a sampler of its own."""

    def __init__(
        self, sampler: Sampler, *, provenance: Provenance, delivery: Delivery | None = None
    ) -> None:
        self.provenance = provenance
        self._seeded = Capability.SEED in sampler.capabilities.supports
        self._sampler = patient(sampler, delivery=delivery or Delivery(), bound=None)

    def request(
        self, call: JudgeCall, sample: SampleRecord, *, spec: EvaluationSpec
    ) -> SampleRequest:
        """What it is asked about the sample's answer."""
        sampling = spec.judge or JudgeSpec(model=self.provenance.model)
        seed = sample_seed(spec.seed, f"judge of {sample.task}", sample.item, sample.repeat)
        return SampleRequest(
            prompt=call.prompt,
            parameters=SamplingParameters(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=seed if self._seeded else None,
            ),
        )

    async def ask(self, request: SampleRequest) -> SampleResponse:
        """Its reply. Raises WireError, and ServerGoneError for a failure that would last."""
        try:
            response = await self._sampler.sample(request)
        except _LASTING as error:
            raise ServerGoneError(
                f"the judge {self.provenance.model} cannot be asked",
                why=f"{error.message}: {error.why}" if error.why else error.message,
                fix="once that is fixed, resume the run: every answer is kept, and those without a "
                "judgement are judged then",
            ) from error
        if not response.completions:
            raise MalformedResponseError("the judge's reply has no completion")
        return response


def judgement_of(response: SampleResponse) -> str:
    """What the judge wrote, without its reasoning. Raises ScoringError if it was cut off."""
    completion = response.completions[0]
    if completion.finish_reason == "length":
        raise ScoringError(
            "the judge's reply was cut off",
            fix="give it more max_tokens, then score again: enginehouse rescore",
        )
    return separate_reasoning(completion.text).visible
