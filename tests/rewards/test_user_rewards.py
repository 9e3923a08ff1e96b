"""Rewards that are a user's functions: called as TRL calls them, and held to their numbers."""

import asyncio
import re
from dataclasses import replace

import pytest

from dera_jax import sweep
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.config import DecodeConfig
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.of_rows import judge
from dera_jax.rewards.registry import as_rewards
from dera_jax.rewards.together import call_all
from dera_jax.training.rollout import draw_rollout
from tests.support.rewarded import of_texts, reward


def test_user_functions_have_trls_signature(user_module):
    completions = of_texts("yes sir", "no", answer=["yes", "yes"], other=[1, 2])
    assert reward("python:user_rewards:lengths", completions) == [12.0, 7.0]
    assert reward("python:user_rewards:named", completions) == [1.0, None]
    assert reward("python:user_rewards:everything", completions) == [2.0, 1.0]
    found = reward("python:user_rewards:generated", completions)
    assert found == [1.0, 1.0]
    assert {type(value) for value in found} == {float}


def test_user_functions_see_chats_as_trl_shows_them(user_module):
    """As TRL's GRPOTrainer calls them: messages for chats, async functions awaited, the state of the training."""
    chat = [{"role": "user", "content": "Hi"}]
    rows = [
        {"prompt": prompt, "completion": text, "tokens": [5, 2], "length": 1, "finish_reason": "eos"}
        for prompt, text in ((chat, "Hello"), ("Once", " upon"))
    ]
    seen = Completions.of(rows, [{}, {}], str, step=3)
    assert reward("python:user_rewards:chatting", seen) == [5.0, -5.0]
    assert reward("python:user_rewards:later", seen) == [1.0, 5.0]
    assert reward("python:user_rewards:of_training", seen) == [3.0, 3.0]
    assert reward("python:user_rewards:last_id", seen) == [2.0, 2.0]  # EOS is there, as in TRL
    assert seen.tokens == [[5], [5]]

    async def within_a_loop():
        return reward("python:user_rewards:later", seen)

    assert asyncio.run(within_a_loop()) == [1.0, 5.0]


def test_async_functions_wait_together():
    """Two that wait for each other end, in a sweep's judging and in a training's; a failure names its function."""
    order, turn = [], asyncio.Event

    def meeting(name, own, other):
        async def wait(completions, **columns):
            order.append(name)
            events[own].set()
            await asyncio.wait_for(events[other].wait(), 20)
            return [float(own)] * len(completions)

        return wait

    def plain(completions, **columns):
        order.append("plain")
        return [5.0] * len(completions)

    async def broken(completions, **columns):
        raise KeyError("gone")

    rewards = as_rewards({"a": meeting("a", 0, 1), "plain": plain, "b": meeting("b", 1, 0)})
    seen = of_texts("x", "y")
    events = [turn(), turn()]
    assert list(call_all(rewards, [seen] * 3)) == [[0.0, 0.0], [5.0, 5.0], [1.0, 1.0]]
    assert order == ["a", "b", "plain"]
    events = [turn(), turn()]
    rows = [
        {"prompt_id": 0, "prompt": "p", "completion": text, "finish_reason": "eos", "rewards": {}}
        for text in "xy"
    ]
    assert judge(rows, rewards, {}, decode=str)
    assert [row["rewards"] for row in rows] == [{"a": 0.0, "plain": 5.0, "b": 1.0}] * 2
    events = [turn(), turn()]
    with pytest.raises(ValueError, match=r"^reward bad: KeyError: 'gone' \(.*test_user_rewards.py:\d+\)$"):
        list(call_all(as_rewards({"a": rewards[0], "bad": broken}), [seen] * 2))


def test_training_and_sweeps_show_a_reward_the_same(pair):
    """One builder of what is seen: the start of an answer belongs to the prompt in both."""
    seen = {"training": [], "sweep": []}
    for prompt in (
        {"prompt": "Once", "prefix": " upon"},
        {"turns": ["Hi"], "prefix": "Lily", "topic": "tales"},
    ):
        policies = tuple(
            replace(p, template="{% for m in messages %}{{ m.content }}\n{% endfor %}") for p in pair
        )

        def note(kind):
            def f(prompts, completions, **columns):
                seen[kind].append((prompts[0], type(completions[0]), sorted(columns)))
                return [0.0] * len(prompts)

            return as_rewards({"f": f})

        list(sweep(policies, [prompt], [0.0], note("sweep"), max_new_tokens=4, rows=2))
        encoded = encode_prompts(policies[:1], [Prompt.of(prompt)], 4)
        draw_rollout(*policies, encoded, 2, note("training"), DecodeConfig(max_new_tokens=4), 0)
    assert seen["training"] == seen["sweep"]
    assert seen["sweep"][0][:2] == ("Once upon", str)
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Lily"}]
    assert seen["sweep"][1] == (said, list, ["completion_ids", "topic"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "expected 2 numbers, found 1"),
        ("nothing", "expected a list of 2 numbers, found None"),
        ("text", "expected a list of 2 numbers, found 'ab'"),
        ("words", "expected a finite number or None, found '1' for completion 0"),
        ("nan", ".*found nan for completion 1"),
        ("infinite", ".*found -inf for completion 0"),
        ("fails", "KeyError: 'the.*key'"),
        ("demands", "TypeError: .*'missing'"),
    ],
)
def test_user_functions_are_held_to_it(user_module, name, message):
    spec = f"python:user_rewards:{name}"
    with pytest.raises(ValueError, match=f"^reward {re.escape(spec)}: {message}") as error:
        reward(spec, of_texts("a", "b"))
    assert "\n" not in str(error.value)
    if name == "fails":
        assert isinstance(error.value.__cause__, KeyError)
