"""Whether a call is what BFCL expects, by the original's rules.

Source: bfcl-eval 2026.3.23, `eval_checker/ast_eval/ast_checker.py` (Apache-2.0), for Python. Its
oddities are kept, since published scores have them: a list nested deeper than one level has its
inner types unchecked; "" among a parameter's answers says that it may be left out, and for a list
also lets an empty one pass; a value whose type is that of the first answer, rather than the
documented one, is taken for a variable and compared as it is; 1, 1.0 and True are equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_TYPES: Final[Mapping[str, type]] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_NESTED: Final = ("array", "tuple")
_IGNORED: Final = re.compile(r"[ ,./\-_*^]")
_LEFT_OUT: Final = ""


def matches(
    function: Mapping[str, Any],
    *,
    name: str,
    arguments: Mapping[str, Any],
    answers: Mapping[str, Sequence[Any]],
) -> bool:
    """Whether a call of `function` (in BFCL's own schema) has a right value everywhere."""
    properties = function["parameters"]["properties"]
    if name != function["name"]:
        return False
    if any(parameter not in arguments for parameter in function["parameters"]["required"]):
        return False
    for parameter, value in arguments.items():
        if parameter not in properties or parameter not in answers:
            return False
        if not _value_matches(properties[parameter], value, answers[parameter]):
            return False
    return all(name in arguments or _LEFT_OUT in allowed for name, allowed in answers.items())


def _value_matches(described: Mapping[str, Any], value: Any, answers: Sequence[Any]) -> bool:
    kind = _TYPES[described["type"]]
    nested = _TYPES[described["items"]["type"]] if described["type"] in _NESTED else None
    if described["type"] == "float" and type(value) is int:
        value = float(value)
    if not _type_matches(value, kind, nested, answers):
        return False
    if _is_variable(value, kind, answers):
        return value in answers
    return _equals(value, kind, nested, answers)


def _equals(value: Any, kind: type, nested: type | None, answers: Sequence[Any]) -> bool:
    if kind is dict:
        return _dict_matches(value, answers)
    if kind is list and nested is dict:
        return any(_dicts_match(value, answer) for answer in answers)
    if kind is str:
        return _plain(value) in [_plain(answer) for answer in answers if isinstance(answer, str)]
    if kind is list:
        return [_plain(v) for v in value] in [[_plain(v) for v in answer] for answer in answers]
    return value in answers


def _type_matches(value: Any, kind: type[Any], nested: type | None, answers: Sequence[Any]) -> bool:
    if type(value) is not kind:
        return type(value) is _answer_type(answers)
    return nested is None or any(
        not isinstance(answer, list)
        or all(_type_matches(item, nested, None, answer) for item in list(value))
        for answer in answers
    )


def _is_variable(value: Any, kind: type, answers: Sequence[Any]) -> bool:
    return type(value) is not kind or _answer_type(answers) not in (None, kind)


def _answer_type(answers: Sequence[Any]) -> type | None:
    return next((type(answer) for answer in answers if answer != _LEFT_OUT), None)


def _dict_matches(value: Mapping[str, Any], answers: Sequence[Any]) -> bool:
    return any(answer != _LEFT_OUT and _keys_match(value, answer) for answer in answers)


def _keys_match(value: Any, answer: Mapping[str, Any]) -> bool:
    if not isinstance(value, dict):
        return False
    for key, item in value.items():
        if key not in answer or _plain(item) not in [_plain(a) for a in answer[key]]:
            return False
    return all(key in value or _LEFT_OUT in allowed for key, allowed in answer.items())


def _dicts_match(value: Sequence[Any], answer: Sequence[Any]) -> bool:
    if len(value) != len(answer):
        return False
    return all(
        _dict_matches(item, [expected]) for item, expected in zip(value, answer, strict=True)
    )


def _plain(value: Any) -> Any:
    """A text without what does not matter; anything else as it is."""
    if not isinstance(value, str):
        return value
    return _IGNORED.sub("", value).lower().replace("'", '"')
