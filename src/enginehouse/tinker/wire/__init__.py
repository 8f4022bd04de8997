"""The bodies of the Tinker API: from bytes to what the service computes with, and back.

Numbers keep their bits: tensors are views of the bytes that came, and bytes of the arrays that go.
"""

from enginehouse.tinker.wire.checks import LOSSES, require_valid_data
from enginehouse.tinker.wire.loss import (
    LossIdentity,
    decode_loss_request,
    encode_loss_result,
    identify_loss_request,
)
from enginehouse.tinker.wire.sample import decode_sample_request, encode_sampled

__all__ = [
    "LOSSES",
    "LossIdentity",
    "decode_loss_request",
    "decode_sample_request",
    "encode_loss_result",
    "encode_sampled",
    "identify_loss_request",
    "require_valid_data",
]
