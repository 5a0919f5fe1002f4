"""The command `warp-nb merge`: merge the task vectors of checkpoints on disk, and print their angles.

warp-nb merge BASE RUN1 RUN2 --out DIR
warp-nb merge BASE RUN1 RUN2 RUN3 --method lerp --eta 0.3 --out DIR
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from itertools import groupby

from warp_nb.algorithm.merge import liti
from warp_nb.measure.machine import peak_rss_mb
from warp_nb.paths import expanded
from warp_nb.runs.geometry import whole_cosine
from warp_nb.runs.merge_files import Angles, MergeRecipe, merge_files
from warp_nb.runs.merge_inputs import open_inputs


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    made = argparse.ArgumentParser(prog="warp-nb merge", description="Merge task vectors of checkpoints on disk.")
    made.add_argument("base", metavar="BASE", help="the folder of the model that all runs started from")
    made.add_argument(
        "runs", metavar="RUN", nargs="+", help="folders of fine-tuned models, or of LoRA adapters of BASE"
    )
    made.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder for the result")
    made.add_argument("--method", choices=("slerp", "lerp"), default="slerp", help="default: slerp")
    shared = "what shares one angle; default: layer"
    made.add_argument("--by", choices=("layer", "tensor", "global"), default="layer", help=shared)
    made.add_argument("--lam", type=float, default=0.5, help="weight of the second of two runs, 0 to 1; default: 0.5")
    towards = (
        "LITI: (1 - eta) * BASE + eta * merged, 0 to 2; default: 1, the merged weights (the paper goes on from 0.3)"
    )
    made.add_argument("--eta", type=float, default=1.0, help=towards)
    return made


def checked(given: argparse.Namespace) -> MergeRecipe:
    """Return the recipe of the arguments; raise ValueError if lam or eta is out of range or has no effect."""
    liti({}, {}, given.eta)  # its rule for eta
    if not 0 <= given.lam <= 1:
        raise ValueError(f"lam must be in [0, 1], got {given.lam}; pass e.g. --lam 0.5")
    if given.lam != 0.5 and len(given.runs) != 2:
        raise ValueError(f"lam = {given.lam} needs two runs, got {len(given.runs)}; leave --lam out")
    return MergeRecipe(given.method, given.by, given.lam, given.eta)


def angle_table(rows: Angles) -> str:
    """Return the angles as text: a row per block and pair of runs, and a row over all weights of a pair."""
    columns = ("cosine", "omega", "norm_a", "norm_b")
    lines = [["block", "runs", "cosine", "omega, deg", "norm a", "norm b"]]
    for pair, found in groupby(rows, key=lambda row: f"{row['run_a']}, {row['run_b']}"):
        mine = list(found)
        lines += [[str(row["block"]), pair, *(f"{row[name]:.4g}" for name in columns)] for row in mine]
        lines.append(["all weights", pair, f"{whole_cosine(mine):.4g}", "", "", ""])
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    cells = [[line[0].ljust(first), *map(str.rjust, line[1:], widths)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def main(argv: Sequence[str] | None = None) -> None:
    """Merge, print the table of angles, where the result is, the seconds and the peak memory."""
    started = time.perf_counter()
    commands = parser()
    given = commands.parse_args(argv)
    try:
        recipe, out = checked(given), expanded(given.out)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            base, runs = open_inputs(expanded(given.base), [expanded(run) for run in given.runs], out)
    except ValueError as wrong:
        commands.error(str(wrong))
    record = merge_files(base, runs, out, recipe)
    if record["angles"]:
        print(angle_table(record["angles"]))
    print(f"tensors that no run moved: {record['unmoved_tensors']}")
    print(f"{out}: {time.perf_counter() - started:.1f} s, peak memory {peak_rss_mb():.0f} MB")
