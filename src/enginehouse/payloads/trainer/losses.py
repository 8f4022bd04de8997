"""The losses of the Tinker API: sums over positions, functions of the targets' log-probabilities.

All tensors are (n, K) float32: n positions of one request, in order, and K targets each (1 but for
cross_entropy). lp are the trained model's log-probabilities, q (the input `logprobs`) those that
the sampler gave, A the advantages, r = exp(lp - q), sg stops the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

_Inputs = Mapping[str, Tensor]
_Config = Mapping[str, float]
_HEAVIEST = 2.0  # stable_reinforce weighs no sample by more


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss: what each position adds to it, and what it takes beside target_tokens.

    `config` has its parameters' defaults. `by_sequence`: terms need the input `sequence_ratio`,
    which `sequence_ratio` makes of a whole sequence's log-probabilities. `spans`: they need the
    input `sampled`, 1 where a model sampled the target.
    """

    terms: Callable[[Tensor, _Inputs, _Config], Tensor]
    inputs: tuple[str, ...] = ("logprobs", "advantages")
    config: _Config = field(default_factory=dict)
    by_sequence: bool = False
    spans: bool = False
    several_targets: bool = False

    def evaluate(
        self, lp: Tensor, inputs: _Inputs, config: _Config, *, backward: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The sum of the terms, and with `backward` its gradient by lp, (n, K)."""
        lp = lp.detach().requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            total = self.terms(lp, inputs, config).sum()
        gradient = torch.autograd.grad(total, lp)[0] if backward else None
        return total.detach(), gradient


def sequence_ratio(lp: Tensor, inputs: _Inputs) -> Tensor:
    """The s of gspo, for one sequence: exp of the mean of lp - q over its mask; (n, 1)."""
    chosen = inputs["sequence_ratio_mask"] != 0
    if not chosen.any():
        return torch.ones_like(lp)
    return (lp - inputs["logprobs"])[chosen].mean().exp().expand_as(lp)


def _ratio(lp: Tensor, inputs: _Inputs) -> Tensor:
    # An advantage of 0 masks a position, whatever its q: exp must not overflow there.
    return (lp - inputs["logprobs"]).where(inputs["advantages"] != 0, 0.0).exp()


def _clipped(ratio: Tensor, config: _Config) -> Tensor:
    return ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])


def _pessimistic(ratio: Tensor, inputs: _Inputs, config: _Config) -> Tensor:
    advantages = inputs["advantages"]
    return -torch.minimum(ratio * advantages, _clipped(ratio, config) * advantages)


def _cross_entropy(lp: Tensor, inputs: _Inputs, _: _Config) -> Tensor:
    """-w lp."""
    return -inputs["weights"] * lp


def _importance_sampling(lp: Tensor, inputs: _Inputs, _: _Config) -> Tensor:
    """-r A."""
    return -_ratio(lp, inputs) * inputs["advantages"]


def _ppo(lp: Tensor, inputs: _Inputs, config: _Config) -> Tensor:
    """-min(r A, clip(r) A)."""
    return _pessimistic(_ratio(lp, inputs), inputs, config)


def _cispo(lp: Tensor, inputs: _Inputs, config: _Config) -> Tensor:
    """-sg(clip(r)) lp A."""
    return -_clipped(_ratio(lp, inputs), config).detach() * lp * inputs["advantages"]


def _dro(lp: Tensor, inputs: _Inputs, config: _Config) -> Tensor:
    """-(lp A - ½ beta (lp - q)²), at every position: an advantage of 0 does not mask the square."""
    square = (lp - inputs["logprobs"]).square()
    return -(lp * inputs["advantages"] - 0.5 * config["beta"] * square)


def _gspo(lp: Tensor, inputs: _Inputs, config: _Config) -> Tensor:
    """-min(s A, clip(s) A), where s is the sequence's ratio with this position's gradient."""
    ratio = inputs["sequence_ratio"] * (lp - lp.detach()).exp()
    return _pessimistic(ratio, inputs, config)


def _stable_reinforce(lp: Tensor, inputs: _Inputs, config: _Config) -> Tensor:
    """-sg(min(r, 2)) A lp + kl_coeff ½ (lp - q)², where a model sampled the target."""
    difference = (lp - inputs["logprobs"]).where(inputs["sampled"] != 0, 0.0)
    weight = difference.exp().clamp(max=_HEAVIEST).detach()
    reinforced = -weight * inputs["advantages"] * lp
    return (reinforced + 0.5 * config["kl_coeff"] * difference.square()) * inputs["sampled"]


_CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
LOSSES: Mapping[str, Loss] = {
    "cross_entropy": Loss(terms=_cross_entropy, inputs=("weights",), several_targets=True),
    "importance_sampling": Loss(terms=_importance_sampling),
    "ppo": Loss(terms=_ppo, config=_CLIP),
    "cispo": Loss(terms=_cispo, config={"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}),
    "dro": Loss(terms=_dro, config={"beta": 0.05}),
    "gspo": Loss(
        terms=_gspo,
        inputs=("logprobs", "advantages", "sequence_ratio_mask"),
        config=_CLIP,
        by_sequence=True,
    ),
    "stable_reinforce": Loss(terms=_stable_reinforce, config={"kl_coeff": 0.0}, spans=True),
}
