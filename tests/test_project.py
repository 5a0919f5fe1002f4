"""The files around the package agree with each other and with the tree."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib import import_module, util
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from warp_nb import cli
from warp_nb.report import command as report
from warp_nb.runs.training import PLAIN

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = PROJECT["optional-dependencies"]
DEVELOPERS = [Requirement(line) for line in EXTRAS["docs"] + EXTRAS["dev"] if line != "warp-nb[docs]"]
MODULES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "warp_nb").rglob("*.py"))
}
SIGNATURES_OF_OTHERS = {("warp_nb/fast/devices.py", "_attention_in_fp32")}
"""Functions that a library calls by position: transformers calls an attention function so."""


def pins(path: str) -> dict[str, str]:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in found.items()}


def constraints() -> dict[str, str]:
    return pins("constraints.txt")


@pytest.mark.parametrize("requirement", REQUIRED + DEVELOPERS, ids=lambda requirement: requirement.name)
def test_every_requirement_has_a_tested_version(requirement: Requirement) -> None:
    assert requirement.specifier.contains(constraints()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", REQUIRED, ids=lambda requirement: requirement.name)
def test_the_package_sets_lower_bounds_only_that_fit_colab(requirement: Requirement) -> None:
    assert {clause.operator for clause in requirement.specifier} == {">="}
    there = pins("scripts/colab.txt")
    assert {"torch", "numpy", "transformers", "datasets", "ipykernel", "ipywidgets"} <= there.keys()
    assert requirement.specifier.contains(there.get(requirement.name, constraints()[requirement.name]))


def test_constraints_pin_no_local_version() -> None:
    assert not [name for name, version in constraints().items() if not re.fullmatch(r"[\w.]+", version)]


def test_environment_installs_what_pyproject_says() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["--constraint constraints.txt", "--editable .[dev]"]}
    (python,) = [line.partition("=")[2] for line in conda if line.startswith("python=")]
    assert f"{python}.0" in SpecifierSet(PROJECT["requires-python"])
    assert environment["channels"] == ["conda-forge"]


@pytest.mark.parametrize(("indent", "extras"), [("", []), (r"\s+", ["lora"])], ids=["of a module", "of a function"])
def test_every_import_of_the_package_is_required(indent: str, extras: list[str]) -> None:
    """What an extra brings is imported inside the functions that need it."""
    optional = [Requirement(line) for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    known = {canonicalize_name(r.name) for r in REQUIRED + optional} | {"warp-nb"}
    names = {"bs4": "beautifulsoup4", "IPython": "ipykernel", "zmq": "pyzmq"}
    found = set()
    for path in (ROOT / "warp_nb").rglob("*.py"):
        found |= set(re.findall(rf"^{indent}(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    outside = {
        canonicalize_name(names.get(name, name))
        for name in found - set(sys.stdlib_module_names)
        if util.find_spec(name) is not None
    }
    assert "torch" in outside and outside <= known


def imported(tree: ast.Module) -> set[str]:
    """The modules that are imported anywhere in a module, in full."""
    nodes = list(ast.walk(tree))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return plain | {"." * node.level + (node.module or "") for node in nodes if isinstance(node, ast.ImportFrom)}


POSIX = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
"""Modules that Windows lacks."""
ALL_WITHOUT = """
import pkgutil, sys
from importlib import import_module
import warp_nb
names = [one.name for one in pkgutil.walk_packages(warp_nb.__path__, "warp_nb.") if "__main__" not in one.name]
for name in names:  # what other packages need of them is theirs
    import_module(name)
for name in [one for one in sys.modules if one.partition(".")[0] == "warp_nb"]:
    del sys.modules[name]
sys.modules.update(dict.fromkeys(("resource", "fcntl"), None))
for name in ["warp_nb", *names]:
    import_module(name)
print(len(names))
"""


def test_no_module_needs_what_windows_lacks() -> None:
    """At the top of a module; inside a function it stands in a `try`."""
    named = {
        (path, name.partition(".")[0])
        for path, tree in MODULES.items()
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    assert len(named) > 100 and not [one for one in named if one[1] in POSIX]


@pytest.mark.slow
def test_every_module_is_imported_without_what_windows_lacks() -> None:
    done = subprocess.run([sys.executable, "-c", ALL_WITHOUT], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 50


LATER = {"accelerate", "datasets", "matplotlib", "pandas", "scipy", "sklearn", "transformers", "trl"}
"""Libraries that a module on the way to the first step does not import at its top: inside a function, when needed."""
START = ("notebook.experiment_banner", "studies.experiment", "tasks.prepared", "tasks.imdb_gate", "tasks.reward_model")
FIRST_STEP = """
import sys
from warp_nb import ExperimentConfig, load_task, notebook, warp
config = ExperimentConfig(task="small", device="cpu", I=1, M=1, T=1, batch_size=2, max_new_tokens=2)
task = load_task("small", "cpu")
notebook.banner(config, task)
task.gate(task.reward)
def stepped(row):
    print({"datasets", "matplotlib", "pandas", "pyarrow", "scipy.stats", "sklearn", "trl"} & set(sys.modules))
    raise SystemExit
warp(config, task, progress=stepped)
"""


def at_the_top(path: str) -> set[str]:
    """The modules that are imported when a module is, in full."""
    found = set()
    for node in MODULES[path].body:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def test_the_way_to_the_first_step_imports_no_library_that_can_wait() -> None:
    reached, left = set(), [f"warp_nb/{name.replace('.', '/')}.py" for name in START]
    while left:
        path = left.pop()
        reached.add(path)
        names = at_the_top(path)
        assert not {name.partition(".")[0] for name in names} & LATER, path
        inner = {f"{name.replace('.', '/')}.py" for name in names if name.startswith("warp_nb.")}
        left += sorted((inner & MODULES.keys()) - reached)
    assert {"warp_nb/notebook/tables.py", "warp_nb/runs/training.py", "warp_nb/tasks/remembered.py"} <= reached


@pytest.mark.slow
def test_the_first_step_waits_for_no_library_that_only_trainers_and_figures_need() -> None:
    for _ in range(2):  # the first process may fill the cache
        done = subprocess.run([sys.executable, "-c", FIRST_STEP], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "set()\n"


def test_algorithm_1_imports_torch_and_the_standard_library_only() -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    found = set()
    for path, tree in MODULES.items():
        if path.startswith("warp_nb/algorithm/"):
            found |= imported(tree)
    own = {name for name in found if name.startswith("warp_nb.algorithm.")}
    assert "torch" in found and "warp_nb.algorithm.merge" in own
    assert [name for name in sorted(found - own) if name.partition(".")[0] not in allowed] == []


def test_algorithm_1_is_read_in_one_sitting() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "warp_nb" / "algorithm").glob("*.py")]
    assert 0 < sum(len(text.splitlines()) for text in texts) <= 350


def top_functions(body: list[ast.stmt]) -> list[ast.FunctionDef]:
    """Functions and methods; not the functions inside them, which are called where they are defined."""
    inside = [one for node in body if isinstance(node, ast.ClassDef) for one in top_functions(node.body)]
    return [node for node in body if isinstance(node, ast.FunctionDef)] + inside


def positional(function: ast.FunctionDef) -> list[str]:
    """Parameters that may be given by position, without the instance or the class."""
    names = [one.arg for one in function.args.posonlyargs + function.args.args]
    return [name for name in names if name not in ("self", "cls")]


def test_more_than_four_parameters_are_keyword_only() -> None:
    found = {
        (path, function.name)
        for path, tree in MODULES.items()
        for function in top_functions(tree.body)
        if len(positional(function)) > 4
    }
    assert found == SIGNATURES_OF_OTHERS


def defined(tree: ast.Module) -> set[str]:
    """Public functions, classes and constants of a module; `main` is what a command calls."""
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    several = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    for target in several + [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]:
        names = [node for node in ast.walk(target) if isinstance(node, ast.Name)]
        found |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return {name for name in found if not name.startswith("_") and name != "main"}


def test_a_name_has_one_home_but_for_the_fast_twins() -> None:
    homes = defaultdict(list)
    for path, tree in MODULES.items():
        for name in defined(tree):
            homes[name].append(path)
    shared = {name: [path.split("/")[1] for path in paths] for name, paths in homes.items() if len(paths) > 1}
    twins = {name: ["algorithm", "fast"] for name in PLAIN.replaced()}
    assert shared == twins, {name: homes[name] for name in shared.keys() ^ twins.keys()}


def test_the_readme_tree_holds_every_room_and_nothing_else() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.partition("## The tree")[2].partition("warp_nb/\n")[2].partition("\nnotebooks/")[0]
    listed = re.findall(r"^  (\w+(?:\.py|/)) ", tree, re.MULTILINE)
    package = ROOT / "warp_nb"
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert sorted(listed) == sorted(rooms | modules)


def test_every_command_that_is_named_is_one() -> None:
    texts = [
        path.read_text(encoding="utf-8")
        for kind in ("*.md", "docs/*.md", "warp_nb/**/*.py", "Makefile")
        for path in ROOT.glob(kind)
        if path.name != "CHANGELOG.md"  # tells of the past
    ]
    command = r"(?m)(?:-m warp_nb|(?:^[ \t]*|[`'(/]|prog=\")warp-nb) ([a-z][\w-]*)"  # no class of HTML, no prose
    assert {name for text in texts for name in re.findall(command, text)} == cli.COMMANDS.keys()
    modules = {name for text in texts for name in re.findall(r"-m (warp_nb(?:\.\w+)+)", text)}
    assert "warp_nb.report" in modules
    for name in modules:
        assert util.find_spec(name) or util.find_spec(f"{name}.__main__"), name


@pytest.mark.parametrize("name", sorted(import_module("warp_nb").__all__))
def test_every_public_name_loads(name: str) -> None:
    assert getattr(import_module("warp_nb"), name).__module__.startswith("warp_nb.")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_make_alone_prints_its_commands() -> None:
    done = make()
    listed = set(re.findall(r"make ([a-z]+)", done.stdout))
    assert done.returncode == 0 and {"reports", "test", "quick", "browser", "lab", "badges", "clean"} <= listed


def test_an_old_python_is_refused_with_the_remedy(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode and "3.11" in done.stderr and "PYTHON=" in done.stderr


def badges(root: Path, repo: str) -> subprocess.CompletedProcess[str]:
    script = shutil.copy(ROOT / "scripts" / "badges.py", root / "scripts")
    return subprocess.run([sys.executable, script, repo], capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (tmp_path / "notebooks" / "lessons").mkdir(exist_ok=True)
    shutil.copy(ROOT / "notebooks" / "exp1.ipynb", tmp_path / "notebooks" / "lessons" / "lesson0.ipynb")
    return tmp_path


def test_badges_pin_the_commit_that_is_checked_out(copy: Path) -> None:
    git = ["git", "-C", copy, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for _ in range(2):
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "x"], check=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        assert badges(copy, "octocat/warp").returncode == 0
        for path in (copy / "notebooks").rglob("*.ipynb"):
            cell = json.loads(path.read_text(encoding="utf-8"))["cells"][1]
            assert f'\nCOMMIT = "{commit}"\n' in "".join(cell["source"])


def test_badges_are_written_and_replaced(copy: Path) -> None:
    assert badges(copy, "first/one").returncode == 0
    assert badges(copy, "octocat/warp").returncode == 0
    readme = (copy / "README.md").read_text(encoding="utf-8")
    paths = [path.relative_to(copy).as_posix() for path in sorted((copy / "notebooks").rglob("*.ipynb"))]
    assert "first/one" not in readme and {"notebooks/index.ipynb", "notebooks/lessons/lesson0.ipynb"} <= set(paths)
    for path in paths:
        text = (copy / path).read_text(encoding="utf-8")
        assert readme.count(f"octocat/warp/blob/main/{path})") == 1
        cells = json.loads(text)["cells"]
        assert f"octocat/warp/blob/main/{path})" in cells[0]["source"][0] and "first/one" not in text
        source = ROOT / path.replace("lessons/lesson0", "exp1")
        original = json.loads(source.read_text(encoding="utf-8"))["cells"]
        assert [c["source"] for c in cells[2:]] == [c["source"] for c in original[2:]]
        if 'REPO = ""' in str(original[1]["source"]):
            assert 'REPO = "octocat/warp"' in "".join(cells[1]["source"])


@pytest.mark.parametrize("repo", ["", "name", "a/b/c", 'a/b"; x', "https://example.org/a"])
def test_a_wrong_address_is_refused_untouched(copy: Path, repo: str) -> None:
    before = (copy / "README.md").read_text(encoding="utf-8")
    done = badges(copy, repo)
    assert done.returncode and "owner/name" in done.stderr
    assert (copy / "README.md").read_text(encoding="utf-8") == before


def test_make_and_the_report_command_agree_on_the_default_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TASK", raising=False)
    monkeypatch.delenv("SEEDS", raising=False)
    monkeypatch.chdir(ROOT)
    for target, named in (("reports", []), ("exp5", ["exp5"])):
        (words,) = re.findall(r"-m warp_nb\.report (.*)", make("--dry-run", target).stdout)
        assert words.split()[:-4] == named and "auto" in words.split()
        by_make, alone = report.arguments(words.split()), report.arguments(named)
        assert (by_make.task, by_make.why, by_make.wanted) == (alone.task, alone.why, alone.wanted) and alone.why


def test_makes_variables_reach_the_report_command() -> None:
    said = make("--dry-run", "reports", "TASK=small", "SEEDS=2").stdout
    assert said.rstrip().endswith("-m warp_nb.report --task small --seeds 2")
