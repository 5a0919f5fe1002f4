"""The page "Own model in ten minutes": its blocks run in their order, in a folder with a tiny model and prompts."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import tiny
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
FILES = re.findall(r'```python title="(\S+)"\n(.*?)```', PAGE, re.DOTALL)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the page says you need, and the notebooks."""
    words = tiny.tokenizer()
    tiny.gpt2(len(words)).save_pretrained(tmp_path / "my-model")
    words.save_pretrained(tmp_path / "my-model")
    lines = [json.dumps({"prompt": prompt}) for prompt in tiny.prompts(40, seed=0)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, source in FILES:
        (tmp_path / name).write_text(source, encoding="utf-8")
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    return tmp_path


def run(*command: str, folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_blocks_of_the_page_run_in_their_order(folder: Path) -> None:
    (folder / "page.py").write_text("\n".join(BLOCKS), encoding="utf-8")
    run(sys.executable, "page.py", folder=folder)
    assert len(BLOCKS) >= 5 and [name for name, _ in FILES] == ["rewards.py"]
    assert AutoModelForCausalLM.from_pretrained(folder / "policy").num_parameters() > 0
    assert (folder / "policy" / "README.md").read_text(encoding="utf-8").startswith("---")
    assert list((folder / "runs" / "mine").iterdir())


@pytest.mark.slow
def test_the_command_of_the_page_trains_the_model_in_the_notebook(folder: Path) -> None:
    (command,) = COMMANDS
    run(sys.executable, "-m", *shlex.split(command.replace("\\\n", " ")), "-p", "I", "1", "-p", "T", "2", folder=folder)
    shown = nbformat.read(folder / "out.ipynb", as_version=4)
    assert "my-model" in str([cell.outputs for cell in shown.cells if cell.cell_type == "code"])
