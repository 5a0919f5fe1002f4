"""Write a repository's address into README.md and the notebooks: Colab badges, and where to install from.

    python scripts/badges.py owner/name

The first cell installs the commit that is checked out, so push it before you hand out the notebooks; outside of a git
checkout no commit is pinned. Running it again replaces address and commit. Standard library only.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
README_MARKS = re.compile(r"(<!-- badges -->\n).*?(<!-- /badges -->)", re.DOTALL)
ADDRESS = re.compile(r'^REPO = "[^"]*"(.*)\nCOMMIT = "[^"]*"', re.MULTILINE)
NOTEBOOK_BADGE = re.compile(r"\A\[!\[[^\n]*\n\n")


def badge(repo: str, notebook: str) -> str:
    """Markdown of the badge that opens notebooks/<notebook>, a path with slashes, in Colab."""
    target = f"https://colab.research.google.com/github/{repo}/blob/main/notebooks/{notebook}"
    return f"[![Открыть {notebook} в Colab]({IMAGE})]({target})"


def checked_out(root: Path) -> str:
    """Return the full commit of the checkout `root`; empty if it is none."""
    try:
        done = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def write(repo: str, root: Path = ROOT) -> None:
    """Change README.md, notebooks/*.ipynb and notebooks/lessons/*.ipynb under `root`.

    Raises ValueError for an address that is not owner/name.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", repo):
        raise ValueError(f"REPO must be owner/name, got {repo!r}; run e.g. make badges REPO=octocat/warp")
    folder, commit = root / "notebooks", checked_out(root)
    paths = [*sorted(folder.glob("lessons/*.ipynb")), *sorted(folder.glob("*.ipynb"))]
    notebooks = {path.relative_to(folder).as_posix(): path for path in paths}
    lines = "".join(f"{badge(repo, name)} `{name}`  \n" for name in notebooks)
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(README_MARKS.sub(lambda m: f"{m[1]}{lines}{m[2]}", text), encoding="utf-8")
    for name, path in notebooks.items():
        content = json.loads(path.read_text(encoding="utf-8"))
        title, *others = content["cells"]
        words = NOTEBOOK_BADGE.sub("", "".join(title["source"]))
        title["source"] = f"{badge(repo, name)}\n\n{words}".splitlines(keepends=True)
        for cell in others:
            if cell["cell_type"] == "code":
                source = ADDRESS.sub(rf'REPO = "{repo}"\1\nCOMMIT = "{commit}"', "".join(cell["source"]))
                cell["source"] = source.splitlines(keepends=True)
                break
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        write(sys.argv[1] if len(sys.argv) > 1 else "")
    except ValueError as error:
        sys.exit(str(error))
