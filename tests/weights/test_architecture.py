"""What a configuration may say otherwise than the served one, and what it may not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.core.errors import ModelError
from enginehouse.weights.checkpoint import checked_digest

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
GEMMA4 = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None}
GEMMA5 = {
    "rope_theta": None,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


def five(theta: float, **more: Any) -> dict[str, Any]:
    """As transformers 5 writes it."""
    given = {"rope_type": "default", "rope_theta": theta} | more
    return {"rope_parameters": given, "rope_theta": None}


@pytest.fixture
def check(layout, tmp_path):
    """Take the one configuration in the other's place."""

    def checked(new: dict[str, Any], old: dict[str, Any], **files: str) -> None:
        folders = []
        for name, config in (("new", new), ("old", old)):
            folder = write_checkpoint(tmp_path / name, **config)
            whole = json.loads((folder / "config.json").read_text())
            kept = {key: value for key, value in whole.items() if value != "absent"}
            (folder / "config.json").write_text(json.dumps(kept))
            folders.append(folder)
        for name, text in files.items():
            (folders[1] / f"{name}.json").write_text(text)
        checked_digest(folders[0], served=folders[1], layout=layout)

    return checked


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, {}, "rope_parameters.factor"),
        ({"sliding_window": 4}, {}, "sliding_window is"),
        ({"sliding_window": 4, "use_sliding_window": True}, {"sliding_window": None}, "sliding_"),
        ({"rope_theta": 500000.0}, five(10000.0), "rope_parameters.rope_theta"),
        ({"rope_scaling": LLAMA3}, five(10000.0, **LLAMA3 | {"factor": 4.0}), "s.factor"),
        (GEMMA4 | {"rope_local_base_freq": 2e4}, GEMMA5, "rope_parameters.rope_theta"),
        (GEMMA4, GEMMA5 | {"rope_theta": 1e4, "rope_parameters": None}, "rope_parameters"),
        ({"final_logit_softcapping": 30.0}, {}, "final_logit_softcapping"),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, "quantization_config"),
        ({"text_config": {"rms_norm_eps": 1e-5}}, {"text_config": {"rms_norm_eps": 1e-6}}, "t_c"),
    ],
)
def test_what_is_computed_otherwise_is_refused(check, one, other, name):
    """Whichever of the two says it: what the other lacks is off there."""
    name = name.replace("t_c", "text_config.rms_norm_eps")
    for new, old in ((one, other), (other, one)):
        with pytest.raises(ModelError, match="architecture") as caught:
            check(new, old)
        assert name in caught.value.why
        assert caught.value.fix


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, five(10000.0)),
        ({"rope_scaling": LLAMA3}, five(10000.0, **LLAMA3)),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, five(1e4, rope_type="yarn", factor=4)),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, five(1e4, mrope_section=[1])),
        (GEMMA4, GEMMA5),
        ({"rope_theta": "absent"}, five(500000.0)),
        ({"sliding_window": None}, {}),
        ({"sliding_window": 4, "use_sliding_window": False}, {"sliding_window": None}),
        ({"attention_bias": False, "mlp_bias": False, "layer_types": ["full_attention"]}, {}),
        ({"attention_dropout": 0.1, "resid_pdrop": 0.1}, {"attention_dropout": 0.0}),
        ({"text_config": {"dtype": "float32", "x": 1}}, {"text_config": {"dtype": "bfloat16"}}),
        ({"logits_scaling": 1.0, "alibi": False}, {}),
    ],
)
def test_what_only_another_version_writes_is_taken(check, one, other):
    """Transformers 4 and 5 put the same into other words; training's own settings do not matter."""
    check(one, other)
    check(other, one)


@pytest.mark.parametrize("new", [3, [3], [2, 3], "absent"])
def test_an_end_token_that_the_server_knows(check, new):
    """Its own, or one of its generation_config.json; a number is a list of one."""
    check({"eos_token_id": new}, {"eos_token_id": [2, 3]})
    check({"eos_token_id": new}, {"eos_token_id": 2}, generation_config='{"eos_token_id": [3]}')
    check({"eos_token_id": new}, {})


@pytest.mark.parametrize("new", [7, [3, 7]])
def test_an_end_token_that_the_server_does_not_know(check, new):
    """It would never stop."""
    with pytest.raises(ModelError, match="token") as caught:
        check({"eos_token_id": new}, {"eos_token_id": 3}, generation_config="[]")
    assert caught.value.fix


def write_template(folder, text: str | None, where: str) -> None:
    """Put a chat template where savers do."""
    if text is not None and where == "tokenizer_config.json":
        (folder / where).write_text(json.dumps({"chat_template": text}))
    elif text is not None:
        (folder / where).write_text(text)


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.parametrize("old", ["{{ old }}", None])
def test_another_chat_template_is_refused(layout, tmp_path, where, old):
    """Every answer would be to the served one's prompt; none, or the same elsewhere, is fine."""
    served, other = (write_checkpoint(tmp_path / name) for name in ("served", "other"))
    write_template(served, old, "tokenizer_config.json")
    assert checked_digest(other, served=served, layout=layout)
    if old is not None:
        write_template(other, old, where)
        assert checked_digest(other, served=served, layout=layout)
    write_template(other, "{{ new }}", where)
    with pytest.raises(ModelError, match="chat template") as caught:
        checked_digest(other, served=served, layout=layout)
    assert caught.value.fix


def test_a_chat_template_that_is_no_text(layout, tmp_path):
    """It is refused in words."""
    served, other = (write_checkpoint(tmp_path / name) for name in ("served", "other"))
    (other / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="chat template"):
        checked_digest(other, served=served, layout=layout)
