"""A gate for rewards of the tiny vocabulary: its own pairs in the place of IMDb's reviews."""

from __future__ import annotations

from functools import partial

import tiny

from warp_nb.tasks.gate import measure_gate
from warp_nb.tasks.imdb_gate import SENTENCES

PAIRS = [
    ((prompt, f" it is {good}"), (prompt, f" it is {bad}"))
    for prompt, good, bad in zip(tiny.prompts(9, seed=7), tiny.GOOD, tiny.BAD, strict=True)
]
gate = partial(measure_gate, pairs=PAIRS, sentences=SENTENCES)
"""What `Task(gate=gate)` takes."""
