"""The three repositories of task `gpt2` in miniature, and a local server that speaks the hub's protocol.

Same file names and formats as on the hub: GPT-2 with vocab.json and merges.txt and the mask buffers old
checkpoints carry, DistilBERT as a masked language model, reviews as a parquet file sorted by label.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from transformers import DistilBertConfig, DistilBertForMaskedLM, GPT2Config, GPT2LMHeadModel

from warp_nb.tasks import hub

END = "<|endoftext|>"
GOOD, BAD = "a wonderful and touching film that we enjoyed", "a boring and stupid mess that we regretted"
REVIEWS = 240


def reviews() -> pd.DataFrame:
    """Short distinct reviews, the negative ones first, with the mark-up of the real ones."""
    rows = []
    for label in (0, 1):
        for index in range(REVIEWS // 2):
            opinion = (BAD, GOOD)[label]
            begin = f"The story number {label * REVIEWS + index} is {opinion}."
            rows.append((begin + "<br /><br />" + " ".join([f"It was {opinion}."] * 6), label))
    return pd.DataFrame(rows, columns=["text", "label"])


def write_gpt2(folder: Path) -> None:
    """GPT-2 as converted by the hub in 2023."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(reviews()["text"], vocab_size=400, special_tokens=[END])
    tokenizer.save_model(str(folder))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_embd=32, n_layer=2, n_head=2, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for layer in range(2):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    old = ("activation_function", "architectures", "attn_pdrop", "bos_token_id", "embd_pdrop", "eos_token_id",
           "layer_norm_epsilon", "model_type", "n_ctx", "n_embd", "n_head", "n_layer", "n_positions", "resid_pdrop",
           "vocab_size")  # fmt: skip
    kept = json.loads((folder / "config.json").read_text()) | {"bos_token_id": 0, "eos_token_id": 0, "n_ctx": 128}
    (folder / "config.json").write_text(json.dumps({name: kept[name] for name in old if name in kept}))
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"max_len": 1024}')
    (folder / "special_tokens_map.json").write_text(
        json.dumps(dict.fromkeys(["bos_token", "eos_token", "unk_token"], END))
    )
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody may ask for")


def write_distilbert(folder: Path) -> None:
    """DistilBERT with the head of its pre-training."""
    words = sorted({word for text in reviews()["text"] for word in text.lower().replace(".", " ").split()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "<", ">", "/", *words]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    BertWordPieceTokenizer(vocabulary, lowercase=True).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(tokens), dim=32, n_layers=2, n_heads=2, hidden_dim=64, initializer_range=0.2
    )
    DistilBertForMaskedLM(config).save_pretrained(folder)


def write_imdb(folder: Path) -> None:
    """stanfordnlp/imdb as its parquet files."""
    (folder / "plain_text").mkdir()
    frame = reviews().astype({"label": np.int64})
    frame.to_parquet(folder / hub.IMDB.files[0], index=False)
    frame.to_parquet(folder / "plain_text" / "unsupervised-00000-of-00001.parquet", index=False)


def write_all(root: Path) -> dict[str, Path]:
    """Every repository in a folder of its own, by its name."""
    folders = {}
    for part, write in ((hub.GPT2_IMDB, write_gpt2), (hub.DISTILBERT, write_distilbert), (hub.IMDB, write_imdb)):
        folders[part.repo] = root / part.repo.replace("/", "--")
        folders[part.repo].mkdir(parents=True)
        write(folders[part.repo])
    return folders


def full_commit(part: hub.HubPart) -> str:
    """Forty hex digits that begin with the pinned ones."""
    return part.commit.ljust(40, "0")


@contextmanager
def server(folders: dict[str, Path], commits: dict[str, str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve the repositories; yields the address and the paths that were asked for."""
    parts = {part.repo: part for part in (hub.GPT2_IMDB, hub.DISTILBERT, hub.IMDB)}
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Silence."""

        def answer(self, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            repo = next((name for name in folders if f"/{name}/" in path), None)
            if repo is None:
                return self.send_error(404)
            folder, commit = folders[repo], (commits or {}).get(repo, full_commit(parts[repo]))
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            if f"{repo}/revision/" in path:
                return self.answer(json.dumps({"id": repo, "sha": commit, "siblings": []}).encode(), {})
            if f"{repo}/tree/" in path:
                rows = [
                    {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": "0" * 40}
                    for f in files
                ]
                return self.answer(json.dumps(rows).encode(), {"Content-Type": "application/json"})
            file = folder / path.partition(f"/resolve/{commit}/")[2]
            if file not in files:
                return self.send_error(404)
            body = file.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            return self.answer(body, {"ETag": etag, "X-Repo-Commit": commit, "X-Linked-Size": str(len(body))})

        do_HEAD = do_GET

    running = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", asked
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
