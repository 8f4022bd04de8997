"""What the gateway reads of a request's body. Everything else in it passes as it came."""

from __future__ import annotations

from typing import Any

import msgspec

from enginehouse.core.errors import BadRequestError
from enginehouse.core.sampling import SamplingParameters
from enginehouse.dialects.openai_bodies import SCORE_FIELDS, scores_asked


class Body(msgspec.Struct):
    """The fields of a request that decide how it is forwarded; all others are left alone."""

    model: str | None = None
    stream: bool | None = None
    echo: bool | None = None
    logprobs: Any = None
    top_logprobs: Any = None
    prompt_logprobs: int | None = None
    logprob_token_ids: Any = None

    @property
    def scores(self) -> SamplingParameters:
        """The log-probabilities that it asks for."""
        return scores_asked({name: getattr(self, name) for name in SCORE_FIELDS})


_body = msgspec.json.Decoder(Body)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_body(body: bytes) -> Body:
    """The fields of a body. Raises BadRequestError for one that is not a JSON object."""
    try:
        return _body.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequestError(
            "a field of the request's body has the wrong type", why=str(error), status=400
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(
            "the request's body is not JSON",
            why=str(error) if body else "it is empty",
            fix="send a JSON object, such as "
            '{"model": "…", "messages": [{"role": "user", "content": "…"}]}',
            status=400,
        ) from None


def with_model(body: bytes, model: str) -> bytes:
    """The same body with another model; every other field keeps its bytes."""
    fields = _fields.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)
