"""Two helpers for the Makefile: tidy executed notebooks, and print what a notebook concluded.

python workflow/pages.py tidy notebooks/*.ipynb
python workflow/pages.py show runs/quickstart.ipynb
"""

import sys
from pathlib import Path

import nbformat


def tidy(path: Path) -> None:
    """Removes execution times and widget state, which change with every run and show nothing."""
    page = nbformat.read(path, as_version=4)
    page.metadata.pop("widgets", None)
    for cell in page.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not passing(o)]
    nbformat.write(page, path)


def passing(output) -> bool:
    """Logs of this machine, and widgets (progress bars, sliders), which are dead without their kernel."""
    return output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def show(path: Path) -> None:
    """Prints the output of the cell tagged `result`."""
    for cell in nbformat.read(path, as_version=4).cells:
        if "result" in cell.metadata.get("tags", []):
            print("".join(o.text for o in cell.outputs if o.output_type == "stream"))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        {"tidy": tidy, "show": show}[sys.argv[1]](Path(name))
