"""How far the sampling engine and the trainer disagree about what was sampled."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginehouse.tinker.data import Datum, LossRequest, LossResult


class KlFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Estimates of the KL divergence between sampling and training, in nats per token.

    `v1` is the mean of (sampled - trained) log-probabilities, `v2` half their mean square, over
    `positions` tokens: kl_sample_train_v1 and _v2 of the tinker-cookbook. Both are about 0 where
    the weights that sampled are those that are trained, and both engines compute alike.
    """

    v1: float
    v2: float
    positions: int

    def metrics(self, *, threshold: float) -> dict[str, float]:
        """What forward_backward reports.

        The SDK combines the chunks of a batch by the names' endings: the mean is weighted by the
        chunks' numbers of sequences, and a warning in one chunk is a warning.
        """
        return {
            "kl_sample_train_v1:mean": self.v1,
            "kl_sample_train_v2:mean": self.v2,
            "kl_sample_train_positions:sum": float(self.positions),
            "kl_warning:max": float(self.exceeds(threshold)),
        }

    def exceeds(self, threshold: float) -> bool:
        """Whether |v1| or v2 is above the threshold, or is not a number."""
        return not (abs(self.v1) <= threshold and self.v2 <= threshold)


def measure_kl(request: LossRequest, result: LossResult) -> KlFigures | None:
    """The figures of one request; None unless its loss is given sampled log-probabilities.

    The positions that count are those that the request marks as sampled, and those whose advantage
    is not 0, as advantage 0 masks what was not sampled.
    """
    differences = [
        (datum.inputs["logprobs"].astype(np.float64) - outputs["logprobs"])[_sampled(datum)]
        for datum, outputs in zip(request.data, result.outputs, strict=True)
        if "logprobs" in datum.inputs
    ]
    if not differences:
        return None
    difference = np.concatenate(differences)
    if not len(difference):
        return KlFigures(v1=0.0, v2=0.0, positions=0)
    return KlFigures(
        v1=float(np.mean(difference)),
        v2=float(0.5 * np.mean(np.square(difference))),
        positions=len(difference),
    )


def join_kl(figures: Sequence[KlFigures]) -> KlFigures:
    """The figures of all requests of a step together; there is at least one."""
    positions = sum(each.positions for each in figures)
    return KlFigures(
        v1=sum(each.v1 * each.positions for each in figures) / max(1, positions),
        v2=sum(each.v2 * each.positions for each in figures) / max(1, positions),
        positions=positions,
    )


def _sampled(datum: Datum) -> NDArray[np.bool_]:
    if "advantages" not in datum.inputs:
        return (
            np.ones(len(datum.tokens), dtype=np.bool_) if datum.sampled is None else datum.sampled
        )
    weighted: NDArray[np.bool_] = np.not_equal(datum.inputs["advantages"], 0)
    return weighted if datum.sampled is None else weighted | datum.sampled
