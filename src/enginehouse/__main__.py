"""`enginehouse` and `python -m enginehouse`: run a command, print its errors, set the exit code."""

from __future__ import annotations

import gc
import signal
import sys

_COLLECTED_AFTER = 50_000  # objects; with Python's 700, a sixth of a start is spent on collecting


def main() -> None:
    """Run the command line. docs/errors.md lists the exit codes."""
    gc.set_threshold(_COLLECTED_AFTER)
    from enginehouse.cli.standard_streams import allow_any_text, open_missing_streams
    from enginehouse.client.open_files import raise_open_file_limit

    open_missing_streams()
    allow_any_text()
    raise_open_file_limit()
    # Ctrl-C ends the process quietly while it imports; commands that start anything handle it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from enginehouse.cli.app import build_app
    from enginehouse.cli.console import Interrupted, show_error, show_traceback
    from enginehouse.core.errors import EnginehouseError
    from enginehouse.report.visible_text import OutputClosed, silence, write_text

    arguments = sys.argv[1:]
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    verbose = not {"-v", "--verbose"}.isdisjoint(own)
    try:
        build_app(arguments)(prog_name="enginehouse")
    except EnginehouseError as error:
        sys.exit(show_error(error, verbose=verbose))
    except OSError as error:
        from enginehouse.core.system_errors import worded

        silence(sys.stdout)  # if the disk is full, flushing the rest of the output would fail, too
        sys.exit(show_error(worded(error), verbose=verbose))
    except OutputClosed:
        sys.exit(128 + signal.SIGPIPE)
    except Interrupted as interruption:
        write_text(sys.stderr, "interrupted; everything that was started has been stopped\n")
        sys.exit(128 + interruption.number)
    except Exception:  # noqa: BLE001 - the last place where it can be shown safely
        show_traceback()
        sys.exit(1)


if __name__ == "__main__":
    main()
