"""The machine that a result was measured on."""

from __future__ import annotations

import subprocess
import sys

ASK = "from warp_nb.measure.machine import peak_rss_mb; print(peak_rss_mb())"
LARGE = f"""
import subprocess, sys
held = bytearray(b"1" * (400 << 20))
print(subprocess.run([sys.executable, "-c", {ASK!r}], capture_output=True, text=True, check=True).stdout)
"""


def peak_of(program: str) -> float:
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(found.stdout)


def test_a_process_has_its_own_peak_and_not_that_of_the_one_that_started_it() -> None:
    assert peak_of("held = bytearray(b'1' * (400 << 20))\n" + ASK) > 400
    assert peak_of(LARGE) < 200
