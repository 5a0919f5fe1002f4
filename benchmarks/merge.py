"""Part merge: SLERP of two SmolLM2-sized runs from disk to disk, against mergekit's nuslerp.

Both read three safetensors models, merge tensor by tensor (mergekit's way) and write the result; the results are
compared. In-process: libraries imported, warm, models in memory. Commands: `warp-nb merge`, which streams, and
`mergekit-yaml`, a fresh process each time. SLERP, LITI and the front of Algorithm 1, which mergekit lacks, are
measured alone.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, alone, compare_units
from benchmarks.sides import Side, Turns, fresh, interleave, once

NAMES = ("base", "first", "second")
NOISE = 1e-3


def run(
    say: Callable[[str], None],
    *,
    task: str,
    pairs: int,
    cli_pairs: int,
    etas: list[float],
    targets: dict[str, float],
    threads: int,
) -> Figure:
    """Measure in-process pairs, check equality, measure CLI pairs, then our lines 12 and 13 and the front."""
    with tempfile.TemporaryDirectory() as folder:
        where = {"folder": folder, "threads": threads}
        once("benchmarks.merge:prepare", folder=folder, task=task)
        with Side("benchmarks.merge:ours", **where) as ours, Side("benchmarks.merge:mergekit", **where) as theirs:
            pair_units = interleave(ours, theirs, pairs, say)
        found = compare_units("SLERP", "mergekit nuslerp", *pair_units, targets)
        writing = [unit["writing"] for unit in pair_units[0]]
        mine, other = [], []
        for pair in range(1, cli_pairs + 1):
            mine.append(fresh(*our_command(folder, pair)))
            other.append(fresh(*cli(folder)))
            say(f"CLI, pair {pair}/{cli_pairs}: ours {mine[-1]['seconds']:.2f} s, theirs {other[-1]['seconds']:.2f} s")
        found += compare_units("warp-nb merge --by tensor", "mergekit-yaml", mine, other, targets)
        difference = once("benchmarks.merge:largest_difference", folder=folder)["difference"]
        with Side("benchmarks.merge:whole", etas=etas, **where) as side:
            units = [side.unit() for _ in range(pairs)]
    title = f"SLERP, LITI and a front of {len(etas)} etas, read and written"
    own = [alone("of SLERP the writing: to the disk (fsync), under its name when whole", "s", writing)]
    own.append(alone(title, "s", [unit["seconds"] for unit in units]))
    own.append(alone(f"{title}: peak memory", "bytes", [unit["peak_rss"] for unit in units]))
    return {"comparisons": found, "alone": own, "largest_difference": difference}


def prepare(turns: Turns, folder: str, task: str) -> None:
    """Write three models and the recipe to `folder`: the task's policy, and two copies moved by noise."""
    import torch

    from benchmarks import work

    policy = work.load_task(task).policy
    generator = torch.Generator().manual_seed(0)
    start = [value.detach().clone() for value in policy.parameters()]
    for name in NAMES:
        if name != "base":
            with torch.no_grad():
                for value, base in zip(policy.parameters(), start, strict=True):
                    value.copy_(base + NOISE * torch.randn(base.shape, generator=generator))
        policy.save_pretrained(Path(folder) / name)
    (Path(folder) / "recipe.yml").write_text(json.dumps(recipe(folder)))  # JSON is YAML
    turns.next()


def recipe(folder: str) -> dict[str, Any]:
    """Return mergekit's recipe: SLERP of the task vectors at 0.5, tensor by tensor."""
    models = [{"model": str(Path(folder) / name), "parameters": {"weight": 0.5}} for name in NAMES[1:]]
    base = str(Path(folder) / "base")
    return {"merge_method": "nuslerp", "base_model": base, "models": models, "dtype": "float32"}


def slerp_files(folder: Path) -> tuple[Any, Any, float]:
    """Read three models, merge the two around their base by tensor, write the result.

    Returns base, merged and the seconds of writing.
    """
    from safetensors.torch import load_file

    from warp_nb.algorithm.merge import merge

    base, *runs = (load_file(folder / name / "model.safetensors") for name in NAMES)
    merged = merge(base, runs, by="tensor")
    started = time.perf_counter()
    write(folder / "ours.safetensors", merged)
    return base, merged, time.perf_counter() - started


def write(path: Path, weights: Any) -> None:
    """Write weights as all files of a run are written: atomically and to the disk."""
    from safetensors.torch import save_file

    from warp_nb.files import replacing

    with replacing(path) as temporary:
        save_file(weights, temporary)


def ours(turns: Turns, folder: str, threads: int) -> None:
    """Run the side: a unit is one `slerp_files`."""
    import torch

    torch.set_num_threads(threads)
    while True:
        _, _, writing = slerp_files(Path(folder))
        turns.next(writing=writing)


def mergekit(turns: Turns, folder: str, threads: int) -> None:
    """Run the side: a unit is one `run_merge` without tokenizer and model card."""
    import torch
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    torch.set_num_threads(threads)
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    while True:
        run_merge(MergeConfiguration.model_validate(recipe(folder)), str(Path(folder) / "theirs"), options)
        turns.next()


def our_command(folder: str, pair: int) -> list[str]:
    """Return `warp-nb merge` for the same merge; a folder for every pair, because none is replaced."""
    models, out = [str(Path(folder) / name) for name in NAMES], str(Path(folder) / f"ours-{pair}")
    return [sys.executable, "-m", "warp_nb", "merge", *models, "--by", "tensor", "--out", out]


def cli(folder: str) -> list[str]:
    """Return mergekit's command for the same merge."""
    command = shutil.which("mergekit-yaml", path=str(Path(sys.executable).parent))
    if command is None:
        raise RuntimeError("mergekit-yaml is not beside this Python; install the dev extra: pip install -e '.[dev]'")
    recipe_file, out = str(Path(folder) / "recipe.yml"), str(Path(folder) / "theirs-cli")
    return [command, recipe_file, out, "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]


def largest_difference(turns: Turns, folder: str) -> None:
    """Return the largest difference of a weight; raise RuntimeError if two merges are not the same work.

    Those in memory and by `warp-nb merge` must agree to the bit, ours and mergekit's within rounding.
    """
    import torch
    from safetensors.torch import load_file

    mine, streamed = (load_file(Path(folder) / name) for name in ("ours.safetensors", "ours-1/model.safetensors"))
    if any(not streamed[name].equal(value) for name, value in mine.items()):
        raise RuntimeError("warp-nb merge and our merge in memory differ; not the same work")
    theirs: dict[str, torch.Tensor] = {}
    for path in (Path(folder) / "theirs").glob("*.safetensors"):
        theirs |= load_file(path)
    for name in mine:
        if not torch.allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-6):
            raise RuntimeError(f"{name} differs between our merge and mergekit's; not the same work")
    turns.next(difference=max((mine[name] - theirs[name]).abs().max().item() for name in mine))


def whole(turns: Turns, folder: str, threads: int, etas: list[float]) -> None:
    """Run the side: a unit is one `front_files`."""
    import torch

    torch.set_num_threads(threads)
    while True:
        front_files(Path(folder), etas)
        turns.next()


def front_files(folder: Path, etas: list[float]) -> None:
    """Read, apply SLERP, LITI and the front; write the merge, the next initialisation and the front's models."""
    from warp_nb.algorithm.merge import front, liti

    base, merged, _ = slerp_files(folder)
    write(folder / "init.safetensors", liti(base, merged, 0.5))
    for place, weights in enumerate(front(base, merged, etas)):
        write(folder / f"front_{place}.safetensors", weights)
