"""A generic server's log, of which nothing is known: the rules that all engines share read it."""

from __future__ import annotations

import re

from enginehouse.diagnosis import LogProfile, Surroundings

PROFILE = LogProfile(
    name="generic",
    title="the server",
    marks=re.compile(r"(?!)"),
    words=Surroundings(rebuild="install again what the command runs"),
)
