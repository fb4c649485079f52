"""The one exception that is meant for the reader's eyes, and how it reaches them."""

from __future__ import annotations

import sys
from collections.abc import Callable


class D3S2Error(Exception):
    """A problem the user can mend.

    The message names the thing, the value that was found and the fix, in one or two sentences. The
    command line prints it without a traceback and exits with code 2.
    """


class DiskFull(D3S2Error):
    """There is no room for what is to be written."""


class NotebookFailed(Exception):
    """A notebook ended in an error; the message says where and why, after "<name> failed"."""


def printable(text: object) -> str:
    """Text for a terminal: what could command it (names of files and classes, and reports, can come
    from strangers) stands there as an escape, such as `\\x1b`.
    """
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t"
        else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


def exit_code(work: Callable[[], object]) -> int:
    """Do the work of a command: 0, or 2 with the sentence on stderr for a `D3S2Error`."""
    try:
        work()
    except D3S2Error as error:
        print(f"d3s2: {printable(error)}", file=sys.stderr)
        return 2
    return 0
