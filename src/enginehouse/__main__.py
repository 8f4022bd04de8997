"""`enginehouse` and `python -m enginehouse`: run a command, word its errors, give its exit code."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Exit codes are listed in docs/errors.md."""
    from enginehouse.cli.app import build_app
    from enginehouse.cli.console import Interrupted
    from enginehouse.core.errors import EnginehouseError

    try:
        build_app(sys.argv[1:])(prog_name="enginehouse")
    except EnginehouseError as error:
        if "-v" in sys.argv[1:] or "--verbose" in sys.argv[1:]:
            import traceback

            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except Interrupted as interruption:
        print("interrupted; everything that was started has been stopped", file=sys.stderr)  # noqa: T201
        sys.exit(128 + interruption.number)


if __name__ == "__main__":
    main()
