"""The package as a wheel, in another folder: nothing needs the checkout."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.relative_to(ROOT / "notebooks") for path in (ROOT / "notebooks").rglob("*.ipynb"))
ELSEWHERE = """
import sys
print([m.__file__ for n, m in sys.modules.items() if n.startswith("warp_nb") and not m.__file__.startswith({!r})])
"""
"""Prints the modules of the package that do not come from a folder."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs and nothing else."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    for name in ("warp_nb", "notebooks"):  # building leaves files beside the sources
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-APACHE", "NOTICE.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, source], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    return target


def test_an_editable_install_is_found_from_above_a_clone_that_is_called_as_the_package(tmp_path: Path) -> None:
    clone, environment = tmp_path / "some clones" / "warp_nb", tmp_path / "environment"
    for name in ("warp_nb", "notebooks"):
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-APACHE", "NOTICE.md"):
        shutil.copy(ROOT / name, clone)
    venv.create(environment, with_pip=True)
    python, (site,) = environment / "bin" / "python", environment.glob("lib/*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps", "--editable", clone]
    subprocess.run(pip, check=True)
    ask = "import warp_nb; from warp_nb import ExperimentConfig; print(warp_nb.__file__)"
    for place in (clone.parent, clone, clone / "notebooks", tmp_path):
        done = subprocess.run([python, "-E", "-c", ask], cwd=place, capture_output=True, text=True, check=False)
        assert done.stdout == f"{clone}/warp_nb/__init__.py\n", done.stderr


def test_what_is_installed_brings_no_jupyterlab(installed: Path) -> None:
    (metadata,) = installed.glob("warp_nb-*.dist-info/METADATA")
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata.read_text(encoding="utf-8"), re.MULTILINE)
    assert "papermill" in needed and not {"jupyterlab", "notebook", "jupyter"} & set(needed)


@pytest.fixture
def away(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder in which the installed package is found first, also by kernels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(installed))
    return tmp_path


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def test_every_module_is_imported_from_the_wheel(installed: Path, away: Path) -> None:
    modules = [
        ".".join(path.relative_to(installed).with_suffix("").parts)
        for path in (installed / "warp_nb").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    ]
    assert len(modules) > 40
    done = run("-c", "\n".join(f"import {name}" for name in modules) + ELSEWHERE.format(str(installed)))
    assert done.stdout == "[]\n", done.stderr


def test_help_shows_the_public_names(away: Path) -> None:
    shown = run("-c", "import pydoc, warp_nb; print(pydoc.plain(pydoc.render_doc(warp_nb)))").stdout
    for name in ("WarpConfig", "Task", "load_task", "warp(", "evaluate(", "pareto_front(", "trajectory("):
        assert name in shown


@pytest.mark.parametrize("name", NOTEBOOKS, ids=str)
def test_the_first_cells_of_a_notebook_run(installed: Path, away: Path, name: Path) -> None:
    shipped = installed / "warp_nb" / "notebooks" / name
    assert shipped.read_bytes() == (ROOT / "notebooks" / name).read_bytes()
    notebook = nbformat.read(shipped, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    first = next(place for place, cell in enumerate(code) if "from warp_nb" in cell.source) + 1
    notebook.cells = [*code[:first], new_code_cell(ELSEWHERE.format(str(installed)))]
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(away)}}).execute()
    assert notebook.cells[-1].outputs[0].text == "[]\n"


def test_the_diagnosis_is_reported_from_what_is_shipped_into_the_current_folder(installed: Path, away: Path) -> None:
    before = sorted((installed / "warp_nb").iterdir())
    done = run("-m", "warp_nb.report", "diagnosis")
    assert done.returncode == 0, done.stderr
    result = json.loads((away / "reports" / "diagnosis.result.json").read_text(encoding="utf-8"))
    assert result["status"] == "ok" and len(result["verdicts"]) > 10
    page = (away / "reports" / "diagnosis.html").read_text(encoding="utf-8")
    assert str(installed) not in page and str(ROOT) not in page
    assert (away / "reports" / "index.html").exists() and sorted((installed / "warp_nb").iterdir()) == before


def test_the_command_has_its_sub_commands(away: Path) -> None:
    shown = run("-m", "warp_nb", "--help").stdout
    assert re.findall(r"^    (\w+)(?: |$)", shown, re.MULTILINE) == ["report", "diagnosis", "guide", "job", "merge"]
    refused = run("-m", "warp_nb", "merge-everything")
    assert refused.returncode == 2 and "report" in refused.stderr
