"""Reward functions are called here only: by TRL's convention, and what they return is checked."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Thread
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
Reward = Callable[..., Any]
"""reward(prompts, completions, completion_ids, trainer_state, **columns) -> a number or None per completion, as in TRL.

It gets the keywords that its signature names, all with `**kwargs`, and may be a coroutine function. None says that the
reward does not apply to a completion.
"""
Prompt = str | list[dict[str, Any]]
"""A text, or the messages of a conversation."""


@dataclass(frozen=True)
class TrainerState:
    """Progress of a training, for rewards that read TRL's `trainer_state`.

    Args:
        global_step: finished steps on the way to the current policy, of this iteration's run and of one run of every
            iteration before; 0 at the first step.
        max_steps: I·T.
    """

    global_step: int
    max_steps: int


@dataclass(frozen=True)
class WeightedSum:
    """Weighted sum of rewards; one that returns None for a completion is left out there, as in TRL's GRPOTrainer.

    Args:
        rewards: what `Task(reward=…)` takes, also sums.
        weights: a finite number for each; all 1 by default.

    Raises:
        ValueError: there is no reward, or the weights are not as many finite numbers.

    Example:
        Task(reward=WeightedSum([quality, LengthPenalty()], weights=[2, 1]), …)
    """

    rewards: Sequence[Any]
    weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        rewards = tuple(self.rewards)
        weights = tuple(self.weights) or (1.0,) * len(rewards)
        if not rewards:
            raise ValueError("a sum of rewards is empty; pass at least one")
        if len(weights) != len(rewards) or not all(map(_is_finite_number, weights)):
            raise ValueError(f"weights must be {len(rewards)} finite numbers, one per reward, got {list(weights)}")
        object.__setattr__(self, "rewards", rewards)
        object.__setattr__(self, "weights", tuple(map(float, weights)))

    @property
    def __name__(self) -> str:
        names = map(reward_name, self.rewards)
        return " + ".join(n if w == 1 else f"{w:g}·{n}" for n, w in zip(names, self.weights, strict=True))

    def __call__(self, prompts: list[Any], completions: list[Any], **given: Any) -> list[float]:
        return call_reward(self, prompts, completions, "a direct call", **given)

    def describe(self) -> dict[str, Any]:
        """Return the weights and what the rewards are."""
        return {"weights": list(self.weights), "rewards": [describe_reward(reward) for reward in self.rewards]}


def call_reward(reward: Reward, prompts: list[Any], completions: list[Any], where: str, **given: Any) -> list[float]:
    """Call the reward and check that it returns one finite number per completion.

    The functions of a sum are called one after another, its coroutine functions at the same time.

    Args:
        reward: a function, or a `WeightedSum`.
        prompts, completions: texts; or messages, where the prompts are conversations.
        where: the place of the call, for messages.
        given: further keywords, for functions that take them.

    Raises:
        ValueError: a function needs a keyword that is not given, did not return one finite number or None per
            completion, or all functions returned None for a completion; the message names the function, `where` it was
            called, the first bad value and its prompt.
        RuntimeError: a function raised; the message names the function and `where`, and quotes the first prompt.
    """
    keywords = {"prompts": prompts, "completions": completions} | given
    functions, weights = zip(*_terms(reward, 1.0), strict=True)
    for function in functions:
        check_keywords(function, keywords, f"at {where}")
    outputs = _awaited([_output(function, keywords) for function in functions])
    scores = [_checked(*pair, prompts, where) for pair in zip(functions, outputs, strict=True)]
    totals = []
    for prompt, *values in zip(prompts, *scores, strict=True):
        applying = [weight * value for weight, value in zip(weights, values, strict=True) if value is not None]
        called = f"reward {reward_name(reward)} at {where}"
        if not applying:
            raise ValueError(
                f"{called} returned None for prompt {quoted(prompt)}, and at least one reward must apply to a prompt; "
                f"return a number, or pass a list of rewards with one that applies: Task(reward=[…, …])"
            )
        totals.append(math.fsum(applying))
        if not _is_finite_number(totals[-1]):
            raise ValueError(f"{called} is {totals[-1]} for prompt {quoted(prompt)}; it must be finite in float32")
    return totals


def _terms(reward: Reward, weight: float) -> list[tuple[Reward, float]]:
    """Return the functions of a sum, also of sums in it, with their weights."""
    if not isinstance(reward, WeightedSum):
        return [(reward, weight)]
    pairs = zip(reward.rewards, reward.weights, strict=True)
    return [term for inner, own in pairs for term in _terms(inner, own * weight)]


def check_keywords(reward: Reward, given: Mapping[str, Any], where: str) -> None:
    """Raise ValueError if a function, or one of a sum, needs a keyword that is not among `given`."""
    for function, _ in _terms(reward, 1.0):
        lacking = [
            name
            for name, one in _parameters(function).items()
            if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
            if name not in given
        ]
        if lacking:
            raise ValueError(
                f"reward {reward_name(function)} {where} needs {', '.join(lacking)}, given are {', '.join(given)}; "
                f"pass columns of the prompts, Task(train_columns=…, eval_columns=…), or give the parameter a default"
            )


def _parameters(function: Reward) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function by name; one of C may have no signature, and then takes any."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def _output(function: Reward, keywords: Mapping[str, Any]) -> Any:
    """Call the function with those of `keywords` that it takes; return its output, or the exception that it raised."""
    try:
        return function(**_taken(function, keywords))
    except Exception as error:
        return error


def _taken(function: Reward, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `keywords` that the signature of a function names, all with `**kwargs`."""
    parameters = _parameters(function)
    every = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return {name: value for name, value in keywords.items() if every or name in parameters}


def _awaited(outputs: list[Any]) -> list[Any]:
    """Await the outputs of coroutine functions, all at the same time; an exception takes its output's place."""
    waiting = [output for output in outputs if inspect.isawaitable(output)]
    if not waiting:
        return outputs

    async def together() -> list[Any]:
        return await asyncio.gather(*waiting, return_exceptions=True)

    future = asyncio.run_coroutine_threadsafe(together(), _event_loop(os.getpid()))
    try:
        done = iter(future.result())
    except BaseException:
        future.cancel()
        raise
    return [next(done) if inspect.isawaitable(output) else output for output in outputs]


@cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """Start the event loop of a process in a thread: a notebook runs one of its own, and a client keeps to its loop."""
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop


def _checked(function: Reward, output: Any, prompts: list[Any], where: str) -> list[float | None]:
    """Return the output of a function as numbers, None where it does not apply; raise what `call_reward` says."""
    called = f"reward {reward_name(function)} at {where}"
    if isinstance(output, BaseException):
        raise RuntimeError(
            f"{called} raised {type(output).__name__}: {output} (first of {len(prompts)} prompts: {quoted(prompts[0])})"
        ) from output
    try:
        values = list(output)
    except TypeError:
        raise ValueError(
            f"{called} returned {output!r}; it must return a list of numbers, one per completion"
        ) from None
    if len(values) != len(prompts):
        raise ValueError(f"{called} returned {len(values)} values for {len(prompts)} completions")
    for prompt, value in zip(prompts, values, strict=True):
        if value is not None and not _is_finite_number(value):
            raise ValueError(
                f"{called} returned {value!r} for prompt {quoted(prompt)}; "
                f"every value must be one number, finite in float32"
            )
    return [None if value is None else float(value) for value in values]


def _is_finite_number(value: Any) -> bool:
    """Whether `value` is a number that is finite in fp32, or a 0-d array or tensor that holds one."""
    if isinstance(value, str | bytes) or getattr(value, "shape", ()) != ():
        return False
    try:
        return math.isfinite(value) and abs(value) <= LARGEST
    except (TypeError, ValueError, OverflowError):
        return False


def quoted(prompt: Prompt) -> str:
    """Return the begin of a prompt in quotes, for messages; of a conversation that of its last message."""
    text = prompt if isinstance(prompt, str) else prompt[-1].get("content", "")
    return repr(str(text)[:60])


def as_conversations(
    prompts: list[str], completions: list[str], conversations: Mapping[str, list[dict[str, Any]]]
) -> tuple[list[Any], list[Any]]:
    """Return prompts and completions as a reward sees them, by TRL's convention.

    Without conversations both are texts. With them a prompt is its messages, `conversations` of its text, and a
    completion one message of the assistant.
    """
    if not conversations:
        return prompts, completions
    answers = [[{"role": "assistant", "content": completion}] for completion in completions]
    return [conversations[prompt] for prompt in prompts], answers


def on_texts(reward: Reward, tokenize: Callable[[list[str]], list[list[int]]]) -> Reward:
    """Return the reward for texts that no policy sampled, as a gate has: `completion_ids` are those of `tokenize`."""
    if isinstance(reward, WeightedSum):
        return WeightedSum([on_texts(one, tokenize) for one in reward.rewards], reward.weights)
    if "completion_ids" not in _parameters(reward):
        return reward

    def tokenized(prompts: list[Any], completions: list[Any], **given: Any) -> Any:
        ids = {"completion_ids": tokenize(completions)}
        return reward(**_taken(reward, {"prompts": prompts, "completions": completions} | ids | given))

    tokenized.__name__ = reward_name(reward)
    return tokenized


def reward_name(reward: Reward) -> str:
    """Return the function's name, or the class name of a callable object."""
    return str(getattr(reward, "__name__", type(reward).__name__))


def describe_reward(reward: Reward) -> dict[str, Any]:
    """Return the reward's name and, if it has a method `describe`, what that returns."""
    return {"name": reward_name(reward)} | (reward.describe() if hasattr(reward, "describe") else {})
