"""Execute the notebooks in place, each in an empty folder, and strip what another machine would write otherwise.

python docs/notebooks/execute.py [NAME.ipynb …]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
LARGEST = 400 * 1024  # bytes
os.environ["PYTHONWARNINGS"] = "ignore:::tqdm.auto"  # it misses widgets that nothing here shows


def execute(path: Path) -> None:
    """Write the notebook with its outputs. Raises what a cell raises, and `SystemExit` for what must not be kept."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
        kept = nbformat.from_dict(json.loads(nbformat.writes(notebook).replace(f"{folder}/", "").replace(folder, ".")))
    kept.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(kept.cells):
        cell.metadata, cell.id = {}, f"cell-{number}"
        said = [one for one in cell.get("outputs", ()) if one.output_type == "stream" and one.name == "stderr"]
        if said:
            raise SystemExit(f"{path.name}, cell {number} writes to stderr: {said[0].text[:200]}")
    text = nbformat.writes(kept) + "\n"
    if len(text) > LARGEST:
        raise SystemExit(f"{path.name} has {len(text):,} bytes with its outputs; {LARGEST:,} are allowed")
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}  {len(text):,} bytes")


if __name__ == "__main__":
    for one in [HERE / name for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        execute(one)
