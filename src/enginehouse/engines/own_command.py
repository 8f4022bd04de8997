"""How an engine's server is started without Enginehouse, which is how launch files have it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class OwnCommand:
    """An engine's own command line; whatever it does not have is left out.

    `program` are the words before the model, and `start` matches them, without the model, at the
    beginning of a command that starts the engine. `flags` has the flag for a key of a deployment
    (`tensor_parallel_size`, `port` …), and `spellings` the key for each other flag that means the
    same. `removed_flags` are those of earlier versions, and what to do instead. `variables` are
    the beginnings of the environment variables that are its settings. `by_user`: the deployment's
    `command` is what starts the server, and is not read.
    """

    program: tuple[str, ...] = ()
    start: re.Pattern[str] | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    spellings: Mapping[str, str] = field(default_factory=dict)
    removed_flags: Mapping[str, str] = field(default_factory=dict)
    variables: tuple[str, ...] = ()
    by_user: bool = False

    def key_of(self, flag: str) -> str | None:
        """The key of a deployment that says the same as a flag; None if there is none."""
        keys = {own: key for key, own in self.flags.items()}
        return keys.get(flag) or self.spellings.get(flag)

    def words(self, model: str, values: Mapping[str, object]) -> tuple[str, ...]:
        """The command for a model and the values of some keys.

        None and the values of keys without a flag are left out.
        """
        flags = [
            word
            for key, value in values.items()
            if key in self.flags and value is not None
            for word in (self.flags[key], str(value))
        ]
        return (*self.program, model, *flags)
