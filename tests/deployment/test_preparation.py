import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.preparation import with_own_variables
from enginehouse.engines.options import ServerOptions


def test_variables_of_this_process_are_passed_on(monkeypatch: pytest.MonkeyPatch):
    """A value that is given is not replaced."""
    monkeypatch.setenv("MINE", "mine")
    monkeypatch.setenv("GIVEN", "mine")
    options = ServerOptions(env_names=("MINE", "GIVEN"), env_vars={"GIVEN": "given"})

    assert with_own_variables(options).env_vars == {"MINE": "mine", "GIVEN": "given"}


def test_variables_that_are_not_set_are_named(monkeypatch: pytest.MonkeyPatch):
    """All of them."""
    for name in ("MINE", "OTHER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="MINE, OTHER"):
        with_own_variables(ServerOptions(env_names=("MINE", "OTHER")))
