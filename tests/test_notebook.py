"""The notebook runs from top to bottom, and its dial generates again."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks/dera.ipynb"

TURN = """
dial.children[0].value = 2.0
dial.children[0].value = 0.0
"""
"""Moves the slider, as a hand would."""

EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
path, folder = sys.argv[1:]
notebook = nbformat.read(path, as_version=4)
nbformat.write(NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute(), path)
"""
"""In a process of its own: after hundreds of other tests in the same one, the client met the kernel's answer only when
it stopped waiting for it.
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(TURN))
    path = tmp_path_factory.mktemp("notebook") / "dera.ipynb"
    nbformat.write(notebook, path)
    subprocess.run([sys.executable, "-c", EXECUTE, str(path), str(NOTEBOOK.parent)], check=True)
    return nbformat.read(path, as_version=4)


def outputs(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def test_it_is_stored_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_the_backend_is_the_one_asked_for(executed):
    assert any(
        "JAX" in outputs(cell) and "cpu" in outputs(cell)
        for cell in executed.cells
        if cell.cell_type == "code"
    )


@pytest.mark.slow
def test_the_dial_generates_at_its_strength(executed):
    widgets = executed.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    (shown,) = (widget["state"]["outputs"] for widget in widgets if widget["state"].get("outputs"))
    assert [output["output_type"] for output in shown] == ["stream"], shown
    first, _, prompt, completion = shown[0]["text"].splitlines()
    assert first == "λ = 0, β/λ = ∞"
    assert prompt and completion.startswith("→ ")


@pytest.mark.slow
def test_the_sweep_is_shown(executed):
    *_, table, figure, _ = (cell for cell in executed.cells if cell.cell_type == "code")
    assert "length:16:24" in outputs(table)
    assert any("image/png" in output.get("data", {}) for output in figure.outputs)


def test_outside_of_a_checkout_it_says_what_it_lacks(tmp_path):
    first = next(cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code")
    ran = subprocess.run([sys.executable, "-c", first.source], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.splitlines() == [
        "no checkout of dera_jax here: set SOURCE to its repository's address, as git clone takes it"
    ]
