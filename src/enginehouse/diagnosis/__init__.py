"""Why an engine failed, as far as its log says.

A log passes these modules in order: `lines` decodes and cleans it, `wrapping` rejoins lines that a
terminal broke, `order` reverses it if the newest line comes first, `prefixes` splits each line,
`events` finds tracebacks and errors, and `selection` chooses the cause with the engine's own rules
and the shared ones, then `guesses` and `endings`. What is peculiar to an engine's logs is a
`LogProfile` in that engine's folder.
"""

from enginehouse.diagnosis.endings import KERNEL
from enginehouse.diagnosis.explaining import explained
from enginehouse.diagnosis.kinds import READ_THE_LOG, Diagnosis, FailureKind
from enginehouse.diagnosis.profile import LogProfile, TwoBuilds
from enginehouse.diagnosis.reading import LogExplanation, diagnose_log, explain_log
from enginehouse.diagnosis.rule import Rule, Surroundings, groups, recognise
from enginehouse.diagnosis.rule_file import RuleFiles

__all__ = [
    "KERNEL",
    "READ_THE_LOG",
    "Diagnosis",
    "FailureKind",
    "LogExplanation",
    "LogProfile",
    "Rule",
    "RuleFiles",
    "Surroundings",
    "TwoBuilds",
    "diagnose_log",
    "explain_log",
    "explained",
    "groups",
    "recognise",
]
