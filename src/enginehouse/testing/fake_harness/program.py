"""The fake harness's program: asks, scores and reports with Python's own library.

Arguments of its tasks make it misbehave: `end_after` N answers it ends with status 3, or by a
signal if `by_signal` is true, once in a folder; it records `failed` items as failed, and `hangs`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from enginehouse.payloads.harness_reports import Failure, Reports, run, write_whole

SIZE = 12
PARTS = {
    "sums": ("sums",),
    "lengths": ("lengths",),
    "both": ("sums", "lengths"),
    "measures": ("lengths",),
    "all": ("sums", "lengths"),
    "brief": ("sums",),
}


class Runner:
    """One run of the program."""

    def __init__(self, request: dict[str, Any], reports: Reports) -> None:
        self.request = request
        self.reports = reports
        self.arguments = request["arguments"]
        self.marker = Path(request["folder"]) / "has-ended-once"
        self.answered = 0

    def ask(self, prompt: str) -> tuple[str, bool]:
        """The model's answer, and whether it ended at the token limit."""
        request = self.request
        messages = [{"role": "user", "content": prompt}]
        if request["system"]:
            messages.insert(0, {"role": "system", "content": request["system"]})
        body = {
            "model": request["model"],
            "messages": messages,
            "temperature": request["temperature"] or 0.0,
            "max_tokens": request["max_tokens"] or 16,
        }
        content = self.send("POST", "/v1/chat/completions", json.dumps(body))
        choice = content["choices"][0]
        self.answered += 1
        self.misbehave()
        return choice["message"]["content"], choice["finish_reason"] == "length"

    def send(self, method: str, path: str, body: str | None = None) -> Any:
        """The content of the reply to a request."""
        address = urlsplit(self.request["url"])
        connection = HTTPConnection(address.hostname or "", address.port, timeout=60)
        with closing(connection):
            headers = {
                "Authorization": f"Bearer {self.request['api_key']}",
                "Content-Type": "application/json",
            }
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            content = json.load(reply)
        if reply.status != HTTPStatus.OK:
            raise Failure(f"the model answered with status {reply.status}", why=str(content))
        return content

    def misbehave(self) -> None:
        """End, if it is time to."""
        limit = self.arguments.get("end_after")
        if limit is None or self.answered < limit or self.marker.exists():
            return
        self.marker.touch()
        if self.arguments.get("by_signal"):
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(3)

    def part(self, name: str) -> dict[str, Any]:
        """Ask and score every item of a task."""
        count = min(self.request["limit"] or SIZE, SIZE)
        repeats = self.request["samples"] or 1
        total = count * repeats
        self.reports.progress(name, 0, total)
        while self.arguments.get("hangs"):
            time.sleep(1)
        samples: list[dict[str, Any]] = []

        def one(place: tuple[int, int]) -> dict[str, Any]:
            return self.sample(name, *place)

        places = [(item, repeat) for item in range(count) for repeat in range(repeats)]
        with ThreadPoolExecutor(self.request["concurrency"]) as pool:
            for sample in pool.map(one, places):
                samples.append(sample)
                self.reports.progress(name, len(samples), total)
        return self.result(name, samples)

    def sample(self, name: str, item: int, repeat: int) -> dict[str, Any]:
        """One item's sample."""
        prompt = f"{item} + 1 = ?" if name == "sums" else f"Say something about {item}."
        place = {"item": f"{name}-{item}", "position": item, "repeat": repeat, "prompt": prompt}
        if item in self.arguments.get("failed", ()):
            return {**place, "failure": "it was told to fail"}
        answer, truncated = self.ask(prompt)
        place["truncated"] = truncated
        if name == "lengths":
            return {
                **place,
                "answer": answer,
                "measures": {"words": {"value": len(answer.split())}},
            }
        correct = str(item + 1) in answer.split()
        return {
            **place,
            "answer": answer,
            "target": str(item + 1),
            "outcome": "correct" if correct else "wrong",
            "measures": {"exact": {"value": float(correct)}},
        }

    def result(self, name: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """What is reported of one task."""
        metric = "exact" if name == "sums" else "words"
        values = [s["measures"][metric]["value"] for s in samples if "measures" in s]
        mean = sum(values) / len(values) if values else 0.0
        spread = sum((value - mean) ** 2 for value in values)
        error = (spread / len(values) / max(1, len(values) - 1)) ** 0.5 if values else None
        settings = {key: self.request[key] for key in ("system", "temperature", "max_tokens")}
        configuration = json.dumps([name, settings], sort_keys=True).encode()
        return {
            "task": name,
            "harness": "fake",
            "harness_version": "1.0",
            "task_version": "2.1",
            "configuration_digest": hashlib.sha256(configuration).hexdigest(),
            "headline": metric,
            "metrics": [
                {
                    "name": metric,
                    "value": mean,
                    "standard_error": error,
                    "higher_is_better": name == "sums",
                }
            ],
            "samples": samples,
            "full_size": SIZE,
            "source": "made here",
            "licence": "CC0-1.0",
        }


def main(request: dict[str, Any], reports: Reports) -> None:
    """Run the tasks, and write their results."""
    runner = Runner(request, reports)
    if request["arguments"].get("gated"):
        raise Failure("the data set is gated", kind="gated_data", fix="ask its owners")
    runner.send("GET", "/v1/models")  # as many programs do first
    results = []
    for task in request["tasks"]:
        parts = [runner.part(name) for name in PARTS[task]]
        if task not in PARTS[task]:
            group = {
                **parts[0],
                "task": task,
                "samples": [],
                "full_size": None,
                "subtasks": [part["task"] for part in parts],
            }
            results.append(group)
        results += parts
    write_whole(Path(request["folder"]) / "results.json", json.dumps(results))


if __name__ == "__main__":
    run(main)
