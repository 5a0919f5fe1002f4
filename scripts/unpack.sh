#!/usr/bin/env bash
# Check and unpack what scripts/pack.sh made, beside this file; needs no network.
#
#     bash unpack.sh TARGET                       # into the new folder TARGET; then run the command that it prints
#     PYTHON=/path/to/python bash unpack.sh TARGET
set -euo pipefail
target=${1:?usage: unpack.sh TARGET}
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
if ! (cd "$here" && sha256sum --check --quiet --strict SHA256SUMS); then
  echo "a file of the pack is damaged or missing (named above); copy it again" >&2
  exit 1
fi
wanted=$(sed -n 's/^python: //p' "$here/contents.txt")
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$found" != "$wanted" ]; then
  echo "the wheels are for Python $wanted, $python is $found; pass PYTHON=, or pack again with TARGET_PYTHON=$found" >&2
  exit 1
fi
if [ -n "$(ls -A "$target" 2>/dev/null)" ]; then
  echo "$target is not empty; pass a new folder" >&2
  exit 1
fi
mkdir -p "$target"
target=$(cd "$target" && pwd)
# dill, with which datasets names what it caches, takes packages for installed only in a folder of the name site-packages
cat "$here"/piece-* | tar -x -C "$target"
install() {
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --upgrade \
    --target "$target/site-packages" "$@"
}
install "$target"/wheels/*.whl
missing='
import pathlib, sys
from importlib.metadata import PackageNotFoundError, version
for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
    try:
        version(wheel.name.partition("-")[0])
    except PackageNotFoundError:
        print(wheel)
'
mapfile -t lacking < <(PYTHONPATH=$target/site-packages "$python" -c "$missing" "$target/spare")
if [ ${#lacking[@]} -gt 0 ]; then
  install "${lacking[@]}"
fi
rm -r "$target/wheels" "$target/spare"
echo "Unpacked. Run:"
printf 'PYTHON=%q PYTHONPATH=%q WARP_NB_CACHE=%q bash %q\n' \
  "$python" "$target/site-packages" "$target/cache" "$target/project/scripts/gpu.sh"
