"""Rewards of TRL's convention: what a function gets, sums, names, classifiers, TRL's own as they are shipped."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import gates
import pytest
import tiny
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    pipeline,
)
from trl.rewards import (
    accuracy_reward,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)

from warp_nb.config import WarpConfig
from warp_nb.measure.best_of_n import best_of_n
from warp_nb.measure.evaluation import evaluate
from warp_nb.runs.folder import differences
from warp_nb.runs.jobs import process_pool
from warp_nb.runs.warp import warp
from warp_nb.tasks.classifier import SequenceClassifier
from warp_nb.tasks.gate import measure_gate
from warp_nb.tasks.identity import reward_identity, task_identity
from warp_nb.tasks.reward_interface import TrainerState, WeightedSum, call_reward, describe_reward, reward_name
from warp_nb.tasks.rewards import LengthPenalty, as_reward
from warp_nb.tasks.task import Task, describe

CONFIG = WarpConfig(
    I=2, M=2, T=2, lr=1e-3, warmup_steps=0, batch_size=4, samples_per_prompt=2, max_new_tokens=5, threads=1
)
CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


class Seen:
    """A reward that records its keywords."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **kwargs: Any) -> list[float]:
        self.calls.append(kwargs)
        return [float(len(ids)) for ids in kwargs["completion_ids"]]


def with_columns(**changes: Any) -> Task:
    """The tiny task; the column `turned` of a prompt is the prompt turned round."""
    plain = tiny.task()
    columns = {
        f"{kind}_columns": {"turned": [prompt[::-1] for prompt in prompts], "place": range(len(prompts))}
        for kind, prompts in (("train", plain.train_prompts), ("eval", plain.eval_prompts))
    }
    return tiny.task(**columns | changes)


# What a function gets


def test_a_training_gives_tokens_columns_and_its_progress() -> None:
    seen = Seen()
    task = with_columns(reward=seen)
    warp(CONFIG, task, progress=False)
    assert len(seen.calls) == CONFIG.I * CONFIG.M * CONFIG.T
    steps = [(0, 4), (1, 4), (0, 4), (1, 4), (2, 4), (3, 4), (2, 4), (3, 4)]
    assert [call["trainer_state"] for call in seen.calls] == [TrainerState(*step) for step in steps]
    for call in seen.calls:
        assert call.keys() == {"prompts", "completions", "completion_ids", "trainer_state", "turned", "place"}
        assert call["turned"] == [prompt[::-1] for prompt in call["prompts"]]
        assert [task.train_prompts[place] for place in call["place"]] == call["prompts"]
        for text, ids in zip(call["completions"], call["completion_ids"], strict=True):
            assert text.split() == task.tokenizer.decode(ids, skip_special_tokens=True).split()
            end = task.tokenizer.eos_token_id
            assert end not in ids[:-1] and (len(ids) == CONFIG.max_new_tokens or ids[-1] == end), "no padding"


@pytest.mark.parametrize("measure", ["evaluate", "best_of_n"])
def test_an_evaluation_gives_tokens_and_columns_to_reward_and_judge(measure: str) -> None:
    reward, judge = Seen(), Seen()
    task = with_columns(reward=reward, judge=judge)
    settings: dict[str, Any] = {"sampling": task.sampling(5), "n_prompts": 12, "seed": 3}
    if measure == "evaluate":
        evaluate(task.policy, task.policy, task, **settings)
    else:
        best_of_n(task, ns=(1, 2), **settings)
    assert len(reward.calls) == len(judge.calls) == 2
    for call in reward.calls + judge.calls:
        assert call["trainer_state"] is None and len(set(call["prompts"])) == 12
        assert [task.eval_prompts[place] for place in call["place"]] == call["prompts"]
        assert call["turned"] == [prompt[::-1] for prompt in call["prompts"]]
        words = [task.tokenizer.decode(ids, skip_special_tokens=True) for ids in call["completion_ids"]]
        assert [text.strip() for text in call["completions"]] == words
    for seen in (reward, judge):
        ends = [ids[-1] for call in seen.calls for ids in call["completion_ids"]]
        assert task.tokenizer.eos_token_id in ends, "tokens as they were sampled, not those of the text"


@pytest.mark.parametrize(
    "function",
    [
        lambda completions: [1.0 for _ in completions],
        lambda prompts, completion_ids: [1.0 for _ in prompts],
        lambda *, completions, trainer_state: [1.0 for _ in completions],
        lambda turned, other=2.0: [other / 2 for _ in turned],
        partial(lambda completions, weight: [weight for _ in completions], weight=1.0),
        dict,
    ],
)
def test_a_function_gets_what_its_signature_names(function: Any) -> None:
    given = {"completion_ids": [[1], [2]], "trainer_state": None, "turned": ["a", "b"]}
    if function is dict:
        assert call_reward(lambda **all_of: [float(len(all_of))] * 2, ["p", "q"], ["x", "y"], "here", **given) == [5, 5]
    else:
        assert call_reward(function, ["p", "q"], ["x", "y"], "here", **given) == [1.0, 1.0]


def needy(completions: list[str], solution: list[str], log_metric: Any, other: float = 1) -> list[float]:
    return [1.0 for _ in completions]


@pytest.mark.parametrize("role", ["reward", "judge", "run_rewards"])
def test_a_column_that_a_function_needs_is_asked_for_before_anything_runs(role: str) -> None:
    with pytest.raises(ValueError) as caught:
        with_columns(**{role: [tiny.opinion, needy]})
    assert str(caught.value) == (
        "reward needy of the task needs solution, log_metric, given are prompts, completions, completion_ids, "
        "trainer_state, turned, place; pass columns of the prompts, Task(train_columns=…, eval_columns=…), or give the "
        "parameter a default"
    )
    with pytest.raises(ValueError, match="reward needy at the gate needs solution, log_metric, given are prompts, com"):
        measure_gate(needy, gates.PAIRS, gates.PAIRS)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ((["a"], ["b"], {"x": [1]}, {}), r"train_columns has \['x'\], eval_columns has \[\]; training and evaluation"),
        ((["a"], ["b"], {"x": [1, 2]}, {"x": [1]}), r"train_columns\['x'\] has 2 values for 1 train_prompts; pass one"),
        (
            (["a"], ["b"], {"prompts": [1]}, {"prompts": [1]}),
            "a column may not be called 'prompts', which every reward",
        ),
        (
            (["a", "a"], ["b"], {"x": [1, 2]}, {"x": [1]}),
            "train_prompts has 'a' twice, with {'x': 1} and {'x': 2}; a prompt is known by its text: drop one",
        ),
    ],
)
def test_columns_that_do_not_fit_the_prompts_are_refused(columns: tuple[Any, ...], told: str) -> None:
    train, held_out, *both = columns
    with pytest.raises(ValueError, match=told):
        tiny.task(train_prompts=train, eval_prompts=held_out, train_columns=both[0], eval_columns=both[1])


def test_a_prompt_that_is_none_of_the_tasks_has_no_columns() -> None:
    with pytest.raises(ValueError, match="prompt 'another' is none of the task's, so it has no columns"):
        with_columns().score(["another"], [" film"], "here")
    assert tiny.task().score(["another"], [" best"], "here") == [1.0]


def test_conversations_reach_a_reward_as_messages() -> None:
    seen = Seen()
    plain = tiny.task()
    talks = {text: [{"role": "user", "content": text}] for text in plain.train_prompts + plain.eval_prompts}
    task = tiny.task(reward=seen, conversations=talks)
    warp(CONFIG.replace(I=1, M=1, T=1, lam=0.5), task, progress=False)
    (call,) = seen.calls
    assert [len(one) for one in call["prompts"]] == [1] * 4 and all(one[0]["role"] == "user" for one in call["prompts"])
    for (message,), ids in zip(call["completions"], call["completion_ids"], strict=True):
        assert message.keys() == {"role", "content"} and message["role"] == "assistant"
        assert message["content"].strip() == task.tokenizer.decode(ids, skip_special_tokens=True)
    with pytest.raises(ValueError, match=r"conversations lacks prompt '.*'; pass the messages of all prompts, or none"):
        tiny.task(conversations=dict(list(talks.items())[1:]))


# Sums


def test_a_sum_leaves_out_what_does_not_apply() -> None:
    first, second = (lambda completions, out=out: out for out in ([1.0, None, 3.0], [10.0, 20.0, None]))
    texts = ["p", "q", "r"]
    assert call_reward(WeightedSum([first, second]), texts, texts, "here") == [11.0, 20.0, 3.0]
    weighed = WeightedSum([first, WeightedSum([second, tiny.opinion], [0.1, 5])], [2, 10])
    assert weighed(texts, ["best", "film", "awful"]) == pytest.approx([2 + 10 + 50, 20, 6 - 50])
    assert reward_name(WeightedSum([tiny.opinion, LengthPenalty()], [1, 0.5])) == "opinion + 0.5·LengthPenalty"


def test_a_prompt_to_which_no_reward_applies_is_named() -> None:
    def one(completions: list[str]) -> list[float | None]:
        return [1.0, None]

    with pytest.raises(ValueError) as caught:
        tiny.task(reward=[one, one]).score(["the", "film"], ["x", "y"], "step 3")
    assert str(caught.value).startswith("reward one + one at step 3 returned None for prompt 'film', and at least one ")
    talks = {"the": [{"role": "user", "content": "Who?"}]}
    task = tiny.task(reward=lambda completions: [None], train_prompts=["the"], eval_prompts=["the film"],
                     conversations=talks | {"the film": []})  # fmt: skip
    with pytest.raises(ValueError, match=r"returned None for prompt 'Who\?', and at least one reward must apply"):
        task.score(["the"], ["x"], "step 3")


@pytest.mark.parametrize(
    ("rewards", "weights", "told"),
    [
        ([], [], "a sum of rewards is empty; pass at least one"),
        ([tiny.opinion], [1, 2], r"weights must be 1 finite numbers, one per reward, got \[1, 2\]"),
        ([tiny.opinion], [float("nan")], r"weights must be 1 finite numbers, one per reward, got \[nan\]"),
    ],
)
def test_a_sum_that_is_none_is_refused(rewards: list[Any], weights: list[float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        WeightedSum(rewards, weights)


def test_a_sum_beyond_float32_is_refused() -> None:
    huge = WeightedSum([lambda completions: [3e38]] * 2)
    with pytest.raises(
        ValueError, match=r"reward <lambda> \+ <lambda> at here is 6e\+38 for prompt 'p'; it must be fin"
    ):
        call_reward(huge, ["p"], ["x"], "here")


# Coroutine functions


class Meeting:
    """Coroutine functions that wait for each other: called one after another they would never end."""

    def __init__(self, count: int) -> None:
        self.count, self.here, self.loops = count, 0, set[int]()

    async def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        self.here += 1
        self.loops.add(id(asyncio.get_running_loop()))
        while self.here % self.count:
            await asyncio.sleep(0)
        return [0.5 for _ in completions]


async def broken(**kwargs: Any) -> list[float]:
    raise KeyError("its own fault")


def test_coroutine_functions_run_at_the_same_time_and_in_one_loop() -> None:
    meeting = Meeting(2)
    task = tiny.task(reward=[meeting, tiny.opinion, meeting])
    assert task.score(["the", "we"], [" best", " film"], "here") == [2.0, 1.0]
    assert task.score(["the"], [" awful"], "here") == [0.0] and len(meeting.loops) == 1

    async def in_a_notebook() -> list[float]:
        return task.score(["the"], [" best"], "here")

    assert asyncio.run(in_a_notebook()) == [2.0], "a cell of a notebook runs inside a loop"
    assert not threading.main_thread().daemon


def test_an_error_of_a_coroutine_function_is_named_with_its_place() -> None:
    with pytest.raises(RuntimeError, match="reward broken at here raised KeyError: 'its own fault'") as caught:
        call_reward(WeightedSum([broken, tiny.opinion]), ["p"], ["x"], "here")
    assert isinstance(caught.value.__cause__, KeyError)


# Names


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes a module `mine` that can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda text: (tmp_path / "mine.py").write_text(text) and None
    sys.modules.pop("mine", None)


def test_a_reward_is_imported_by_its_name(module: Callable[[str], None]) -> None:
    module(
        "from warp_nb.tasks.rewards import LengthPenalty\n"
        "def score(completions):\n    return [2.0] * len(completions)\n"
        "short = LengthPenalty(-0.5)\n"
    )
    task = tiny.task(reward="mine:score", judge="mine:short")
    assert task.score(["the"], [" best"], "here") == [2.0] and reward_name(task.reward) == "score"
    assert task.score_judge(["the"], [" best film"], "here") == [-1.0]
    assert describe(tiny.task(reward=["mine:score", LengthPenalty()]))["reward"] == "score + LengthPenalty"


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        (
            "",
            "nowhere:score",
            "reward = 'nowhere:score': the module nowhere does not import (ModuleNotFoundError: No m",
        ),
        (
            "1 / 0",
            "mine:score",
            "reward = 'mine:score': the module mine does not import (ZeroDivisionError: division b",
        ),
        (
            "def other(): ...",
            "mine:score",
            "reward = 'mine:score': mine has no function score; pass one that it has: other",
        ),
    ],
)
def test_a_reward_that_does_not_import_is_refused(
    text: str, name: str, told: str, module: Callable[[str], None]
) -> None:
    module(text)
    with pytest.raises(ValueError) as caught:
        tiny.task(reward=name)
    assert str(caught.value).startswith(told)


# Sequence classifiers


def bert(labels: int = 1, seed: int = 0, **settings: Any) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    names = {0: "bad", 1: "good", 2: "odd"} if labels > 1 else {0: "LABEL_0"}
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=24, id2label={place: names[place] for place in range(labels)}, initializer_range=0.5,
        **settings,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


WORDS = tiny.tokenizer(pad=True)
TEXTS = ["the film was best", "awful", "we saw it and it was wonderful story"]
PROMPTS, COMPLETIONS = ["the film", "", "we saw it and"], [" was best", "awful", " it was wonderful story"]


def saved(folder: Path, model: Any, words: Any = WORDS) -> str:
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def test_the_logit_of_a_classifier_is_a_reward(tmp_path: Path) -> None:
    folder = saved(tmp_path / "mine", bert())
    reward = tiny.task(reward=folder).reward
    score = pipeline("text-classification", model=folder, function_to_apply="none")
    expected = [score(text)[0]["score"] for text in TEXTS]
    assert call_reward(reward, PROMPTS, COMPLETIONS, "here") == pytest.approx(expected, abs=1e-5)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    assert describe_reward(reward) == {"name": "mine", "parameters": bert().num_parameters(), "label": None}
    again = pickle.loads(pickle.dumps(reward))
    assert call_reward(again, PROMPTS, COMPLETIONS, "here") == call_reward(reward, PROMPTS, COMPLETIONS, "here")


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_log_odds_of_a_chosen_label_are_a_reward(kind: str, tmp_path: Path) -> None:
    problem = {"problem_type": "multi_label_classification"} if kind == "sigmoid" else {}
    folder = saved(tmp_path, bert(labels=3, **problem))
    with pytest.raises(ValueError) as caught:
        tiny.task(reward=folder)
    assert str(caught.value) == (
        f"classifier {folder} has 3 labels (bad, good, odd), got label = None; say which one is the reward: "
        f"SequenceClassifier.load({folder!r}, label='odd')"
    )
    score = pipeline("text-classification", model=folder, function_to_apply=kind, top_k=None)
    found = call_reward(SequenceClassifier.load(folder, label="good"), PROMPTS, COMPLETIONS, "here")
    share = torch.tensor([next(one["score"] for one in score([text])[0] if one["label"] == "good") for text in TEXTS])
    assert found == pytest.approx(torch.logit(share).tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_reads_its_score_before_the_padding(kind: str) -> None:
    """A batch gives what each text gives alone; the tokenizer has no pad token and gets its end token."""
    words = tiny.tokenizer()
    settings = {"vocab_size": len(words), "num_labels": 1, "pad_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    model: Any
    if kind == "gpt2":
        model = GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=1, n_head=2, **settings))
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForSequenceClassification(LlamaConfig(**sizes, **settings))
    reward = SequenceClassifier(model, words)
    alone = [model(**words(text, return_tensors="pt")).logits.item() for text in TEXTS]
    assert call_reward(reward, PROMPTS, COMPLETIONS, "here") == pytest.approx(alone, abs=1e-5)
    assert words.pad_token is None, "the caller's tokenizer is left as it was"


def test_a_classifier_reads_a_conversation_by_its_template() -> None:
    words = tiny.tokenizer(pad=True, chat_template=CHAT)
    reward = SequenceClassifier(bert(), words)
    talk = [[{"role": "user", "content": "the film"}]], [[{"role": "assistant", "content": "was best"}]]
    assert call_reward(reward, *talk, "here") == call_reward(reward, ["the film"], [" was best "], "here")


def without_safetensors(folder: Path) -> str:
    saved(folder, bert())
    torch.save(bert().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return str(folder)


def language_model(folder: Path) -> str:
    return saved(folder, tiny.gpt2(len(WORDS)), WORDS)


def without_head(folder: Path) -> str:
    model = bert()
    saved(folder, model)
    model.bert.save_pretrained(folder)
    model.config.architectures = ["BertForSequenceClassification"]
    model.config.save_pretrained(folder)
    return str(folder)


def own_code(folder: Path) -> str:
    saved(folder, bert())
    (folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    (folder / "own.py").write_text("raise SystemExit('remote code ran')")
    return str(folder)


def without_tokenizer(folder: Path) -> str:
    bert().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda folder: str(folder / "none"),
            "reward = '.*none' is no folder here; pass the folder that save_pretrained wrote, or a hub id",
        ),
        (
            lambda folder: "somebody/reward",
            r"reward = 'somebody/reward' is neither a folder here nor a model .*; a function is named module:function$",
        ),
        (without_safetensors, "does not load .*safetensors.*; pass .* config, tokenizer and safetensors"),
        (language_model, "is GPT2LMHeadModel, no sequence classifier; pass one, or a function module:function"),
        (
            without_head,
            r"lacks weights of BertForSequenceClassification: classifier\.bias, classifier\.weight; train it",
        ),
        (own_code, "does not load .*, without code of its own"),
        (without_tokenizer, "reward = '.*model' has no tokenizer "),
    ],
)
def test_a_classifier_that_cannot_be_a_reward_is_refused(
    make: Callable[[Path], str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told):
        as_reward(make(tmp_path / "model"))


def test_a_text_that_a_classifier_cannot_read_is_named() -> None:
    reward = SequenceClassifier(bert(), WORDS)
    with pytest.raises(
        RuntimeError, match=r"a text has 25 tokens, and BertForSequenceClassification reads 24; shorten"
    ):
        call_reward(reward, ["the " * 20], ["film " * 5], "here")


def test_what_is_no_reward_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"a reward must be a function reward\(prompts, completions, \*\*kwargs\), got 3; p"
    ):
        tiny.task(reward=[tiny.opinion, 3])


def test_a_model_is_no_reward_without_its_tokenizer() -> None:
    with pytest.raises(
        ValueError, match=r"is a model, BertForSequenceClassification; pass SequenceClassifier\(model, to"
    ):
        tiny.task(reward=bert())


# TRL's own

ANSWER = {"role": "assistant", "content": r"<think> two and two </think> It is \boxed{4}"}
WRONG = {"role": "assistant", "content": r"It is \boxed{5}"}


def with_talk(**changes: Any) -> Task:
    """Two prompts and one held-out prompt, which are conversations; the third has a solution that does not parse."""
    prompts = ["the film", "we saw", "was it"]
    return tiny.task(
        train_prompts=prompts[:2],
        eval_prompts=prompts[2:],
        train_columns={"solution": ["$4$", "$4$"]},
        eval_columns={"solution": ["no number"]},
        conversations={prompt: [{"role": "user", "content": prompt}] for prompt in prompts},
        **changes,
    )


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (think_format_reward, [1.0, 0.0]),
        (accuracy_reward, [1.0, 0.0]),
        (reasoning_accuracy_reward, [1.0, 0.0]),
        (get_cosine_scaled_reward(max_len=4), [0.75, -0.75]),
        (get_soft_overlong_punishment(3, 2), [-0.5, -0.5]),
        (get_repetition_penalty_reward(1), [-0.5, -0.5]),
        ([accuracy_reward, think_format_reward, LengthPenalty(-0.25)], [1.5, -0.5]),
    ],
)
def test_trls_rewards_as_they_are_shipped(reward: Any, expected: list[float]) -> None:
    task = with_talk(reward=reward)
    found = task.score(task.train_prompts, [ANSWER["content"], WRONG["content"]], "here", ids=[[7, 7]] * 2)
    assert found == pytest.approx(expected)


def test_trls_rewards_train_and_evaluate() -> None:
    task = with_talk(reward=[accuracy_reward, think_format_reward, get_soft_overlong_punishment(5, 3)])
    assert len(warp(CONFIG, task, progress=False).history) == CONFIG.I * CONFIG.M * CONFIG.T
    assert task.score(task.eval_prompts, [ANSWER["content"]], "here", ids=[[7]]) == [1.0], "accuracy does not apply"
    with pytest.raises(
        ValueError, match="reward accuracy_reward at here returned None for prompt 'was it', and at leas"
    ):
        with_talk(reward=accuracy_reward).score(task.eval_prompts, ["4"], "here")
    with pytest.raises(ValueError, match="reward accuracy_reward of the task needs solution"):
        tiny.task(reward=accuracy_reward)


# The length penalty, and rewards of single runs


def test_the_length_penalty_counts_tokens() -> None:
    assert LengthPenalty()(completion_ids=[[1, 2], []]) == [-0.001, 0.0]
    task = tiny.task(reward=WeightedSum([tiny.opinion, LengthPenalty()], [1, 10]))
    assert task.score(["the"] * 2, [" best", " film"], "here", ids=[[1] * 4, [2]]) == pytest.approx([0.98, -0.005])
    for wrong in (0.0005, 0.0, float("nan"), -float("inf")):
        with pytest.raises(ValueError, match="per_token must be a negative finite number, got"):
            LengthPenalty(wrong)


def test_run_m_is_trained_on_the_m_th_reward() -> None:
    rewards = [tiny.counted("film"), [tiny.counted("film"), LengthPenalty(-0.1)]]
    task = tiny.task(reward=tiny.opinion, run_rewards=rewards)
    config = CONFIG.replace(I=1)
    found = warp(config, task, progress=False)
    plain, short = (warp(config, tiny.task(reward=reward), progress=False) for reward in rewards)
    rows = {1: plain.history, 2: short.history}
    for run, history in found.history.groupby("run"):
        there = rows[run][rows[run]["run"] == run]
        for name in ("reward", "objective", "grad_norm"):
            assert history[name].tolist() == there[name].tolist()
    assert found.history["reward"].tolist() != plain.history["reward"].tolist()
    assert task.score(["the"], [" best"], "here") == [1.0], "evaluations use `reward`"
    assert describe(task)["run_rewards"][1]["name"] == "count + LengthPenalty"


def test_rewards_of_runs_that_are_not_m_are_refused_before_the_training(tmp_path: Path) -> None:
    task = tiny.task(run_rewards=[tiny.opinion] * 3)
    with pytest.raises(ValueError, match="task tiny has 3 run_rewards, and M = 2; pass 2, or set M = 3"):
        warp(CONFIG, task, tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


# Identity, resuming, workers, the gate

SUM = [tiny.opinion, LengthPenalty(-0.1)]


def classifier(seed: int = 0, label: str | None = None) -> SequenceClassifier:
    return SequenceClassifier(bert(labels=3 if label else 1, seed=seed), WORDS, label)


@pytest.mark.parametrize(
    ("mine", "other", "told"),
    [
        (SUM, SUM[::-1], "reward.sum.1.name: 'opinion' there, 'LengthPenalty' here"),
        (SUM, [*SUM, tiny.opinion], "reward.sum.3.name: None there, 'opinion' here"),
        (SUM, WeightedSum(SUM, [1, 2]), "reward.sum.2.weight: 1.0 there, 2.0 here"),
        (LengthPenalty(-0.1), LengthPenalty(-0.2), "reward.per_token: -0.1 there, -0.2 here"),
        (
            get_soft_overlong_punishment(9, 3),
            get_soft_overlong_punishment(9, 4),
            "reward.settings.soft_punish_cache: 3 there, 4 here",
        ),
        (classifier(0), classifier(1), "reward.model.policy_sha256: "),
        (classifier(0, "good"), classifier(0, "bad"), "reward.label: 'good' there, 'bad' here"),
    ],
)
def test_another_reward_is_another_run(mine: Any, other: Any, told: str) -> None:
    identities = [task_identity(tiny.task(reward=reward)) for reward in (mine, mine, other)]
    assert identities[0] == identities[1]
    assert differences(identities[0], identities[2]).split("; ")[0].startswith(told)
    runs = [task_identity(tiny.task(run_rewards=[tiny.opinion, reward])) for reward in (mine, mine, other)]
    assert runs[0] == runs[1]
    assert differences(runs[0], runs[2]).split("; ")[0].startswith(told.replace("reward.", "run_rewards.2.", 1))


def test_a_classifier_is_known_by_its_weights_and_not_by_its_folder(tmp_path: Path) -> None:
    one, same = (as_reward(saved(tmp_path / name, bert())) for name in "ab")
    assert reward_identity(one) == reward_identity(same)
    assert reward_identity(one) != reward_identity(
        SequenceClassifier(bert(), tiny.tokenizer(tiny.WORDS[::-1], pad=True))
    )
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "a").config.pad_token_id is not None


def test_columns_and_conversations_are_part_of_a_run() -> None:
    plain, columns = task_identity(tiny.task()), task_identity(with_columns())
    assert columns.keys() - plain.keys() == {"columns_sha256"}
    other = tiny.task(train_columns={"turned": ["x"] * 48}, eval_columns={"turned": ["x"] * 64})
    assert differences(columns, task_identity(other)).startswith("columns_sha256: ")
    assert task_identity(with_talk()).keys() - columns.keys() == {"conversations_sha256"}


def test_a_folder_of_another_reward_is_refused(tmp_path: Path) -> None:
    task, config = tiny.task(run_rewards=[tiny.opinion, SUM]), CONFIG.replace(I=1, T=1)
    first = warp(config, task, tmp_path, progress=False)
    again = warp(config, task, tmp_path, progress=False)
    assert again.runs["loaded"].tolist() == [1.0, 1.0] and again.history["reward"].equals(first.history["reward"])
    with pytest.raises(
        ValueError, match=r"configuration \(run_rewards\.2\.sum\.2\.per_token: -0\.1 there, -0\.5 here\)"
    ):
        changed = tiny.task(run_rewards=[tiny.opinion, [tiny.opinion, LengthPenalty(-0.5)]])
        warp(config, changed, tmp_path, progress=False)


def test_a_gate_measures_a_reward_that_reads_tokens() -> None:
    judged = tiny.task(reward=[tiny.opinion, LengthPenalty(-0.5)], judge=tiny.opinion, gate=gates.gate)
    found = judged.gates()

    def by_hand(prompts: list[str], completions: list[str]) -> list[float]:
        values = tiny.opinion(prompts, completions)
        return [value - 0.5 * len(text.split()) for value, text in zip(values, completions, strict=True)]

    assert found == {"reward": gates.gate(by_hand), "judge": gates.gate(tiny.opinion)}
    assert found["reward"] != found["judge"]


def rebuilt_task(folder: str, device: str) -> Task:
    async def applies(completions: list[str], turned: list[str], **kwargs: Any) -> list[float | None]:
        return [None if len(one) % 2 else 1.0 for one in turned]

    return with_columns(
        reward=WeightedSum([folder, applies, LengthPenalty()], [1, 0.5, 2]),
        run_rewards=[folder, get_soft_overlong_punishment(5, 3)],
        rebuild=partial(rebuilt_task, folder),
    )


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with process_pool(1) as executor:
        yield executor


@pytest.mark.slow
def test_workers_train_on_all_of_these_bit_identically(pool: Executor, tmp_path: Path) -> None:
    task = rebuilt_task(saved(tmp_path / "classifier", bert()), "cpu")
    config = CONFIG.replace(I=1)
    there = warp(config, task, tmp_path / "runs", executor=pool, progress=False)
    here = warp(config, task, progress=False)
    assert there.history["reward"].equals(here.history["reward"])
    assert all(torch.equal(there.merged[name], value) for name, value in here.merged.items())
