"""The promises of the project's own files: one list of pins, and pages that are paired, executed and readable."""

import importlib
import importlib.metadata
import itertools
import re
import tomllib
from pathlib import Path

from ltvit_lib import published

import nbformat
import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUNNERS = sorted((ROOT / "notebooks" / "full").glob("*.ipynb"))


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def ranges() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        Requirement(r) for part in (project["dependencies"], *project["optional-dependencies"].values()) for r in part
    ]


def test_ranges_admit_the_pins():
    for requirement in ranges():
        assert requirement.name in pins(), f"{requirement.name} is in pyproject.toml and not in requirements.txt"
        assert requirement.specifier.contains(pins()[requirement.name]), requirement


def test_every_pin_is_asked_for():
    assert set(pins()) == {r.name for r in ranges()}


def test_environment_serves_the_same_pins():
    lines = (ROOT / "environment.yml").read_text()
    assert "- -r requirements.txt" in lines
    assert not re.search(r"^\s*- (torch|timm|numpy|pillow)\b", lines, re.MULTILINE), "a second list of versions"


@pytest.mark.parametrize("package", ["torch", "timm", "accelerate", "numpy"])
def test_installed_versions_are_in_range(package):
    requirement = next(r for r in ranges() if r.name == package)
    assert requirement.specifier.contains(importlib.metadata.version(package).split("+")[0])


def code_cells(path: Path) -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]


def test_there_are_pages_and_runners():
    assert len(PAGES) >= 5
    assert {p.stem for p in RUNNERS} == {"pretrain", "finetune", "teacher", "distil"}


@pytest.mark.parametrize("path", PAGES + RUNNERS, ids=lambda p: p.stem)
def test_page_and_source_have_the_same_cells(path):
    import jupytext

    source = jupytext.read(path.with_suffix(".py"))
    page = nbformat.read(path, as_version=4)
    assert [(c.cell_type, c.source) for c in page.cells] == [(c.cell_type, c.source) for c in source.cells]
    assert page.metadata.kernelspec["language"] == "python", "papermill needs the kernel's language"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_page_was_executed_without_errors(path):
    for cell in code_cells(path):
        assert cell.execution_count is not None, cell.source
        assert not any(o.output_type == "error" for o in cell.outputs), cell.source
        # an unexecuted cell would pass nbval unseen
        assert "NBVAL_CHECK_OUTPUT" not in cell.source or cell.outputs, cell.source
        assert len(cell.source.splitlines()) <= 40, cell.source
    assert path.stat().st_size < 1_500_000


@pytest.mark.parametrize("path", PAGES + RUNNERS, ids=lambda p: p.stem)
def test_no_sentence_breaks_into_a_list(path):
    """A line of prose that happens to begin with "1." or "-" would be shown as an item."""
    for cell in (c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"):
        text = re.sub(r"```.*?```|\$\$.*?\$\$", "", cell.source, flags=re.DOTALL)
        for before, line in itertools.pairwise(text.splitlines()):
            if re.match(r"(1\.|[-+*]) ", line):
                assert re.match(r"$|#|[-+*] |  ", before), f"{before}\n{line}"


# what stands in prose alone: constants of the papers' text, and differences of two numbers in the table above them
ALONE = {"08": {6.7}, "10": {2.27, 2.3, 2.303}, "12": {5.2, 7.6}, "16": {2.303}}


def decimals(text: str) -> list[str]:
    """Numbers with a decimal point, unsigned; no section, version or arXiv number."""
    plain = re.sub(r"(?i)(section|arxiv\S*|abs/|http\S*) ?[\d.]+|(?<=\d),(?=\d{3})", "", text)
    return re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)", plain)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_numbers_in_prose_come_from_somewhere(path):
    """Each is, rounded, one that the page prints, computes with or quotes from the papers' tables."""
    shown = published.everything()["value"].dropna().abs().tolist() + list(ALONE.get(path.stem[:2], ()))
    for cell in code_cells(path):
        texts = [
            o.get("text") or "".join(v for k, v in o.get("data", {}).items() if "text/" in k) for o in cell.outputs
        ]
        shown += map(float, decimals("\n".join([cell.source, *texts])) + re.findall(r"\d+", "".join(texts)))
    shown = torch.tensor(shown, dtype=torch.float64)
    prose = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
    for number in decimals("\n".join(text for text in prose if "<details>" not in text)):
        half = 0.5001 * 10.0 ** -len(number.split(".")[1])
        assert (shown - float(number)).abs().min() <= half, f"{number} in {path.stem}"


def test_readme_has_the_ledgers_numbers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    readme = importlib.import_module("readme")
    assert readme.MARKED.search(readme.README.read_text())[2] == readme.text(), "make readme"


@pytest.mark.parametrize("path", RUNNERS, ids=lambda p: p.stem)
def test_runner_has_parameters_and_no_outputs(path):
    cells = code_cells(path)
    assert any("parameters" in c.metadata.get("tags", []) for c in cells)
    assert not any(c.outputs for c in cells)


def exercises() -> list:
    """(page, name of the exercise) for every function that a page leaves to its reader."""
    found = re.compile(r"def (\w+)\([^)]*\):\n(?:    \"\"\".*\"\"\"\n)?    return None  # your code")
    return [(path, m[1]) for path in PAGES for c in code_cells(path) for m in found.finditer(c.source)]


def test_every_page_has_exercises():
    assert {path for path, _ in exercises()} == set(PAGES)


@pytest.mark.parametrize(("path", "name"), exercises(), ids=lambda v: v if isinstance(v, str) else v.stem)
def test_hidden_solution_is_right_and_a_wrong_one_fails(path, name, capsys):
    """The page's check accepts its own solution and refuses an answer that is off."""
    cells = nbformat.read(path, as_version=4).cells
    text = next(c.source for c in cells if f"def {name}(" in c.source and c.cell_type == "markdown")
    solution = re.search(rf"(def {name}\(.*?)(?=\ndef |\n```)", text, re.DOTALL)[1]
    imports = "\n".join(
        line for c in code_cells(path) for line in c.source.splitlines() if re.match(r"(from|import) ", line)
    )
    cell = next(c.source for c in code_cells(path) if f"def {name}(" in c.source)
    judging = re.sub(r"def .*?return None  # your code", "", cell, flags=re.DOTALL)
    names: dict = {}
    exec(imports, names)
    exec(solution, names)
    exec(judging, names)
    assert f"{name}: right" in capsys.readouterr().out
    exec(f"_right = {name}\ndef {name}(*case):\n    import torch\n    return torch.as_tensor(_right(*case)) + 1", names)
    with pytest.raises(AssertionError):
        exec(judging, names)


@pytest.mark.parametrize("path", [*PAGES, *RUNNERS, ROOT / "README.md"], ids=lambda p: p.stem)
def test_links_lead_somewhere(path):
    text = (
        path.read_text()
        if path.suffix == ".md"
        else "\n".join(c.source for c in nbformat.read(path, as_version=4).cells)
    )
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert target.startswith("http") or (path.parent / target).exists(), target
