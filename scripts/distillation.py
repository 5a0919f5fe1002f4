"""Logit distillation across two byte-level vocabularies: the teacher reads its own tokens of a text.

The student's vocabulary is a part of the teacher's. A text that is cut by the student's tokenizer is strange to the
teacher (its perplexity is several times as high), so each model reads the text in its own tokens. Both sequences begin
with one token that begins a text, and a byte-level token spells as many bytes as it has characters. Where both have
spelt the same number of bytes they have read the same text: there the teacher's distribution over its next token, each
token moved to the first piece that the student cuts it into, is the student's target. At the other positions, inside a
token of the teacher, the target is the text's own next piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from warp_nb.fast.devices import arithmetic, bf16_is_fast
from warp_nb.tasks.sft import BEGIN

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 128
"""Tokens that are read of a text, by the student and by the teacher."""
IGNORED = -100
"""Label of a position without a target, as in torch's cross_entropy."""
LEAST_LOG = -30.0
"""Floor of a stored log-probability: a probability of 0 stays finite."""
TEACHER_ROWS = 1024
"""Distributions of the teacher that are moved at once, to bound the memory."""


def dtype_on(device: torch.device) -> str:
    """Return bfloat16 on a GPU that multiplies it natively, else float32."""
    return "bfloat16" if device.type == "cuda" and bf16_is_fast(str(device)) else "float32"


def rows_of(tokenizer: PreTrainedTokenizerBase, whole: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return each token's id in the vocabulary of `whole`, int64 [V].

    Raises:
        ValueError: a token of `tokenizer` is unknown to `whole`.
    """
    known = whole.get_vocab()
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    strange = [token for token in tokens if token not in known]
    if strange:
        raise ValueError(
            f"{len(strange)} tokens of the student are unknown to the teacher, e.g. {strange[0]!r}; "
            f"start from a policy whose vocabulary was trimmed from the teacher's"
        )
    return torch.tensor([known[token] for token in tokens])


def first_pieces(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return per token of the teacher the student's id of its first piece, int64 [V of the teacher].

    A token that both have is its own piece; a special token that only the teacher has ends a text.
    """
    model, special = student.backend_tokenizer.model, set(teacher.all_special_tokens)
    special |= {token.content for token in teacher.added_tokens_decoder.values()}
    mine = student.get_vocab()
    pieces = torch.full((len(teacher),), mine[BEGIN])
    for token, index in teacher.get_vocab().items():
        if token in mine:
            pieces[index] = mine[token]
        elif token not in special:
            pieces[index] = model.tokenize(token)[0].id
    return pieces


def student_distribution(logits: torch.Tensor, pieces: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Move the teacher's next-token distributions to the student's tokens.

    Args:
        logits: of the teacher, [N, V of the teacher] or wider (a padded embedding; its surplus is dropped).
        pieces: see `first_pieces`.
        vocabulary: the student's number of tokens.

    Returns:
        Probabilities, float32 [N, vocabulary]; each row sums to 1.
    """
    shares = logits[:, : len(pieces)].float().softmax(-1)
    return shares.new_zeros(len(shares), vocabulary).index_add_(1, pieces, shares)


def boundaries(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the bytes of text that have been read after each token; the first token begins the text and has none."""
    tokens = tokenizer.convert_ids_to_tokens(ids[1:])
    ends = [0]
    for token in tokens:
        ends.append(ends[-1] + len(token))
    return ends


def aligned_positions(student: list[int], teacher: list[int]) -> list[tuple[int, int]]:
    """Return the pairs of positions at which both sequences have read the same bytes (see `boundaries`)."""
    where = {end: position for position, end in enumerate(teacher)}
    return [(position, where[end]) for position, end in enumerate(student) if end in where]


def first_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], count: int) -> list[list[int]]:
    """Return the token that begins a text and the text's first tokens, at most `count` in all."""
    begin = int(tokenizer.get_vocab()[BEGIN])
    rows = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=count - 1)["input_ids"]
    return [[begin, *row] for row in rows]


@torch.no_grad()
def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], *, prompt: int, count: int, seed: int
) -> list[str]:
    """Complete the beginnings of texts at temperature 1.

    Args:
        prompt: tokens of a text that are completed.
        count: tokens of a completed text at most, with the one that begins it.
        seed: of the random numbers; the caller's are restored.

    Returns:
        The beginnings with their completions, without special tokens.
    """
    rows = [torch.tensor(row).flip(0) for row in first_ids(tokenizer, texts, prompt + 1)]
    begin = int(tokenizer.get_vocab()[BEGIN])
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED).flip(1)  # on the left
    mask, device = ids != IGNORED, model.device
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    settings |= {"eos_token_id": begin, "pad_token_id": begin, "max_new_tokens": count - ids.shape[1]}
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), arithmetic(dtype_on(device), device):
        torch.manual_seed(seed)
        ids = ids.masked_fill(~mask, begin)
        found = model.generate(input_ids=ids.to(device), attention_mask=mask.long().to(device), **settings)
    return [str(text) for text in tokenizer.batch_decode(found, skip_special_tokens=True)]


@dataclass(frozen=True)
class Targets:
    """What a batch of texts teaches: the student's tokens and the targets, as tensors.

    Args:
        ids: the student's tokens, int64 [B, W], padded on the right.
        labels: the next token at positions without the teacher's word, int64 [B, W]; elsewhere IGNORED.
        aligned: positions with the teacher's word, bool [B, W].
        tokens: the student's k most probable tokens by the teacher, int64 [B, W, k].
        logs: their log-probabilities, nats, float32 [B, W, k].
    """

    ids: torch.Tensor
    labels: torch.Tensor
    aligned: torch.Tensor
    tokens: torch.Tensor
    logs: torch.Tensor

    def to(self, device: torch.device) -> Targets:
        """Copy to a device, in the dtypes of computation."""
        return Targets(
            *(one.to(device).long() for one in (self.ids, self.labels)),
            self.aligned.to(device),
            self.tokens.to(device).long(),
            self.logs.to(device).float(),
        )

    def compact(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name as they are stored: int16, bool and fp16, on the CPU."""
        kinds = {"ids": torch.int16, "labels": torch.int16, "aligned": torch.bool}
        kinds |= {"tokens": torch.int16, "logs": torch.float16}
        return {name: getattr(self, name).to("cpu", kind).contiguous() for name, kind in kinds.items()}

    def rows(self, index: torch.Tensor) -> Targets:
        """Return the texts of an index."""
        return Targets(*(one[index] for one in (self.ids, self.labels, self.aligned, self.tokens, self.logs)))


class Teacher:
    """The teacher with its tokenizer, and the student's tokenizer that its distributions are moved to."""

    def __init__(self, model: PreTrainedModel, own: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
        self.model, self.own, self.student = model.eval(), own, student
        self.device = model.device
        self.pieces = first_pieces(student, own).to(self.device)

    @torch.no_grad()
    def targets(self, texts: list[str], *, window: int, top: int) -> Targets:
        """Read the texts and return the targets of the student's first `window` tokens, on the CPU.

        Args:
            window: tokens of either tokenizer that are read of a text, with the one that begins it.
            top: the most probable tokens that are kept of a distribution.
        """
        mine, theirs = (first_ids(side, texts, window + 1) for side in (self.student, self.own))
        width, top = min(window, max(map(len, mine))), min(top, len(self.student))
        ids = torch.full((len(texts), width), int(self.student.pad_token_id))
        labels = torch.full((len(texts), width), IGNORED)
        aligned = torch.zeros(len(texts), width, dtype=torch.bool)
        tokens = torch.zeros(len(texts), width, top, dtype=torch.int64)
        logs = torch.zeros(len(texts), width, top)
        pairs: list[tuple[int, int, int]] = []
        for line, (student, teacher) in enumerate(zip(mine, theirs, strict=True)):
            read = student[:width]
            ids[line, : len(read)] = torch.tensor(read)
            labels[line, : len(student) - 1] = torch.tensor(student[1:])
            ends = boundaries(read, self.student), boundaries(teacher[:window], self.own)
            pairs += [(line, *pair) for pair in aligned_positions(*ends)]
        line, place, source = torch.tensor(pairs).T
        aligned[line, place] = True
        labels[line, place] = IGNORED
        hidden = self._hidden([row[:window] for row in theirs])[line, source]
        for start in range(0, len(hidden), TEACHER_ROWS):
            here = slice(start, start + TEACHER_ROWS)
            with arithmetic(dtype_on(self.device), self.device):
                logits = self.model.lm_head(hidden[here])
            best = student_distribution(logits, self.pieces, len(self.student)).topk(top)
            tokens[line[here], place[here]] = best.indices.cpu()
            logs[line[here], place[here]] = best.values.log().clamp_min(LEAST_LOG).cpu()
        return Targets(ids, labels, aligned, tokens, logs)

    def _hidden(self, rows: list[list[int]]) -> torch.Tensor:
        """Return the last hidden states, [B, W, D]; padding on the right changes no position before it."""
        whole = [torch.tensor(row) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True).to(self.device)
        with arithmetic(dtype_on(self.device), self.device):
            found: torch.Tensor = self.model.model(input_ids=ids).last_hidden_state
        return found


def distillation_loss(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Return the mean over positions of KL(teacher || student), and of the cross-entropy where the teacher is silent.

    The KL is over the k stored tokens and one bucket of all others, so it is a lower bound of the whole KL.

    Args:
        logits: of the student, [B, W, V].
        targets: on the same device (see `Targets.to`).

    Returns:
        A scalar, nats a token.
    """
    mine = logits.float().log_softmax(-1)
    shares = targets.logs.exp()
    picked = mine.gather(-1, targets.tokens)
    rest = (1 - shares.sum(-1)).clamp_min(0)
    others = (1 - picked.exp().sum(-1)).clamp_min(1e-7)
    divergence = (shares * (targets.logs - picked)).sum(-1) + torch.xlogy(rest, rest) - rest * others.log()
    given = cross_entropy(mine.transpose(1, 2), targets.labels, ignore_index=IGNORED, reduction="none")
    counted = targets.aligned | (targets.labels != IGNORED)
    return torch.where(targets.aligned, divergence, given).sum() / counted.sum()
