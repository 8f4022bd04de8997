"""payloads/trainer: what is answered when something fails, by an engine that fails as told."""

from __future__ import annotations

import logging

import numpy as np
import pytest


@pytest.fixture
def serving(payload_module):
    """The module that answers calls."""
    return payload_module("trainer.serving")


class Engine:
    """Raises `error` for several requests together, for one of the model `bad`, and in a save."""

    def __init__(self, error: Exception, *, bad: str = "") -> None:
        self.error, self.bad = error, bad
        self.asked = []

    def compute(self, requests):
        """See the class."""
        self.asked.append([request.model_id for request in requests])
        if len(requests) > 1 or requests[0].model_id == self.bad:
            raise self.error
        return [self._result(request) for request in requests]

    def save(self, model_id, folder, *, state):
        """See the class."""
        raise self.error

    def _result(self, request):
        return self.results.LossResult(outputs=(), metrics={"loss:sum": 1.0})


@pytest.fixture
def ask(serving, payload_module):
    """Computes losses of models by a given engine, and returns the reply."""
    data, messages = payload_module("trainer.data"), payload_module("trainer.messages")

    def compute(engine: Engine, *models: str):
        engine.results = data
        requests = tuple(
            data.LossRequest(model_id=model, loss="cross_entropy", data=()) for model in models
        )
        return serving.answer(engine, messages.Compute(requests=requests))

    return compute


def test_failing_batch_is_computed_one_by_one(ask, caplog):
    """So a request that needs too much memory fails alone, and the log has the traceback."""
    engine = Engine(MemoryError("no room\nfor this"), bad="b")
    with caplog.at_level(logging.ERROR):
        reply = ask(engine, "a", "b", "c")
    assert engine.asked == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    first, second, third = reply.value
    assert first.result.metrics == third.result.metrics == {"loss:sum": 1.0}
    assert second.failure.category == "server"
    assert second.failure.message == "the trainer's compute failed"
    assert second.failure.why == "MemoryError: no room"
    assert [record.exc_info[1] for record in caplog.records] == [engine.error, engine.error]


def test_broken_gpu_ends_the_process(ask):
    """After an error of the device itself all calls fail, so a new process is needed."""
    with pytest.raises(SystemExit):
        ask(Engine(RuntimeError("CUDA error: device-side assert triggered"), bad="a"), "a")
    reply = ask(Engine(RuntimeError("CUDA out of memory."), bad="a"), "a")
    assert reply.value[0].failure.category == "server"


def test_full_disk_blames_the_server(serving, payload_module, tmp_path):
    """The system's own words, without a traceback."""
    messages = payload_module("trainer.messages")
    save = messages.Save(model_id="a", folder=tmp_path, state=True)
    reply = serving.answer(Engine(OSError(28, "No space left on device", "/x")), save)
    assert reply.failure.category == "server"
    assert reply.failure.why == "No space left on device (/x)"
    error = payload_module("trainer.errors").RequestError("no such model")
    reply = serving.answer(Engine(error), save)
    assert (reply.failure.category, reply.failure.message) == ("user", "no such model")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.array([0.1, np.nan, -np.inf], np.float32),
        np.array([True, False]),
        np.zeros((0, 4), np.float32),
    ],
)
def test_tensors_keep_every_bit(payload_module, array):
    """From the service's messages to the payload's and back."""
    from enginehouse.tinker.data import Datum, LossRequest, LossResult
    from enginehouse.tinker.trainers import messages as ours

    theirs = payload_module("trainer.messages")
    datum = Datum(tokens=np.arange(3, dtype=np.int32), inputs={"x": array}, sampled=None)
    request = LossRequest(model_id="a", loss="dro", data=(datum,), config={"beta": 0.1, "b": "c"})
    call = theirs.decode_call(ours.encode(ours.Compute(requests=(request,))))
    (read,) = call.requests
    assert (read.config, read.backward) == ({"beta": 0.1, "b": "c"}, True)
    received = read.data[0].inputs["x"]
    assert received.flags.writeable
    result = payload_module("trainer.data").LossResult(
        outputs=({"x": received},), metrics={"loss:sum": 1.5}
    )
    outcome = ours.decode(theirs.encode(theirs.Outcome(result=result)), kind=ours.Outcome)
    value = outcome.value()
    assert isinstance(value, LossResult)
    (output,) = value.outputs
    assert output["x"].dtype == array.dtype
    np.testing.assert_array_equal(output["x"], array)
