"""`enginehouse` and `python -m enginehouse`: run a command, word its errors, give its exit code."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line. Exit codes are listed in docs/errors.md."""
    # Ctrl-C ends it quietly while it imports; commands that start something handle it themselves.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from enginehouse.cli.app import build_app
    from enginehouse.cli.console import Interrupted
    from enginehouse.core.errors import EnginehouseError

    arguments = sys.argv[1:]
    try:
        if arguments and arguments[0] in {"eval", "serve"}:
            from enginehouse.cli.options import refuse_removed_flags

            refuse_removed_flags(arguments)
        build_app(arguments)(prog_name="enginehouse")
    except EnginehouseError as error:
        if not {"-v", "--verbose"}.isdisjoint(arguments):
            import traceback

            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except Interrupted as interruption:
        print("interrupted; everything that was started has been stopped", file=sys.stderr)  # noqa: T201
        sys.exit(128 + interruption.number)


if __name__ == "__main__":
    main()
