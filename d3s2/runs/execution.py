"""Execute one notebook through papermill, with a private kernel, and say in a sentence what went
wrong.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from d3s2.core.errors import NotebookFailed

START_TIMEOUT = 300
"""Seconds a kernel may take to start: a laptop's first import of everything from a slow disk is
slow.
"""

NO_MODULES_FROM_THERE = ["--IPKernelApp.ignore_cwd=True"]
"""A run folder that came from elsewhere may hold a `torch.py`."""


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    cwd: str | Path,
    on_cell: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Run `notebook` with `parameters` by this environment's Python; `output` is saved after every
    cell.

    on_cell: called with (cells done, all cells). Raises NotebookFailed; the output then holds the
    error. The folder of `output` must exist.
    """
    os.environ["JUPYTER_PREFER_ENV_PATH"] = (
        "1"  # else a kernel named python3 of the user's would come first
    )
    os.environ["D3S2_HEADLESS"] = "1"  # nobody is there to turn the knobs of `widgets`
    logging.getLogger("papermill").setLevel(
        logging.ERROR
    )  # the parameters were checked, better than it does
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        with _private_sockets() as sockets, _log_beside(output) as log:
            papermill.execute_notebook(
                _braces(notebook),
                _braces(output),
                dict(parameters),
                engine_name=_register_engine(on_cell, log, sockets),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                cwd=cwd,
            )
    except KeyboardInterrupt:
        # The cell's own task may end in the kernel's interrupt, for which nobody waits any more:
        # asyncio would print its traceback below the sentence that the command ends with
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise
    except PapermillExecutionError as error:
        raise NotebookFailed(f"in cell [{error.exec_count}]: {_error_line(error)}") from error
    except DeadKernelError as error:
        raise NotebookFailed(
            "because its Python process died, most likely for want of memory"
        ) from error
    except RuntimeError as error:  # of a kernel that never answered; those of cells are above
        if not str(error).startswith("Kernel "):
            raise
        raise NotebookFailed(
            "because its Python process died, or did not answer, while it started"
        ) from error


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable, for kernels to inherit, while a block runs."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _register_engine(on_cell: Callable[[int, int], None], log: TextIO, sockets: str) -> str:
    """papermill's engine, but one that tells about each finished cell and talks through private
    sockets.

    What the kernel's process itself writes, beside the outputs of cells, goes to `log` instead of
    the terminal.
    """
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines
    from traitlets.config import Config

    class PrivateEngine(Engine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
            complete, total = nb_man.cell_complete, len(nb_man.nb.cells)

            def cell_complete(cell: Any, cell_index: int = 0, **more: Any) -> None:
                complete(cell, cell_index=cell_index, **more)
                on_cell(cell_index + 1, total)

            nb_man.cell_complete = cell_complete
            PapermillNotebookClient(
                nb_man,
                kernel_name=kernel_name,
                timeout=None,
                startup_timeout=START_TIMEOUT,
                extra_arguments=list(NO_MODULES_FROM_THERE),
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
            ).execute(stdout=log, stderr=log)

    papermill_engines.register("d3s2", PrivateEngine)
    return "d3s2"


@contextmanager
def _private_sockets() -> Iterator[str]:
    """A folder for the kernel's sockets that only this user can open; ports could be listened to by
    others.

    It is a short path on a local disk: sockets work neither on long paths nor on some network file
    systems. (With no address given, Jupyter would put them into the run folder, and leave them
    there when it is killed.)
    """
    with (
        tempfile.TemporaryDirectory(prefix="d3s2-") as folder,
        variable("JUPYTER_RUNTIME_DIR", folder),
    ):
        yield folder


@contextmanager
def _log_beside(output: Path) -> Iterator[TextIO]:
    """A file NN_name.log beside the executed notebook, which goes again if nothing was written to
    it.
    """
    path = output.with_suffix(".log")
    with open(path, "w", encoding="utf-8") as log:
        yield log
    if not path.stat().st_size:
        path.unlink()


def _error_line(error: Any) -> str:
    """The line of the cell that failed, and the error, without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    arrow = re.search(r"^-+> ?\d+ (.*)$", text, re.MULTILINE)
    line = f"`{arrow.group(1).strip()}` " if arrow else ""
    return f"{line}raised {error.ename}: {error.evalue}"


def _braces(path: Path) -> str:
    """papermill formats paths with the parameters: keep braces as they are."""
    return str(path).replace("{", "{{").replace("}", "}}")
