"""IMDb reviews: cleaned, deduplicated, split into parts that share no review.

A review's place depends only on the sha256 of its cleaned text, so neither the file's
order (sorted by label) nor a duplicate can move text from one part into another. Reviews
of one film may still be in different parts: the data do not name the film.

One part is inside another: `judge_train`, on which the judge is trained, is the beginning of
`sft`. It has the size of `reward_train` and shares no review with it, with `reward_test`, nor
with a prompt, so what the judge learns is independent of the reward's reviews; the policy of
task smollm has been fine-tuned on its text.

The table is made once; each part that is asked for is then read from the cache folder.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, get_args

from warp_nb.files import loading
from warp_nb.tasks import hub, wheels
from warp_nb.tasks.remembered import code_of, remembered

if TYPE_CHECKING:
    import pandas as pd

Part = Literal["eval", "reward_test", "reward_train", "prompts", "sft", "judge_train"]
Source = Literal["embedded", "hub"]
SIZES: dict[Part, int] = {"eval": 1000, "reward_test": 1000, "reward_train": 6000, "prompts": 4000}
BREAK = re.compile(r"<br\s*/?>")


def clean(text: str) -> str:
    """Strip `<br />` and collapse white space."""
    return " ".join(BREAK.sub(" ", text).split())


@lru_cache(maxsize=2)
def _reviews(source: Source) -> pd.DataFrame:
    """Return all distinct IMDb reviews of a source in the order of their sha256: columns text, label."""
    import pandas as pd

    embedded = source == "embedded"
    path = wheels.imdb_csv() if embedded else hub.fetch_from_hub(hub.IMDB) / hub.IMDB.files[0]
    with loading(path.parent, "table of reviews"):
        frame = pd.read_csv(path) if embedded else pd.read_parquet(path)
        frame = frame[frame["source"] == "imdb"] if embedded else frame
        frame = pd.DataFrame({"text": frame["text"].map(clean), "label": frame["label"]})
    frame = frame.drop_duplicates("text")
    frame["digest"] = frame["text"].map(lambda text: hashlib.sha256(text.encode()).hexdigest())
    return frame.sort_values("digest", ignore_index=True)[["text", "label"]]


def reviews(part: Part, source: Source = "embedded") -> pd.DataFrame:
    """Return the reviews of a part (columns text, label); `sft` is what the parts of SIZES leave.

    `source` is the embedded file or the hub's stanfordnlp/imdb (its train split, both labels 0 and 1).
    Raises ValueError for an unknown part or source.
    """
    import pandas as pd

    for name, value, known in (("part", part, Part), ("source", source, Source)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    return pd.DataFrame(remembered("reviews", part_facts(part, source), lambda: _columns(part, source)))


def part_facts(part: Part, source: Source) -> dict[str, Any]:
    """Return all that the reviews of a part depend on: the pinned file, this module, pandas, the sizes."""
    pin = wheels.REVIEWS.contents[0] if source == "embedded" else hub.IMDB.commit
    code = {"code": code_of(__name__), "pandas": version("pandas")}
    return {"part": part, "source": source, "pin": pin, "sizes": list(SIZES.items())} | code


def _columns(part: Part, source: Source) -> dict[str, list[Any]]:
    """Return the columns of a part, from the whole table."""
    before = list(SIZES)[: list(SIZES).index(part)] if part in SIZES else list(SIZES)
    start = sum(SIZES[name] for name in before)
    size = SIZES["reward_train"] if part == "judge_train" else SIZES.get(part)
    rows = _reviews(source).iloc[start:][:size]
    return {name: rows[name].tolist() for name in ("text", "label")}
