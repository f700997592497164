"""The notebooks run from top to bottom, and are committed as they ran."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["finetune_decoder", "first_steps", "streams_and_budgets"]
LARGEST = 300_000  # bytes
# Of the machine on which a notebook ran; addresses of web pages may have such parts.
MACHINE_PATH = re.compile(r"(?<![\w.:/+-])/(?:home|root|tmp|work|usr|opt|mnt|Users|private|var)/")


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(value: Any) -> list[str]:
    """Return all strings of a notebook; the lines of a list of lines are one."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts(item)]
    if isinstance(value, list):
        lines = all(isinstance(item, str) for item in value)
        return ["".join(value)] if lines else [text for item in value for text in texts(item)]
    return [value] if isinstance(value, str) else []


def faults(notebook: dict[str, Any]) -> list[str]:
    """Return why a notebook is not one that ran from top to bottom, in a fresh kernel, and may be shown to others."""
    found, cells = [], code_cells(notebook)
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("cells did not run, or not in order")
    for cell in cells:
        if not cell["outputs"]:
            found.append("no output: " + "".join(cell["source"]).partition("\n")[0])
        for output in cell["outputs"]:
            if output["output_type"] == "error" or output.get("name") == "stderr":
                found.append(f"error or warning: {texts(output)}")
    found += [f"machine path: {text[:200]}" for text in texts(notebook) if MACHINE_PATH.search(text)]
    return found


def test_notebooks_are_those_that_are_tested() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_committed_as_it_ran(path: Path) -> None:
    assert faults(content(path)) == []
    assert path.stat().st_size < LARGEST
    pictures = [output for cell in code_cells(content(path)) for output in cell["outputs"] if "data" in output]
    assert any("image/jpeg" in output["data"] for output in pictures)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_links_to_files_that_exist(path: Path) -> None:
    prose = ["".join(cell["source"]) for cell in content(path)["cells"] if cell["cell_type"] == "markdown"]
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", "\n".join(prose)):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"execution_count": None}, "did not run"),
        ({"outputs": []}, "no output"),
        ({"outputs": [{"output_type": "error", "ename": "ValueError", "traceback": []}]}, "error"),
        ({"outputs": [{"output_type": "stream", "name": "stdout", "text": ["in ", "/home/x/a.mp4"]}]}, "machine path"),
    ],
)
def test_faults_of_a_notebook_that_did_not_run_cleanly_name_them(change: dict[str, Any], said: str) -> None:
    notebook = content(ROOT / "notebooks" / "first_steps.ipynb")
    code_cells(notebook)[0].update(change)

    assert any(said in fault for fault in faults(notebook))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "pip install nbclient ipykernel to run the notebooks"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    nbformat = pytest.importorskip("nbformat", reason=reason)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")  # the kernel runs in a folder of its own
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))

    notebook = nbformat.read(path, as_version=4)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()

    assert faults(notebook) == []
    assert list(folder.iterdir()) == []  # what it writes, it writes to a folder that it removes
