"""A page printed to PDF by headless Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from warp_nb.files import write_bytes

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Names under which Chromium is installed."""
PRINTING_SECONDS = 120
"""Most that printing may take."""


def chromium() -> str | None:
    """Return the path of the Chromium that is installed; None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def print_pdf(page: Path, pdf: Path) -> None:
    """Print an HTML page to a PDF of A4 pages without headers, atomically.

    Raises:
        ValueError: the page or Chromium is missing, or Chromium printed nothing.
    """
    program = chromium()
    if program is None:
        raise ValueError(
            f"a PDF is printed by Chromium, and none of {', '.join(BROWSERS)} is on the PATH; install one, "
            f"e.g. apt-get install chromium, or print {page} from your browser"
        )
    if not page.is_file():
        raise ValueError(f"there is no {page} to print; make it: warp-nb report --render --task TASK")
    with tempfile.TemporaryDirectory() as profile:
        printed = Path(profile) / "page.pdf"
        command = [program, "--headless", "--disable-gpu", f"--user-data-dir={profile}", "--no-pdf-header-footer"]
        if getattr(os, "geteuid", lambda: 1)() == 0:
            command.append("--no-sandbox")  # Chromium has no sandbox for root
        command += [f"--print-to-pdf={printed}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PRINTING_SECONDS)
        if done.returncode or not printed.exists():
            raise ValueError(f"{program} printed nothing: {done.stderr.strip()[-500:]}; print {page} from your browser")
        write_bytes(pdf, printed.read_bytes())
