"""Prompts from where users have them: a list, a file, a dataset; texts or conversations in TRL's format.

A conversation, a list of messages `{"role": …, "content": …}`, becomes text by the tokenizer's chat template.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warp_nb.paths import expanded
from warp_nb.tasks.isolation import quiet_datasets
from warp_nb.tasks.prompts import texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMN = "prompt"
"""Name of the column of prompts, as in TRL."""
Columns = dict[str, list[Any]]
"""Further columns of the prompts, by name, a value for every prompt."""
FILES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
CHAT_MARKS = re.compile(r"<\|[\w ]+\|>|<｜[^｜\n]+｜>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>")
"""Marks of chat formats (ChatML, Llama 2 and 3, Gemma, Mistral, DeepSeek, Phi): text of a model that knows them."""


def read_prompts(given: Any, name: str, column: str = COLUMN) -> tuple[list[Any], Columns]:
    """Return prompts from any of their sources, with the further columns that the source has.

    Prompts are texts or conversations; `prompt_texts` checks what they are.

    Args:
        given: a list or a column; a dataset of `datasets`, a data frame or a list of rows, of which `column` is taken;
            a file: `.txt` with a prompt a line, or `.jsonl`, `.json`, `.csv`, `.parquet` with `column`.
        name: the argument, for messages.
        column: the column of prompts.

    Raises:
        ValueError: there is no such file or column, the file cannot be read, or the dataset is streamed or has splits.
    """
    if isinstance(given, str | PathLike):
        return read_file(expanded(str(given)), name, column)
    if isinstance(given, Mapping):
        raise ValueError(f"{name} has the parts {', '.join(map(str, given))}; pass one of them, e.g. dataset['train']")
    rows: Any = given
    columns = getattr(rows, "column_names", getattr(rows, "columns", None))
    if columns is not None and not hasattr(rows, "__len__"):
        raise ValueError(f"{name} is a streamed dataset; pass a part of it as a list: list(dataset.take(1000))")
    if columns is not None:
        check_column(list(columns), name, column)
        return list(rows[column]), {one: list(rows[one]) for one in columns if one != column}
    found: list[Any] = list(given) if isinstance(given, Iterable) else texts_of(given, name)
    if found and all(isinstance(row, Mapping) and "role" not in row for row in found):
        for row in found:
            check_column(list(row), name, column)
        others = dict.fromkeys(key for row in found for key in row if key != column)
        return [row[column] for row in found], {key: [row.get(key) for row in found] for key in others}
    return found, {}


def read_file(path: Path, name: str, column: str) -> tuple[list[Any], Columns]:
    """Return the prompts of a file with its further columns (see `read_prompts`); a `.txt` may have blank lines."""
    if not path.is_file() or path.suffix not in FILES:
        fault = "is no file here" if not path.is_file() else "is of another kind"
        raise ValueError(
            f"{name} = {str(path)[:200]!r} {fault}; pass a list of texts, or a file {', '.join(FILES)}; a dataset of "
            f"the hub by datasets.load_dataset"
        )
    try:
        if path.suffix == ".txt":
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            return [line.rstrip("\r") for line in lines if line.strip()], {}
        return read_prompts(table_of(path), name, column)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: {path} cannot be read ({error}); it must be a text file in UTF-8") from error


def table_of(path: Path) -> Any:
    """Read a file of rows with `datasets`, whose cache is not used."""
    import datasets

    kind = {".csv": "csv", ".parquet": "parquet"}.get(path.suffix, "json")
    plain = {"keep_default_na": False} if kind == "csv" else {}  # a prompt "NA" or "null" is a text
    with tempfile.TemporaryDirectory() as cache, quiet_datasets():
        read = getattr(datasets.Dataset, f"from_{kind}")
        try:
            return read(str(path), cache_dir=cache, keep_in_memory=True, **plain)
        except Exception as error:  # of pandas, Arrow and `datasets`, of no common kind
            cause = error.__cause__ or error
            raise ValueError(f"{path} is no sound {path.suffix} file ({type(cause).__name__}: {cause})") from error


def check_column(columns: list[Any], name: str, column: str) -> None:
    """Raise ValueError unless `column` is among the columns."""
    if column not in columns:
        raise ValueError(
            f"{name} has no column {column!r}, it has {', '.join(map(str, columns))}; pass column=..., or rename one"
        )


def prompt_texts(tokenizer: PreTrainedTokenizerBase, prompts: list[Any], name: str) -> list[str]:
    """Return prompts as the texts that the policy completes: conversations by the tokenizer's chat template.

    After a message of the user the template begins the assistant's answer; a last message of the assistant is
    continued.

    Raises:
        ValueError: a prompt is neither a text nor a conversation, the tokenizer has no template or it refuses a
            conversation, or a text has marks of a chat format that is not the tokenizer's.
    """
    talks = [is_talk(prompt) for prompt in prompts]
    if not any(talks):
        return known_marks(tokenizer, texts_of(prompts, name), name)
    if not all(talks):
        odd, even = talks.index(False), talks.index(True)
        raise ValueError(f"{name}[{odd}] is no list of messages, {name}[{even}] is one; pass prompts of one kind")
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{name} are lists of messages, and the tokenizer has no chat template; pass texts, or set "
            f"tokenizer.chat_template"
        )
    return [in_template(tokenizer, talk, f"{name}[{place}]") for place, talk in enumerate(prompts)]


def is_talk(prompt: Any) -> bool:
    """Return whether a prompt is a conversation: a list of messages."""
    return isinstance(prompt, list | tuple) and bool(prompt) and all(isinstance(one, Mapping) for one in prompt)


def in_template(tokenizer: PreTrainedTokenizerBase, talk: list[Mapping[str, Any]], name: str) -> str:
    """Write a conversation by the tokenizer's chat template, with the beginning of the answer."""
    for message in talk:
        if not (isinstance(message.get("role"), str) and isinstance(message.get("content"), str)):
            raise ValueError(
                f"{name} has the message {str(dict(message))[:100]}; it must have a role and a content, texts"
            )
    messages = [
        {key: value for key, value in one.items() if value is not None} for one in talk
    ]  # Arrow fills with None
    answered = messages[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not answered, continue_final_message=answered
        )
    except Exception as error:  # a template raises what it likes
        raise ValueError(
            f"{name} is refused by the tokenizer's chat template ({type(error).__name__}: {error}); change its messages"
        ) from error
    return str(text)


def known_marks(tokenizer: PreTrainedTokenizerBase, texts: list[str], name: str) -> list[str]:
    """Return texts; raise ValueError if one has marks of a chat format that the tokenizer does not know.

    A mark is known if it is a token or stands in the tokenizer's chat template.
    """
    template, vocabulary = str(tokenizer.chat_template), tokenizer.get_vocab()
    for place, text in enumerate(texts):
        foreign = [mark for mark in CHAT_MARKS.findall(text) if mark not in vocabulary and mark not in template]
        if foreign:
            raise ValueError(
                f"{name}[{place}] has {foreign[0]!r}, a mark of another model's chat format, which the tokenizer would "
                f"read as plain letters; pass lists of messages, which the tokenizer's own chat template writes, or "
                f"texts without it"
            )
    return texts
