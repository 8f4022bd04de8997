"""Language detection for IFEval's groups "language" and "change_case"."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from langdetect.detector_factory import DetectorFactory

# fmt: off
Language = Literal[
    "ar", "bg", "bn", "de", "en", "es", "fa", "fi", "fr", "gu", "he", "hi", "it", "ja", "kn",
    "ko", "ml", "mr", "ne", "pa", "pl", "pt", "ru", "sw", "ta", "te", "th", "uk", "ur", "vi",
]
# fmt: on
SHORTEST = 40  # letters
PLAINLY = 0.95


@functools.cache
def _factory() -> DetectorFactory:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    # Detection draws random numbers; a factory of its own leaves the library's global seed alone.
    factory.set_seed(0)
    return factory


@functools.lru_cache(maxsize=256)
def is_in(text: str, language: str) -> bool:
    """Whether langdetect identifies `text` as `language`; also True where it cannot decide.

    Takes milliseconds; the same text always gets the same verdict.
    """
    from langdetect.lang_detect_exception import LangDetectException

    detector = _factory().create()
    detector.append(text)
    try:
        return bool(detector.detect() == language)
    except LangDetectException:
        return True


@functools.lru_cache(maxsize=256)
def may_be_in(text: str, language: str) -> bool:
    """Whether a text that may be short, or in capitals, can be in `language`.

    langdetect misidentifies one short sentence in four, and takes capitals for German. So the
    language is required only of texts with at least SHORTEST letters; a shorter one must merely
    not be plainly English, which models fall back to, when another language was requested.
    """
    from langdetect.lang_detect_exception import LangDetectException

    text = text.lower()
    if sum(map(str.isalpha, text[: SHORTEST * 4])) >= SHORTEST:
        return is_in(text, language)
    detector = _factory().create()
    detector.append(text)
    try:
        guesses = {guess.lang: guess.prob for guess in detector.get_probabilities()}
    except LangDetectException:
        return True
    return language == "en" or guesses.get("en", 0.0) < PLAINLY
