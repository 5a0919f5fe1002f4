"""The command `warp-nb`, also `python -m warp_nb`: one sub-command for every task of the package.

warp-nb report --task small       # run experiments and write their reports
warp-nb diagnosis                 # measure the cells that the table of the diagnosis lacks
warp-nb guide                     # run the committed notebooks in place and time them
warp-nb job FOLDER I M --task small    # make run M of iteration I of a folder, for any scheduler
warp-nb merge BASE RUN1 RUN2 --out DIR    # merge the task vectors of checkpoints on disk
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "report": ("warp_nb.report.command", "run experiments and write their reports"),
    "diagnosis": ("warp_nb.studies.diagnosis", "measure the cells that the table of the diagnosis lacks"),
    "guide": ("warp_nb.report.guide", "run the committed notebooks in place and time them"),
    "job": ("warp_nb.runs.jobs", "make one run of a folder of runs"),
    "merge": ("warp_nb.studies.merge_command", "merge checkpoints on disk"),
}
"""Sub-command -> the module whose `main(argv)` it calls, and its help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Call the sub-command with the remaining arguments and return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="warp-nb", description="WARP in notebooks (arXiv 2406.16768).")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, words) in COMMANDS.items():
        choices.add_parser(name, help=words, add_help=False)
    chosen, _ = parser.parse_known_args(given[:1])
    command = import_module(COMMANDS[chosen.command][0])
    from warp_nb.files import DamagedFile  # here, so that the help costs no torch

    try:
        return int(command.main(given[1:]) or 0)
    except DamagedFile as error:
        print(error, file=sys.stderr)
        return 1
