"""Which packages make up an environment of it."""

from __future__ import annotations

from importlib import resources

from enginehouse.provisioning.installation import Distribution, PythonPackage
from enginehouse.provisioning.plans import ANY
from enginehouse.provisioning.programs import PAYLOADS

INSTALLATION = PythonPackage(
    engine="lm-eval",
    default_version="0.4.13",
    describe_payload=PAYLOADS / "describe_lm_eval.py",
    variables=("ENGINEHOUSE_LM_EVAL_PYTHON",),
    requirements=resources.files(__package__) / "requirements",
    distributions={
        ANY: Distribution(
            package="lm-eval",
            # The served model's tokenizer needs transformers, and older ones sentencepiece and
            # protobuf; nothing needs torch. The extras are what the best-known tasks score with.
            besides=(
                "lm-eval[api,ifeval,math]",
                *("transformers", "sentencepiece", "protobuf"),
            ),
        )
    },
)
