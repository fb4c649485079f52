"""The one exception that is meant for the reader's eyes."""


class D3S2Error(Exception):
    """A problem the user can mend.

    The message names the thing, the value that was found and the fix, in one or two sentences. The command line
    prints it without a traceback and exits with code 2.
    """
