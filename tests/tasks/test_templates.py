import pytest

from enginehouse.core.errors import ConfigurationError, DataError
from enginehouse.tasks.templates import Template


def test_fields_are_variables_and_are_in_item():
    """Names that are no identifiers go through `item`."""
    template = Template("{{ q }} {{ item['Correct Answer'] }}", origin="t")
    assert template.render({"q": "1", "Correct Answer": "2"}, item="0") == "1 2"


def test_a_syntax_error_has_its_line():
    """Found when the template is made, before anything runs."""
    with pytest.raises(ConfigurationError, match=r"my\.yaml: prompt, line 2.* Jinja"):
        Template("a\n{% if %}", origin="my.yaml: prompt")


@pytest.mark.parametrize("source", ["a\n{{ qestion }}", "a\n{{ 1 / 0 }}", "a\n{{ q.a.b }}"])
def test_a_failure_has_line_and_item(source):
    """An unknown name is an error, never an empty text."""
    with pytest.raises(DataError, match=r"my.yaml: prompt, line 2: .* item '7'"):
        Template(source, origin="my.yaml: prompt").render({"question": "x", "q": "x"}, item="7")


@pytest.mark.parametrize(
    "source",
    ["{{ q.__class__.__mro__ }}", "{{ items.append(1) }}", "{{ cycler.__init__.__globals__ }}"],
)
def test_a_template_cannot_leave_the_sandbox(source):
    """A task file from elsewhere reads no Python internals and changes no data."""
    with pytest.raises(DataError):
        Template(source, origin="t").render({"q": "x", "items": []}, item="0")
