"""A user's script on the openai SDK: COUNT questions, four at a time, without its retries."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI

count = int(sys.argv[1])
client = OpenAI(max_retries=0)
model = client.models.list().data[0].id
assert model == os.environ["OPENAI_MODEL"]


def ask(number: int) -> str:
    """The answer to question `number`, on one line."""
    question = f"Question {number}: what is the capital of France?"
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=8,
        temperature=0,
    )
    return (reply.choices[0].message.content or "").replace("\n", " ")


with ThreadPoolExecutor(4) as pool:
    for number, answer in enumerate(pool.map(ask, range(count))):
        sys.stdout.write(f"{number} {answer}\n")
        sys.stdout.flush()
