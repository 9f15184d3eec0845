"""The notebooks run from end to end, with trainings of a few steps."""

import nbformat
import pytest
from nbclient import NotebookClient
from scripts import ROOT, TINY


@pytest.mark.parametrize("lesson", ["lesson_08", "lesson_17"])
def test_notebook_runs(lesson, tmp_path, monkeypatch):
    monkeypatch.setenv("LESSON_FLAGS", " ".join([*TINY, "--num_training_steps", "2"]))
    monkeypatch.setenv("LESSON_OUTPUT", str(tmp_path))
    notebook = nbformat.read(ROOT / lesson / "lesson.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": ROOT / lesson}}).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in str(output)]
    assert len(pictures) > 5


@pytest.mark.parametrize("lesson", ["lesson_08", "lesson_17"])
def test_notebook_is_kept_without_outputs(lesson):
    notebook = nbformat.read(ROOT / lesson / "lesson.ipynb", as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
