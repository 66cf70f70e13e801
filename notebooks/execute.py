"""Execute the notebooks and store them with what they show: ``python notebooks/execute.py [NOTEBOOK...]``.

A cell tagged ``parameters`` holds what a reader may want to change; :func:`execute` can put other values there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def notebooks() -> list[Path]:
    """Every notebook, in reading order."""
    return sorted(HERE.glob("*.ipynb"))


def execute(path: Path, directory: Path, parameters: Mapping[str, Any] | None = None) -> nbformat.NotebookNode:
    """The notebook as it looks after all its cells ran in ``directory``; the file stays as it is.

    Args:
        parameters: assignments that are run after the cell tagged ``parameters``.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    given = "".join(f"\n{name} = {value!r}" for name, value in (parameters or {}).items())
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source += given
    # `!opd-probe` is the one beside the interpreter, whether or not its environment is active.
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        record_timing=False,  # times would differ in every execution
        coalesce_streams=True,
        resources={"metadata": {"path": str(directory)}},
    )
    client.execute(env=environment)
    return notebook


def store(path: Path) -> None:
    """Execute a notebook where it lies and write it back with its outputs, but for stderr: warnings and progress."""
    notebook = execute(path, path.parent)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for chosen in [Path(name) for name in sys.argv[1:]] or notebooks():
        print(chosen.name, flush=True)
        store(chosen)
