"""Chooses the kind of batch for a model, by trying it on the model itself."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from hf_server.model import Model, text_config
from hf_server.padded import PaddedBatch
from hf_server.requests import Sampling
from hf_server.rows import Job, Row, Sequence
from hf_server.slots import ATTENTION, SlotBatch
from hf_server.text import Vocabulary

LOG = logging.getLogger("hf_server")
Batch = SlotBatch | PaddedBatch
_LENGTHS = (5, 9, 2)
_TOLERANCE = 0.05  # of the logits' size; bfloat16 alone gives 0.01


@torch.inference_mode()
def make_batch(model: Model, vocabulary: Vocabulary, *, most_rows: int, chunk: int) -> Batch:
    """A batch with slots if it gives the model's own logits, otherwise one that runs to completion.

    A few short forward passes; on a GPU they also load its kernels.
    """
    problem = _unfit(model)
    if problem is None:
        sequences = _samples(model, vocabulary)
        expected = _logits(PaddedBatch(model), sequences)
        before = model.module.config._attn_implementation  # noqa: SLF001 - it has no public name
        model.module.set_attn_implementation(ATTENTION)
        batch = SlotBatch(model, most_rows=most_rows, chunk=chunk)
        try:
            found = _logits(batch, _samples(model, vocabulary))
            error = float((found - expected).norm() / expected.norm())
            if error < _TOLERANCE:
                return batch
            problem = f"its logits would be {error:.0%} off"
        except (RuntimeError, TypeError, ValueError, AttributeError) as failure:
            problem = f"{type(failure).__name__}: {failure}"
        model.module.set_attn_implementation(before)
    LOG.warning("batches run to completion, and no request joins a running one: %s", problem)
    return PaddedBatch(model)


def _unfit(model: Model) -> str | None:
    if not getattr(model.module, "_supports_attention_backend", False):
        return "the model's code brings its own attention"
    layers = DynamicCache(config=text_config(model.module)).layers
    if any(type(layer) is not DynamicLayer for layer in layers):
        return "its layers are not all plain full attention"
    return None


def _samples(model: Model, vocabulary: Vocabulary) -> list[Sequence]:
    job = Job.__new__(Job)
    job.stream = False
    made = []
    for length in _LENGTHS:
        ids = [(7919 * (place + length)) % model.vocabulary_size for place in range(length)]
        row = Row(
            job,
            index=0,
            prompt=ids,
            sampling=Sampling(),
            most=4,
            vocabulary=vocabulary,
            adapter=None,
        )
        made.append(Sequence(job, ids, [row], None))
    return made


def _logits(batch: Batch, sequences: list[Sequence]) -> Tensor:
    """Logits of the prompts' ends and of one more step, after a row has left."""
    first = batch.prefill(sequences)
    for sequence in sequences:
        sequence.rows[0].ids.append(sequence.ids[0])
    batch.leave(sequences[0].rows[0])
    second = batch.decode()
    order = [batch.rows.index(sequence.rows[0]) for sequence in sequences[1:]]
    for sequence in sequences[1:]:
        batch.leave(sequence.rows[0])
    return torch.cat([first, second[order]]).float()
