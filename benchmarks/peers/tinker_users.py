"""Times forward_backward of users of a Tinker service: MODEL RANK USERS SEQUENCES LENGTH.

Run by a Python with the real SDK; TINKER_BASE_URL and TINKER_API_KEY name the service. Every line
on standard input is one measurement: "together" sends all users' requests at once, "in turn" one
after the other, "one" only the first one's. Each is answered with a line, the seconds that it took.
"""

from __future__ import annotations

import sys
import time

import tinker
from tinker import types


def main() -> None:
    """Make the users' adapters, then measure as often as asked."""
    model = sys.argv[1]
    rank, users, sequences, length = map(int, sys.argv[2:])
    services = [tinker.ServiceClient() for _ in range(users)]
    clients = [
        service.create_lora_training_client(base_model=model, rank=rank).result()
        for service in services
    ]
    size = length + 1
    rows = [[token % 40_000 for token in range(n * size, (n + 1) * size)] for n in range(sequences)]
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(row[:-1]),
            loss_fn_inputs={"target_tokens": row[1:], "weights": [1.0] * length},
        )
        for row in rows
    ]
    print("ready", flush=True)
    for line in sys.stdin:
        chosen = clients[:1] if line.strip() == "one" else clients
        began = time.perf_counter()
        if line.strip() == "together":
            futures = [client.forward_backward(data, "cross_entropy") for client in chosen]
            for future in futures:
                future.result()
        else:
            for client in chosen:
                client.forward_backward(data, "cross_entropy").result()
        seconds = time.perf_counter() - began
        for client in chosen:  # the gradients go, as they do after the peer's
            client.optim_step(types.AdamParams(learning_rate=0.0)).result()
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
