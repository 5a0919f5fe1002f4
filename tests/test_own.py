"""A task of one's own: from a folder, the hub or a loaded model, with prompts from anywhere; every refusal is early."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, T5Config

from warp_nb.tasks import own
from warp_nb.tasks.identity import task_identity
from warp_nb.tasks.own import split_off
from warp_nb.tasks.prompt_sources import prompt_texts, read_prompts
from warp_nb.tasks.task import Task
from warp_nb.tasks.text import prompt_ids

PROMPTS = tiny.prompts(40, seed=0)
TALKS = [[{"role": "user", "content": text}] for text in PROMPTS]
TEMPLATE = (
    "{% for m in messages %}{{ '' if loop.first else ' ' }}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} of{% endif %}"
)


def write_model(folder: Path, kind: str = "gpt2") -> Path:
    """A folder of a small model with its tokenizer, as `save_pretrained` writes it."""
    words = tiny.tokenizer()
    getattr(tiny, kind)(len(words)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def made(policy: Any, **changes: Any) -> Task:
    return Task.from_pretrained(policy, **{"reward": tiny.opinion, "prompts": PROMPTS} | changes)


def change(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; those that become None go."""
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


# The policy


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_folder_and_a_loaded_model_are_one_task(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, kind)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    from_folder = made(str(folder))
    assert from_folder.policy.dtype == torch.float32 and not from_folder.policy.training
    assert from_folder.facts == {"policy": str(folder), "duplicates": 0} and from_folder.name == "own"
    for other in (made(loaded), made(loaded, tokenizer=tiny.tokenizer()), made(loaded, tokenizer=folder)):
        assert other.policy is loaded and other.rebuild is None
        assert task_identity(other) == task_identity(from_folder)


def test_weights_in_half_precision_are_loaded_in_full(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert {value.dtype for value in made(folder).policy.parameters()} == {torch.float32}


def test_a_worker_rebuilds_the_task(folder: Path, tmp_path: Path) -> None:
    task = made(folder, prompts=TALKS, tokenizer=talking(), held_out=10, name="mine", judge=tiny.opinion)
    again = pickle.loads(pickle.dumps(task.rebuild))("cpu")
    assert task_identity(again) == task_identity(task) and again.eval_prompts == task.eval_prompts
    assert again.name == "mine" and again.judge is tiny.opinion


def without(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [(folder / name).unlink() for name in names]


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def of_another_kind(folder: Path) -> None:
    T5Config().save_pretrained(folder)


def classifier(folder: Path) -> None:
    change(folder / "config.json", architectures=["GPT2ForSequenceClassification"])


def with_code(folder: Path) -> None:
    change(folder / "config.json", model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (folder / "modeling_mine.py").write_text("raise SystemExit('this code was run')")


def tokenizer_with_code(folder: Path) -> None:
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Mine", None]}, tokenizer_class="Mine")
    (folder / "mine.py").write_text("raise SystemExit('this code was run')")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (without("config.json"), "has no config.json; pass the folder that save_pretrained wrote"),
        (without("model.safetensors"), "has no weights; it must hold model.safetensors"),
        (pickled, r"has its weights as a pickle only \(pytorch_model.bin\), which is never read; it must hold model"),
        (without("tokenizer.json"), "has no tokenizer .*; pass tokenizer=, or save it there"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged .*; put the file back"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "has a tokenizer that does not load"),
        (with_code, r"needs code of its own \(modeling_mine\.Mine\), which is never run; pass another one"),
        (classifier, r"is a classifier \(GPT2ForSequenceClassification\); pass a causal language model"),
        (of_another_kind, "is of model_type 't5', no causal language model of transformers; pass another one"),
        (
            lambda folder: change(folder / "config.json", quantization_config={"quant_method": "gptq"}),
            "has quantised weights, which cannot be trained; pass the model they were made from",
        ),
        (
            lambda folder: [(folder / "adapter_config.json").touch(), (folder / "config.json").unlink()],
            "is an adapter of PEFT without its base; pass the model: AutoPeftModelForCausalLM",
        ),
    ],
)
def test_a_folder_that_is_no_sound_model_is_refused_before_its_weights(
    fault: Callable[[Path], Any], told: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "load_model", None)
    fault(folder)
    with pytest.raises(ValueError, match=f"^policy = '{folder}'.*{told}"):
        made(folder)


def test_no_code_of_a_tokenizer_is_run(folder: Path) -> None:
    """transformers takes a class of its own for it, or refuses."""
    tokenizer_with_code(folder)
    task = made(folder)
    assert type(task.tokenizer).__module__.startswith("transformers.")


@pytest.mark.parametrize("given", ["./nothing", "/nothing/here", "~/nothing-here", "a/b/c", "no such"])
def test_an_unknown_folder_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=f"^policy = '{given}' is no folder here; pass the folder .*, or a hub id$"):
        made(given)


def test_what_is_no_folder_and_not_on_the_hub_is_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^policy = 'nobody/nothing' is neither a folder here nor a model that the hub"
    ):
        made("nobody/nothing")
    with pytest.raises(ValueError, match=r"^policy = '.*config\.json' is a file; pass the folder"):
        made(folder / "config.json")
    with pytest.raises(ValueError, match=r"^revision = 'main' is for a hub id, and policy = .* is a folder"):
        made(folder, revision="main")
    with pytest.raises(ValueError, match=r"^device and revision are for a folder or a hub id, and policy is a loaded"):
        made(tiny.gpt2(39), device="cpu")
    with pytest.raises(ValueError, match=r"^the policy \(GPT2LMHeadModel\) does not say where its tokenizer is; pass"):
        made(tiny.gpt2(39))


def test_a_model_without_the_head_does_not_begin_at_random(tmp_path: Path) -> None:
    """An untied head that the folder lacks; the loader would fill it with noise and only log that."""
    write_model(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 weights of LlamaForCausalLM, e.g. lm_head\.weight, which would begin"
    ):
        made(tmp_path)


def test_damaged_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=f"^policy = '{folder}' does not load"):
        made(folder)


# The reward


def test_a_reward_is_imported_from_the_current_folder(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    name = "rewards_of_a_user"
    (tmp_path / f"{name}.py").write_text(
        "def short(prompts, completions, **kwargs):\n    return [1.0] * len(prompts)\n"
    )
    monkeypatch.chdir(tmp_path)
    task = made(folder, reward=f"{name}:short")
    assert task.score(["the"], ["film"], "here") == [1.0]


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("a/b.py:f", "must be module:function, e.g. my_module:my_function for a file my_module.py in the current"),
        ("no_such_module:f", r"the module no_such_module does not import \(ModuleNotFoundError: No module named"),
        ("tiny:opinions", "tiny has no function opinions; pass one that it has: .*opinion"),
        ("tiny:END", "tiny has no function END; pass one that it has"),
    ],
)
def test_a_reward_that_does_not_import_is_refused_first(named: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"^reward = '{named}':? {told}"):
        made("/nothing", reward=named)


def test_a_module_that_raises_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "raising_module.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"raising_module does not import .ZeroDivisionError: division by zero"):
        made("/nothing", reward="raising_module:f")


# Prompts and where they come from


def in_file(kind: str, prompts: list[Any], folder: Path, column: str = "prompt") -> Path:
    path = folder / f"prompts.{kind}"
    if kind == "txt":
        path.write_text("\r\n".join(["\ufeff" + prompts[0], *prompts[1:], "", "  "]), encoding="utf-8", newline="")
    elif kind == "json":
        path.write_text(json.dumps([{column: prompt, "n": n} for n, prompt in enumerate(prompts)]))
    else:
        frame = pd.DataFrame({"n": range(len(prompts)), column: prompts})
        {
            "csv": lambda: frame.to_csv(path, index=False),
            "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
            "parquet": lambda: frame.to_parquet(path),
        }[kind]()
    return path


TRICKY = ["NA", "null", "1", 'a, "b"', "\u2028 line", "é", "2020-01-01x"]
"""Texts that readers of tables like to take for something else."""


@pytest.mark.parametrize("kind", ["txt", "csv", "json", "jsonl", "parquet"])
def test_a_file_gives_its_texts_unchanged(kind: str, tmp_path: Path) -> None:
    assert read_prompts(in_file(kind, TRICKY, tmp_path), "prompts")[0] == TRICKY
    assert list(tmp_path.iterdir()) == [tmp_path / f"prompts.{kind}"]


SOURCES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "rows": lambda prompts: [{"prompt": prompt, "n": 1} for prompt in prompts],
    "dataset": lambda prompts: datasets.Dataset.from_dict({"n": [1] * len(prompts), "prompt": prompts}),
    "column": lambda prompts: datasets.Dataset.from_dict({"prompt": prompts})["prompt"],
    "frame": lambda prompts: pd.DataFrame({"prompt": prompts}),
    "series": pd.Series,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("prompts", [PROMPTS, TALKS], ids=["texts", "conversations"])
def test_every_source_gives_the_same_prompts(source: str, prompts: list[Any]) -> None:
    found = prompt_texts(talking(), read_prompts(SOURCES[source](prompts), "prompts")[0], "prompts")
    assert found == (PROMPTS if prompts is PROMPTS else [f"{text} of" for text in PROMPTS])


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_a_file_holds_conversations(kind: str, tmp_path: Path) -> None:
    talks = [[{"role": "system", "content": "we"}, *talk] for talk in TALKS]
    found, _ = read_prompts(in_file(kind, talks, tmp_path, "messages"), "prompts", "messages")
    assert prompt_texts(talking(), found, "prompts") == [f"we {text} of" for text in PROMPTS]


def talking(template: str = TEMPLATE, **special: Any) -> Any:
    words = tiny.tokenizer(**special)
    words.chat_template = template
    return words


def test_the_reward_gets_the_columns_and_messages_of_its_prompts(folder: Path) -> None:
    """Duplicates are dropped, a part is held out, and each prompt keeps its own row."""
    seen = []

    def reward(prompts: list[Any], completions: list[Any], number: list[int], **others: Any) -> list[float]:
        seen.append((prompts, number, others["kind"]))
        assert all(answer == [{"role": "assistant", "content": answer[0]["content"]}] for answer in completions)
        return [0.0] * len(prompts)

    rows = [{"number": place, "kind": "k", "prompt": talk} for place, talk in enumerate(TALKS)]
    task = made(folder, tokenizer=talking(), prompts=datasets.Dataset.from_list([*rows, rows[3]]), reward=reward)
    assert task.facts["duplicates"] == 1
    for chosen in (task.train_prompts, task.eval_prompts):
        task.score(chosen, ["we"] * len(chosen), "here", ids=[[1]] * len(chosen))
        prompts, numbers, kinds = seen.pop()
        assert [f"{prompt[0]['content']} of" for prompt in prompts] == chosen and set(kinds) == {"k"}
        assert [f"{PROMPTS[number]} of" for number in numbers] == chosen


def test_a_prompt_with_two_rows_is_refused(folder: Path) -> None:
    rows = [{"prompt": text, "answer": place} for place, text in enumerate([*PROMPTS, PROMPTS[0]])]
    with pytest.raises(ValueError, match=r"twice, with .*'answer': 0.* and .*'answer': 40.* drop one"):
        made(folder, prompts=rows)


def test_a_folder_of_a_classifier_is_a_reward(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^reward = .*model.* is GPT2LMHeadModel, no sequence classifier"):
        made(folder, reward=str(folder))
    with pytest.raises(ValueError, match=r"^reward = 'rewards' is neither .*; a function is named module:function"):
        made(folder, reward="rewards")
    assert made(folder, reward=[tiny.opinion, tiny.opinion]).reward(["the"], [" best"]) == [
        2 * tiny.opinion(["the"], [" best"])[0]
    ]


def test_an_empty_text_still_gets_its_begin() -> None:
    words = talking(begin=True)
    assert prompt_ids(words, ["", f"{tiny.END} the"]) == [[words.bos_token_id], words(f"{tiny.END} the")["input_ids"]]


def test_an_answer_that_was_begun_is_continued() -> None:
    talk = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "we saw"}]
    assert prompt_texts(talking(), [talk], "prompts") == ["the film we saw"]


@pytest.mark.parametrize("opened", ["{{ bos_token }}", "{{ eos_token }}"], ids=["begin", "another special token"])
def test_the_policy_sees_the_ids_of_the_template(opened: str) -> None:
    words = talking(f"{opened} {TEMPLATE}", begin=True)
    task = made(tiny.gpt2(len(words)), tokenizer=words, prompts=TALKS)
    for talk, text in zip(TALKS, prompt_texts(words, TALKS, "prompts"), strict=True):
        wanted = words.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids, mask = task.encode([text], task.sampling(4))
        assert ids[0].tolist() == wanted and mask.all()
        assert wanted.count(words.bos_token_id) == ("bos" in opened)


def test_what_arrow_adds_to_messages_is_not_rendered() -> None:
    keys = talking("{% for m in messages %}{{ m.keys() | list | join(' ') }}{% endfor %}")
    table = datasets.Dataset.from_dict({"prompt": [[{"role": "user", "content": "the", "name": "we"}], TALKS[0]]})
    assert prompt_texts(keys, read_prompts(table, "prompts")[0], "prompts")[1] == "role content"


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ("The film was", r"^prompts = 'The film was' is no file here; pass a list of texts, or a file \.txt, \.jsonl"),
        ("notes.md", r"^prompts = '.*notes\.md' is of another kind; pass a list of texts"),
        ("torn.jsonl", r"torn\.jsonl is no sound \.jsonl file"),
        ("latin.txt", r"^prompts: .*latin\.txt cannot be read .* it must be a text file in UTF-8"),
        ("other.csv", r"^prompts has no column 'prompt', it has text; pass column=\.\.\., or rename one"),
        ([{"text": "the"}], r"^prompts has no column 'prompt', it has text"),
        (datasets.DatasetDict(train=datasets.Dataset.from_dict({"prompt": ["the"]})), "^prompts has the parts train; "),
        (
            datasets.Dataset.from_dict({"prompt": ["the"]}).to_iterable_dataset(),
            "^prompts is a streamed dataset; pass ",
        ),
        (["the", None], r"^prompts\[1\] is of type NoneType, None; drop it"),
        ([[1, 2]], r"^prompts\[0\] is of type list, \[1, 2\]; pass texts in place of token ids"),
        ([], "^prompts is empty; pass at least one prompt"),
        (["the", TALKS[0]], r"^prompts\[0\] is no list of messages, prompts\[1\] is one; pass prompts of one kind"),
        (
            [[{"role": "user", "content": [{"type": "image"}]}]],
            r"^prompts\[0\] has the message .* a role and a content",
        ),
        (["the <|im_start|>user film"], r"^prompts\[0\] has '<\|im_start\|>', a mark of another model's chat format"),
        (["[INST] the film [/INST]"], r"^prompts\[0\] has '\[INST\]', a mark of another model's chat format"),
        (["<start_of_turn>user"], r"^prompts\[0\] has '<start_of_turn>', a mark of another model's chat format"),
    ],
    ids=str,
)
def test_prompts_that_are_none_are_refused_before_the_weights(
    prompts: Any, told: str, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(own, "load_model", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").touch()
    (tmp_path / "torn.jsonl").write_text('{"prompt": "the"')
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "other.csv").write_text("text\nthe\n")
    with pytest.raises(ValueError, match=told):
        made(folder, prompts=prompts, tokenizer=talking())


def test_conversations_need_a_template_that_takes_them(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^prompts are lists of messages, and the tokenizer has no chat template; pass"
    ):
        made(folder, prompts=TALKS)
    strict = talking("{{ raise_exception('no system here') }}")
    with pytest.raises(ValueError, match=r"^prompts\[0\] is refused by the tokenizer's chat template .*no system here"):
        made(folder, prompts=TALKS, tokenizer=strict)


def test_marks_of_the_tokenizers_own_format_are_taken() -> None:
    words = tiny.tokenizer([*tiny.WORDS, "<|im_start|>"])
    words.chat_template = "[INST] {{ messages[0]['content'] }} [/INST]"
    texts = ["<|im_start|> the film", "[INST] the film [/INST]", "a [b] <c> | d"]
    assert prompt_texts(words, texts, "prompts") == texts


# The part that is held out


def test_the_split_is_of_the_texts_alone() -> None:
    train, held = split_off(PROMPTS, None)
    assert (len(train), len(held)) == (32, 8) and sorted(train + held) == sorted(PROMPTS)
    turned, held_too = split_off(PROMPTS[::-1], None)
    assert (turned[::-1], held_too[::-1]) == (train, held)
    assert [len(split_off(PROMPTS, count)[1]) for count in (0.5, 7, 39)] == [20, 7, 39]
    assert len(split_off(tiny.prompts(100, seed=1), None)[1]) == 20


@pytest.mark.parametrize("held_out", [0.0, 1.0, 1, 40, -0.1, True, float("nan")])
def test_a_split_without_two_sides_is_refused(held_out: Any) -> None:
    with pytest.raises(ValueError, match=f"^held_out = {held_out} of 40 distinct prompts must leave one for training"):
        split_off(PROMPTS, held_out)


def test_too_few_prompts_need_a_word() -> None:
    with pytest.raises(
        ValueError, match=r"^15 distinct prompts are too few to hold 8 of them out; pass at least 16 dis"
    ):
        split_off(PROMPTS[:15], None)
    assert len(split_off(PROMPTS[:3], 2)[0]) == 1


def test_duplicates_are_dropped_and_counted(folder: Path) -> None:
    task = made(folder, prompts=[*PROMPTS, *PROMPTS[:3]])
    assert task.facts["duplicates"] == 3 and len(task.train_prompts) + len(task.eval_prompts) == 40
    task = made(folder, prompts=[*PROMPTS[:20], PROMPTS[0]], held_out=[*PROMPTS[15:], PROMPTS[39]])
    assert task.train_prompts == PROMPTS[:15] and task.eval_prompts == PROMPTS[15:]
    assert task.facts["duplicates"] == 7
    with pytest.raises(ValueError, match=r"^all 40 prompts are in held_out too; pass others for the training"):
        made(folder, held_out=PROMPTS)


# The README


def test_the_ten_lines_of_the_readme_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "from_pretrained" in code]
    assert 0 < len([line for line in block.splitlines() if line.strip()]) <= 10
    write_model(tmp_path / "my-model", "llama")
    rows = [json.dumps({"prompt": text}) for text in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    assert len(names["result"].history) == 40 and "Estimate" in capsys.readouterr().out
    again = AutoModelForCausalLM.from_pretrained("my-model-warp")
    ours = names["result"].policy.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in again.state_dict().items())
    assert made("my-model-warp").tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
