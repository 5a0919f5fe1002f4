"""What results depend on besides the code: processor, versions, and load by other processes."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from warp_nb.measure.machine import processor

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "trl", "mergekit", "safetensors", "numpy")
UNMEASURED = {"page.py", "gpu_table.py", "session.py"}
"""Modules of this folder that show or order what others measure."""
LIMIT = 0.05
"""Largest share of the processors that others may use."""


@dataclass(frozen=True)
class Clock:
    """A moment in seconds of processor time: all of it, what was busy, what this program and its children used."""

    total: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> Clock:
        """Return the current moment; time stolen from a virtual machine counts as used by others."""
        times = psutil.cpu_times()._asdict()
        counted = {name: value for name, value in times.items() if not name.startswith("guest")}
        total = sum(counted.values())
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        return cls(total, total - counted["idle"] - counted.get("iowait", 0.0), own)


def others(before: Clock, after: Clock) -> float:
    """Return the share of the processors, 0 to 1, that others used between two moments; children count at their end."""
    if after.total <= before.total:  # too short a time for the system's clock
        return 0.0
    busy = (after.busy - before.busy) - (after.own - before.own)
    return min(1.0, max(0.0, busy / (after.total - before.total)))


def measured_load(seconds: float = 1.5) -> float:
    """Measure the share of the processors that others use now, over `seconds`."""
    before = Clock.now()
    time.sleep(seconds)
    return others(before, Clock.now())


def refuse_load(share: float, when: str) -> None:
    """Raise RuntimeError if others use more than LIMIT of the processors."""
    if share > LIMIT:
        raise RuntimeError(
            f"{when}, other programs used {share:.0%} of the processors; at most {LIMIT:.0%} may be used, or the "
            f"figures are theirs as well. Stop them (`top` shows which) and run the same command again: finished "
            f"parts are kept"
        )


def machine() -> dict[str, Any]:
    """Return processor, number of processors, memory in GB (1e9 bytes), system, Python."""
    memory = round(psutil.virtual_memory().total / 1e9)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": processor(), "processors": threads, "memory_gb": memory, "system": system}


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of the libraries whose speed is measured."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def source_sha256(root: Path = ROOT) -> str:
    """Return the sha256 of the code that is measured and that measures; a part is out of date if it changes."""
    digest = hashlib.sha256()
    measuring = [path for path in (root / "benchmarks").glob("*.py") if path.name not in UNMEASURED]
    for path in sorted([*(root / "warp_nb").rglob("*.py"), *measuring]):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
