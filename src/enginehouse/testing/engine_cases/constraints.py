"""Cases about answers that are constrained to a form."""

from __future__ import annotations

import json

from enginehouse.core.sampler import Capability
from enginehouse.core.sampling import StructuredOutput
from enginehouse.testing.engine_cases.base import CITY, Subject, case


@case(Capability.CHOICE)
async def structured_choice(subject: Subject) -> None:
    """A choice constrains the answer to one of its texts."""
    response = await subject.ask(structured=StructuredOutput(choice=("zebra", "otter")))
    assert response.completions[0].text in ("zebra", "otter"), response.completions[0].text


@case(Capability.JSON_SCHEMA)
async def structured_json(subject: Subject) -> None:
    """A JSON schema constrains the answer to an instance of it."""
    response = await subject.ask(structured=StructuredOutput(json_schema=CITY), max_tokens=64)
    written = response.completions[0].text
    try:
        value = json.loads(written)
    except ValueError:
        raise AssertionError(f"{written!r} is not JSON") from None
    assert value in ({"city": "Paris"}, {"city": "Rome"}), written
