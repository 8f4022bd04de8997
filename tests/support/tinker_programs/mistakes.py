"""What a user can do wrong: each gives an error, which is printed, and the session goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from lessons import answer, arguments, lessons, mean_nll, step

import tinker
from tinker import types

given = arguments()
data = lessons(given["model"])
errors: dict[str, dict[str, str]] = {}


def attempt(name: str, do: Callable[[], Any]) -> None:
    """Note how `do` fails."""
    try:
        outcome = do()
    except Exception as error:  # noqa: BLE001 (whatever the SDK raises is what a user sees)
        category = getattr(error, "category", None) or getattr(error, "status_code", "")
        errors[name] = {"error": str(error), "category": str(getattr(category, "value", category))}
    else:
        errors[name] = {"error": f"none: {outcome!r}"[:300], "category": ""}


def changed(**inputs: Any) -> list[types.Datum]:
    """The first lesson with other inputs."""
    one = data[0]
    return [
        types.Datum(model_input=one.model_input, loss_fn_inputs={**one.loss_fn_inputs, **inputs})
    ]


with tinker.ServiceClient() as service:
    client = service.create_lora_training_client(base_model=given["model"], rank=4, seed=2).result()
    first = mean_nll(data, client.forward(data, loss_fn="cross_entropy").result())
    length = data[0].model_input.length
    with_nan = np.ones(length, dtype=np.float32)
    with_nan[3] = np.nan
    outside = np.full(length, 10_000_000, dtype=np.int64)
    attempt(
        "unknown model",
        lambda: service.create_lora_training_client(base_model="nobody/has-this").result(),
    )
    attempt(
        "rank",
        lambda: service.create_lora_training_client(
            base_model=given["model"], rank=100_000
        ).result(),
    )
    for name, inputs in (
        ("nan", {"weights": with_nan}),
        ("vocabulary", {"target_tokens": outside}),
        ("lengths", {"weights": np.ones(length - 1, dtype=np.float32)}),
    ):
        attempt(
            name,
            lambda inputs=inputs: client.forward_backward(
                changed(**inputs), loss_fn="cross_entropy"
            ).result(),
        )
    attempt("after", lambda: client.optim_step(types.AdamParams()).result())
    attempt("loss", lambda: client.forward_backward(data, loss_fn="no_such_loss").result())
    attempt("after the loss", lambda: client.optim_step(types.AdamParams()).result())
    attempt("dots", lambda: client.save_state("../../outside").result())
    attempt(
        "foreign path",
        lambda: service.create_training_client_from_state(
            "tinker://not-a-run/weights/none"
        ).result(),
    )
    attempt(
        "escaping path",
        lambda: service.create_sampling_client(model_path="tinker://../../weights/etc").result(),
    )
    for name, path in given.get("paths", {}).items():
        attempt(name, lambda path=path: service.create_training_client_from_state(path).result())
    attempt(
        "too long",
        lambda: client.forward(
            [
                types.Datum(
                    model_input=types.ModelInput.from_ints([1] * 20_000),
                    loss_fn_inputs={
                        "target_tokens": [1] * 20_000,
                        "weights": [1.0] * 20_000,
                    },
                )
            ],
            loss_fn="cross_entropy",
        ).result(),
    )
    # the same client goes on, and nothing of the failed ones was applied
    again = mean_nll(data, step(client, data))
answer(errors=errors, first=first, again=again)
