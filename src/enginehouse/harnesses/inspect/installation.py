"""Which packages make up an environment of it."""

from __future__ import annotations

from importlib import resources

from enginehouse.provisioning.installation import Distribution, PythonPackage
from enginehouse.provisioning.plans import ANY
from enginehouse.provisioning.programs import PAYLOADS

INSTALLATION = PythonPackage(
    engine="inspect",
    default_version="0.3.285",
    describe_payload=PAYLOADS / "describe_inspect.py",
    variables=("ENGINEHOUSE_INSPECT_PYTHON",),
    requirements=resources.files(__package__) / "requirements",
    distributions={
        ANY: Distribution(
            package="inspect-ai",
            # openai is what Inspect asks the gateway with, and math what tasks of
            # mathematics score with.
            besides=("openai", "inspect-evals[math]"),
        )
    },
)
