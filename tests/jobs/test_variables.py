import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.jobs.variables import Variable, Variables, parse_variable


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("A", "lit:0", Variable(name="A", literal="0")),
        ("A", "lit:host:B", Variable(name="A", literal="host:B")),
        ("A", "host:B", Variable(name="A", host="B")),
        ("A", "runtime:B", Variable(name="A", machine="B")),
        ("HF_HOME", "/cache", Variable(name="HF_HOME", literal="/cache")),
        ("HF_HOME", "", Variable(name="HF_HOME", literal="")),
        ("URL", "http://host:80", Variable(name="URL", literal="http://host:80")),
        ("NCCL_DEBUG", "INFO", Variable(name="NCCL_DEBUG", literal="INFO")),
        ("HF_TOKEN", "SET_HERE", Variable(name="HF_TOKEN", host="SET_HERE")),
        ("HF_TOKEN", "MY_HF_TOKEN", Variable(name="HF_TOKEN", host="MY_HF_TOKEN")),
        ("HF_TOKEN", "$MY_HF_TOKEN", Variable(name="HF_TOKEN", host="MY_HF_TOKEN")),
        ("HF_TOKEN", "${MY_HF_TOKEN}", Variable(name="HF_TOKEN", host="MY_HF_TOKEN")),
    ],
)
def test_values_say_where_they_come_from(name: str, text: str, expected: Variable):
    """Prefixes, plain values, and the spellings of older files."""
    assert parse_variable(name, text, here={"SET_HERE": "x"}) == expected


@pytest.mark.parametrize(("name", "text"), [("A B", "x"), ("1A", "x"), ("A", "host:b c"), ("", "")])
def test_what_is_not_a_name_is_refused(name: str, text: str):
    """A shell would not take it."""
    with pytest.raises(ConfigurationError):
        parse_variable(name, text, here={})


@pytest.mark.parametrize(
    ("variable", "secret"),
    [
        (Variable(name="A", host="B"), True),
        (Variable(name="A", machine="B"), False),
        (Variable(name="A", literal="hf_your_token"), True),
        (Variable(name="A", literal="nvapi-1234567890"), True),
        (Variable(name="WANDB_API_KEY", literal="0123"), True),
        (Variable(name="HF_TOKEN_FOR_EVALUATION", literal="0123"), True),
        (Variable(name="SSH_PASSPHRASE", literal="0123"), True),
        (Variable(name="HTTPS_PROXY", literal="http://user:sesame@proxy:80"), True),
        (Variable(name="HTTPS_PROXY", literal="http://proxy:80/user@host"), False),
        (Variable(name="HF_TOKEN", literal=""), False),
        (Variable(name="TOKENIZERS_PARALLELISM", literal="false"), False),
        (Variable(name="HF_HOME", literal="/hf_home/sk-x"), False),
    ],
)
def test_secrets_are_known_by_their_source_name_or_look(variable: Variable, *, secret: bool):
    """What is read here may always be one."""
    assert variable.secret is secret


def test_an_executor_is_given_no_secret():
    """Only its name; the values are read at submission."""
    variables = Variables(
        by_name={
            "A": Variable(name="A", literal="plain"),
            "B": Variable(name="B", host="HERE"),
            "C": Variable(name="C", machine="THERE"),
            "D_TOKEN": Variable(name="D_TOKEN", literal="in-the-file"),
        }
    )
    environment = variables.environment()

    assert environment.values == {"A": "plain"}
    assert environment.secrets == {"B", "D_TOKEN"}
    assert environment.from_machine == {"C": "THERE"}
    assert variables.secret_values({"HERE": "x"}) == {"B": "x", "D_TOKEN": "in-the-file"}
    assert "in-the-file" not in repr(variables)


def test_all_secrets_that_are_not_set_are_named():
    """At once, by the names that must be set here."""
    variables = Variables(
        by_name={name: Variable(name=name, host=f"MY_{name}") for name in ("A", "B")}
    )
    with pytest.raises(ConfigurationError, match="MY_A, MY_B"):
        variables.secret_values({})
