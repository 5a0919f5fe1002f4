"""Experiments that ended in every way that the words about an experiment tell apart: keywords of `synthetic.result`."""

from __future__ import annotations

import math
import re
from typing import Any

from synthetic import around, equal

from warp_nb.studies.original import ROWS

STILL = {
    "reward_difference": around(0.01, 0.05),
    "kl_reference_policy": around(1e-4, 1e-5),
    "kl_policy_reference": around(1e-4, 1e-5),
}
FLAT = {"reward": 0.0, "penalty": 0.0}
FAR = {"kl_reference_policy": around(90.0, 5.0), "kl_policy_reference": around(100.0, 5.0)}
UNKNOWN = {"reward_difference": around(0.3, 0.5), "kl_policy_reference": equal(math.inf)}
BROKEN = {"distinct_policy": equal(0.2)}
CASES: dict[str, dict[str, Any]] = {
    "gain": {"curves": {"noise": 1e-4}},
    "gain, far": {"held_out": FAR},
    "small gain": {"held_out": {"reward_difference": around(0.1, 0.05)}},
    "loss": {"held_out": {"reward_difference": around(-0.5, 0.1)}},
    "loss, near": {"held_out": {"reward_difference": around(-0.3, 0.1)} | dict.fromkeys(FAR, equal(0.1))},
    "still, warm-up": {"held_out": STILL, "curves": FLAT, **ROWS[1].settings},
    "still": {"held_out": STILL, "curves": FLAT, **ROWS[2].settings},
    "still, seen": {"held_out": STILL | {"reward_difference": around(0.0, 0.001)}, "curves": FLAT},
    "chance": {"held_out": STILL | {"reward_difference": around(0.06, 0.05)}, "curves": FLAT},
    "near": {"held_out": STILL | {"kl_policy_reference": equal(0.1)}},
    "near, warm-up": {"held_out": STILL | {"kl_policy_reference": equal(0.1)}, "warmup_steps": 100},
    "moved": {"held_out": {"reward_difference": around(0.1, 0.3)}},
    "far": {"held_out": FAR | {"reward_difference": around(0.1, 0.3)}},
    "far, three": {"held_out": FAR | {"reward_difference": around(0.1, 0.3)}, "n_seeds": 3},
    "broken text, praised": {"held_out": FAR | BROKEN},
    "broken text": {"held_out": BROKEN | {"reward_difference": around(0.1, 0.3)}},
    "broken text, loss": {"held_out": BROKEN | {"reward_difference": around(-1.1, 0.3)}},
    "unknown distance": {"held_out": UNKNOWN},
    "no interval": {"held_out": {"reward_difference": around(0.3, math.nan)}},
    "broken instrument": {"gate": {"spread": 1e-6}},
    "one run": {"I": 1, "M": 1},
    "one step": {"T": 1},
    "own task": {"gate": None},
    "falls": {"curves": {"reward": -0.1}},
    "scissors": {"curves": {"reward": 0.1, "penalty": -0.3, "noise": 1e-4}},
    "eaten": {"curves": {"reward": 0.04, "penalty": -0.035, "noise": 0.04}},
    "penalty only": {"curves": {"reward": 0.0, "penalty": 0.1}},
    "both": {"curves": {"reward": 0.1, "penalty": 0.1}},
}
"""What happened -> how it is made."""


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph."""
    return re.split(r"(?<=[.!?]) (?=[А-ЯA-Zθt])", text)
