"""IFEval's group "language", and the language detection that "change_case" shares."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

from enginehouse.tasks.instruction_checkers.base import Checker

if TYPE_CHECKING:
    from langdetect.detector_factory import DetectorFactory

# fmt: off
Language = Literal[
    "ar", "bg", "bn", "de", "en", "es", "fa", "fi", "fr", "gu", "he", "hi", "it", "ja", "kn",
    "ko", "ml", "mr", "ne", "pa", "pl", "pt", "ru", "sw", "ta", "te", "th", "uk", "ur", "vi",
]
# fmt: on


@functools.cache
def _factory() -> DetectorFactory:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    # Detection draws random numbers. An own factory leaves the library's global seed alone.
    factory.set_seed(0)
    return factory


@functools.lru_cache(maxsize=256)
def is_in(text: str, language: str) -> bool:
    """Whether langdetect takes `text` for `language`; also True where it can tell nothing.

    Takes milliseconds; the same text always gets the same verdict.
    """
    from langdetect.lang_detect_exception import LangDetectException

    detector = _factory().create()
    detector.append(text)
    try:
        return bool(detector.detect() == language)
    except LangDetectException:
        return True


class ResponseLanguage(Checker, frozen=True, kw_only=True):
    """The whole response is in a language, named by its ISO 639-1 code."""

    language: Language

    def follows(self, response: str) -> bool:
        """Whether the language is detected, or none can be."""
        return is_in(response, self.language)
