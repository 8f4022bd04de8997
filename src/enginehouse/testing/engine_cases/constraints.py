"""Cases about answers that are constrained to a form."""

from __future__ import annotations

import json
import re

from enginehouse.core.sampler import Capability
from enginehouse.core.sampling import StructuredOutput
from enginehouse.testing.engine_cases.base import CITY, Subject, case, same, texts

_PAIR = ("zebra", "otter")
_NUMBER = "[0-9]{3}-[0-9]{4}"


@case(Capability.CHOICE)
async def structured_choice(subject: Subject) -> None:
    """A choice constrains the answer to one of its texts."""
    (text,) = texts(await subject.ask(structured=StructuredOutput(choice=_PAIR)))
    assert text in _PAIR, text


@case(Capability.CHOICE)
async def structured_choice_characters(subject: Subject) -> None:
    """A choice comes back unchanged: quotes, backslashes, characters of every plane."""
    wanted = 'say "hi"\\ é 日 👍'
    response = await subject.ask(structured=StructuredOutput(choice=(wanted,)), max_tokens=64)
    same(texts(response), [wanted])


@case(Capability.REGEX)
async def structured_regex(subject: Subject) -> None:
    """A regular expression constrains the whole answer to what it matches."""
    (text,) = texts(await subject.ask(structured=StructuredOutput(regex=_NUMBER)))
    assert re.fullmatch(_NUMBER, text), text


@case(Capability.GRAMMAR)
async def structured_grammar(subject: Subject) -> None:
    """A grammar constrains the answer to a text of its language."""
    grammar = f'root ::= "{_PAIR[0]}" | "{_PAIR[1]}"'
    (text,) = texts(await subject.ask(structured=StructuredOutput(grammar=grammar)))
    assert text in _PAIR, text


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
