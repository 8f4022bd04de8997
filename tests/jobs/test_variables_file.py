from pathlib import Path

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.jobs.variables_file import read_variables_file


def variables_file(folder: Path, text: str, *, mode: int = 0o600) -> Path:
    """A file of variables."""
    path = folder / "variables"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_lines_are_assignments(tmp_path: Path):
    """As a shell would read simple ones."""
    path = variables_file(
        tmp_path, "# comment\n\nA=1\nexport B = 'two words'\nC=\"x=y\"\nD=\n E='it\n"
    )

    assert read_variables_file(path) == {
        "A": "1",
        "B": "two words",
        "C": "x=y",
        "D": "",
        "E": "'it",
    }


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int):
    """The fix is a command."""
    path = variables_file(tmp_path, "A=1\n", mode=mode)
    with pytest.raises(ConfigurationError) as caught:
        read_variables_file(path)

    assert caught.value.fix == f"chmod 600 {path}"


def test_a_wrong_line_is_named_but_not_shown(tmp_path: Path):
    """It may hold a secret."""
    path = variables_file(tmp_path, "A=1\nsesame\n")
    with pytest.raises(ConfigurationError, match="line 2") as caught:
        read_variables_file(path)

    assert "sesame" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    """Not silently nothing."""
    with pytest.raises(ConfigurationError, match="nothing"):
        read_variables_file(tmp_path / "nothing")
