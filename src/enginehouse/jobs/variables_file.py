"""A file of environment variables, as the launcher's --env-file takes it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.system_errors import advice

_ASSIGNMENT = re.compile(r"\A(?:export\s+)?([A-Za-z_]\w*)\s*+=\s*+(.*)")


def read_variables_file(path: Path) -> dict[str, str]:
    """The variables in a file of NAME=VALUE lines, with # comments and quoted values. Blocking.

    Raises ConfigurationError, also for a file that others than its owner can read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            lines = file.read().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path} is not UTF-8 text", why=str(error), fix="save it as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the variables in {path} cannot be read",
            why=error.strerror,
            fix=advice(error, otherwise="check the path given to --env-file"),
        ) from error
    if mode & 0o077:
        raise ConfigurationError(
            f"other users can read {path}",
            why=f"it holds secrets, and its mode is {mode:o}",
            fix=f"chmod 600 {path}",
        )
    variables = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line.strip())
        if match is None:
            raise ConfigurationError(
                f"{path}, line {number} is not NAME=VALUE",
                why="each line sets one variable",
                fix="correct the line, or put # before it",
            )
        name, value = match.groups()
        is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        variables[name] = value[1:-1] if is_quoted else value
    return variables
