"""Which packages make up an environment of it, in which version."""

from __future__ import annotations

from importlib import resources

from enginehouse.provisioning.installation import Distribution, PythonPackage
from enginehouse.provisioning.programs import PAYLOADS

INSTALLATION = PythonPackage(
    engine="sglang",
    default_version="0.5.23",
    describe_payload=PAYLOADS / "describe_sglang.py",
    variables=("ENGINEHOUSE_SGLANG_PYTHON",),
    requirements=resources.files(__package__) / "requirements",
    # gguf and accelerate read GGUF files; SGLang itself needs neither.
    distributions={"cuda": Distribution(package="sglang", besides=("gguf", "accelerate"))},
)
