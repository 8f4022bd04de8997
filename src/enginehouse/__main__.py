"""`enginehouse` and `python -m enginehouse`: run a command, word its errors, give its exit code."""

from __future__ import annotations

import errno
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enginehouse.core.errors import EnginehouseError


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
        if arguments and arguments[0] in {"eval", "serve", "bench", "check", "chat", "sample"}:
            from enginehouse.cli.options import refuse_removed_flags

            refuse_removed_flags(arguments)
        build_app(arguments)(prog_name="enginehouse")
    except (EnginehouseError, OSError) as error:
        known = _full_disk(error) if isinstance(error, OSError) else error
        if known is None:
            raise
        if not {"-v", "--verbose"}.isdisjoint(arguments):
            import traceback

            traceback.print_exc()
        print(f"error: {known}", file=sys.stderr)  # noqa: T201
        sys.exit(known.exit_code)
    except Interrupted as interruption:
        print("interrupted; everything that was started has been stopped", file=sys.stderr)  # noqa: T201
        sys.exit(128 + interruption.number)


def _full_disk(error: OSError) -> EnginehouseError | None:
    """A disk may be full wherever something is written, in our libraries, too."""
    from enginehouse.core.errors import StoreError

    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return None
    fix = "make room (`df -h ~ /tmp` shows where), then run it again, or resume the run"
    return StoreError("a disk is full", why=str(error), fix=fix)


if __name__ == "__main__":
    main()
