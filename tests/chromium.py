"""The Chromium that is installed on this machine."""

from __future__ import annotations

from warp_nb.report.printing import chromium

CHROMIUM = chromium()
"""Its path; None where there is none."""
