"""SGLang's launcher: what it keeps out of the logs."""

from __future__ import annotations

import logging

import pytest

from enginehouse.payloads.serve_sglang import star_out


@pytest.fixture(autouse=True)
def the_same_records_as_before():
    """The factory of log records is the process's."""
    make = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(make)


def test_keys_are_starred_wherever_they_stand(caplog: pytest.LogCaptureFixture):
    """In the message and in its arguments; arguments without one stay for those who read them."""
    star_out("sk-secret")
    log = logging.getLogger("sglang")
    log.warning("100%% of api_key='sk-secret' and %s", "sk-secret")
    log.warning("%s asked %d times", "somebody", 2)
    first, second = caplog.records
    assert first.getMessage() == "100% of api_key='***' and ***"
    assert second.args == ("somebody", 2)
