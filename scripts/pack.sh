#!/usr/bin/env bash
# The project with all that a machine without a network lacks, in pieces of a given size, to be copied there by hand.
#
#     bash scripts/pack.sh DIR [PIECE_SIZE]       # into the new folder DIR; pieces of 60M (MiB) by default
#     bash DIR/unpack.sh TARGET                   # there: checks the sums, unpacks, prints the command to run
#
# In the pack: the tracked files of this checkout as they are now; wheels for TARGET_PYTHON on Linux x86_64 of what the
# package and its tests need beyond BASE, which the machine has (torch and nvidia-* are never packed), with those that
# BASE needs too as a spare for a machine that lacks one; and the sources
# of the tasks `small` and `smollm` from the cache (reviews, SmolLM2's GGUF, MiniLM; fetched if they are missing).
# The policy after SFT and the reward model depend on the versions of torch, transformers and TRL and on bf16, so
# another machine makes its own from these sources. PARTS=trained packs this machine's too, for one that equals it.
#
#     TARGET_PYTHON=3.12 BASE="torch transformers" PARTS=sources PYTHON=.venv/bin/python     # the defaults
set -euo pipefail
out=${1:?usage: scripts/pack.sh DIR [PIECE_SIZE]}
size=${2:-60M}
target_python=${TARGET_PYTHON:-3.12}
parts=${PARTS:-sources}
case $parts in sources) trained= ;; trained) trained=--trained ;; *)
  echo "PARTS must be sources or trained, got $parts" >&2
  exit 2
  ;;
esac
checkout=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$checkout/.venv/bin/python}
if [ -n "$(ls -A "$out" 2>/dev/null)" ]; then
  echo "$out is not empty; pass a new folder" >&2
  exit 2
fi
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/project" "$work/wheels" "$work/spare" "$work/cache"

# `git stash create` names the tracked files as they are, and changes nothing; it is empty when nothing has changed
tree=$(git -C "$checkout" -c user.name=pack -c user.email=pack@localhost stash create || true)
git -C "$checkout" archive "${tree:-HEAD}" | tar -x -C "$work/project"

cd "$work/project"
export PYTHONPATH=$work/project HF_HUB_OFFLINE=1
read -ra base <<<"${BASE-torch transformers}"
names=(-m scripts.packing packages --python "$target_python" --base "${base[@]}")
"$python" "${names[@]}" >"$work/wheels.txt"
"$python" "${names[@]}" --spare >"$work/spare.txt"
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux2010 manylinux1 linux; do
  platforms+=(--platform "${tag}_x86_64")
done
download() { # to a folder: the wheels that the rest of the arguments name
  "$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --implementation cp \
    --python-version "$target_python.99" "${platforms[@]}" --dest "$@" # 3.12 alone means 3.12.0, too old for some
}
grep == "$work/wheels.txt" >"$work/known.txt"
download "$work/wheels" --no-deps --requirement "$work/known.txt"
download "$work/spare" --no-deps --requirement <(grep == "$work/spare.txt")
# what only the target's Python needs has no version here, so pip chooses it with what it needs in turn
if grep -v == "$work/wheels.txt" >"$work/unknown.txt"; then
  download "$work/wheels" --constraint "$work/known.txt" --requirement "$work/unknown.txt"
  rm -f "$work"/wheels/{torch,triton,nvidia_,cuda_}*.whl
fi

"$python" -m scripts.packing parts $trained >"$work/parts.txt"
cache=$("$python" -c 'from warp_nb.files import cache_dir; print(cache_dir())')
tar -c -C "$cache" --files-from "$work/parts.txt" | tar -x -C "$work/cache"

{
  echo "commit: $(git -C "$checkout" rev-parse HEAD)${tree:+ and changes}"
  echo "python: $target_python"
  echo "parts: $parts"
  sed 's/^/wheel: /' "$work/wheels.txt"
  sed 's/^/spare: /' "$work/spare.txt"
  sed 's/^/cache: /' "$work/parts.txt"
} >"$out/contents.txt"
find "$work/project" -name __pycache__ -prune -exec rm -rf {} +
tar -c -C "$work" project wheels spare cache | split --bytes "$size" --numeric-suffixes --suffix-length 3 - "$out/piece-"
cp "$work/project/scripts/unpack.sh" "$out/unpack.sh"
(cd "$out" && sha256sum contents.txt unpack.sh piece-* >SHA256SUMS)
echo "$(ls "$out"/piece-* | wc -l) pieces of at most $size in $out; there: bash unpack.sh TARGET"
