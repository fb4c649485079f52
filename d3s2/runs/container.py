"""What the image does with a first word that is no command of d3s2: a program of the image is
started in its place, as `docker run` users expect. Thus a hub's `jupyterhub-singleuser` works.

Only in a container, where whoever gives the words may name any program anyway (`--entrypoint`).
Elsewhere such a word stays what it is, a typing error.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Mapping, Sequence

from d3s2.core.errors import D3S2Error

VARIABLE = "D3S2_CONTAINER"
"""Set to 1 by the Dockerfile."""
SERVER = "jupyterhub-singleuser"
"""It shows the folder in which it is started: the one with notebooks/ and docs/, for a student to
write in, so that the links from one to the other lead somewhere.
"""


def pass_on(words: Sequence[str], commands: Container[str], environment: Mapping[str, str]) -> None:
    """Become the program that the first word names; returns where there is nothing to pass on.

    Raises D3S2Error for a word that is neither a command nor a program of this image.
    """
    if environment.get(VARIABLE) != "1" or not words:
        return
    name = words[0]
    if name.startswith("-") or name in commands:
        return
    if shutil.which(name) is None:
        more = f" ({SERVER} comes with the package jupyterhub)" if name == SERVER else ""
        raise D3S2Error(
            f"{name!r} is neither a command of d3s2 nor a program of this image{more}: "
            "d3s2 --help lists the commands."
        )
    if name == SERVER:
        from d3s2.runs import lab

        os.chdir(lab.folder().parent)
    os.execvp(name, list(words))
