"""Why an engine failed, as far as its log says.

`lines` reads text, `order` turns it round where the newest line comes first, `prefixes` takes
lines apart, `events` finds tracebacks and errors, and `selection` chooses the cause with `rules`
and the engine's own, `guesses` and `endings`.
What is peculiar to an engine's logs is a `LogProfile` beside that engine.
"""

from enginehouse.diagnosis.explaining import explained
from enginehouse.diagnosis.kinds import READ_THE_LOG, Diagnosis, FailureKind
from enginehouse.diagnosis.profile import LogProfile
from enginehouse.diagnosis.reading import LogExplanation, diagnose_log, explain_log
from enginehouse.diagnosis.rule import Rule, Surroundings, groups, recognise
from enginehouse.diagnosis.rule_file import read_rules

__all__ = [
    "READ_THE_LOG",
    "Diagnosis",
    "FailureKind",
    "LogExplanation",
    "LogProfile",
    "Rule",
    "Surroundings",
    "diagnose_log",
    "explain_log",
    "explained",
    "groups",
    "read_rules",
    "recognise",
]
