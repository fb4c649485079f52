"""The one exception that is meant for the reader's eyes."""

from __future__ import annotations

import sys
from collections.abc import Callable


class D3S2Error(Exception):
    """A problem the user can mend.

    The message names the thing, the value that was found and the fix, in one or two sentences. The command line
    prints it without a traceback and exits with code 2.
    """


def exit_code(work: Callable[[], object]) -> int:
    """Do the work of a command: 0, or 2 with the sentence on stderr for a `D3S2Error`."""
    try:
        work()
    except D3S2Error as error:
        print(f"d3s2: {error}", file=sys.stderr)
        return 2
    return 0
