#!/usr/bin/env bash
# The first cell and lesson 1 in a new environment with what Colab has installed (scripts/colab.txt).
#
#     bash scripts/colab.sh
#     PYTHON=python3.13 bash scripts/colab.sh      # Colab's own version, where it is installed
#
# Python is that of this machine, whichever it is; there is no GPU and none of Colab's own packages. PyPI's torch for
# Linux does not load without its CUDA libraries, so about 5 GB of disk are used until the end. The package is installed
# by the notebook's first cell, from a copy of this checkout as a clone would have it; the cache folder is the user's
# own, and the reward model of these versions is trained into it once. Fails when a cell fails, or torch or numpy were
# replaced.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$work/venv/bin/python

"${PYTHON:-python3}" -m venv "$work/venv"
"$python" -m pip install --quiet --disable-pip-version-check --requirement "$checkout/scripts/colab.txt"
mkdir "$work/clone"
git -C "$checkout" ls-files -z --cached --others --exclude-standard |
  tar --create --directory "$checkout" --null --files-from - | tar --extract --directory "$work/clone"
"$python" -m pip freeze >"$work/before"

cd "$work/clone/notebooks/lessons"
started=$SECONDS
PATH=$work/venv/bin:$PATH "$python" -m jupyter execute --inplace --timeout=1200 lesson1.ipynb
echo "Lesson 1 with its first cell, which installs the package: $((SECONDS - started)) s"

"$python" -m pip freeze >"$work/after"
"$python" --version
echo 'Replaced or added by the first cell:'
diff "$work/before" "$work/after" | grep '^[<>]' || true
echo 'Kept:'
grep -iE '^(torch|numpy|transformers|ipykernel|ipython|ipywidgets)==' "$work/after"
for name in torch numpy; do
  grep --quiet --line-regexp --fixed-strings "$(grep "^$name==" "$work/before")" "$work/after" || {
    echo "the first cell replaced $name: lower its bound in pyproject.toml" >&2
    exit 1
  }
done
