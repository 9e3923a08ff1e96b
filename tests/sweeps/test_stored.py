"""Judging what is there already: stored rows, preference pairs and given text, against torch."""

import copy
import dataclasses
import json
from functools import cache

import numpy as np
import pytest
from tokenizers import processors

from dera_jax import load_policies, save_policy, sweep
from dera_jax.data import examples
from dera_jax.data.prompts import Prompt
from dera_jax.data.records import load_records
from dera_jax.results.manifests import read_manifest
from dera_jax.results.reading import read_rows
from dera_jax.rewards.of_rows import judge
from dera_jax.rewards.registry import Reward, parse_rewards
from dera_jax.scoring.divergence import encode_texts, kl_per_token
from dera_jax.scoring.pairs import as_json, encode_pairs, load_pairs, pairwise_accuracy
from dera_jax.sweeps.judging import judge_run

PAIRS = [
    ("Once upon a time", " there was a little girl named Lily.", " dog the of ran red."),
    ("Lily had a dog", ". Tom tom tom tom!", " named Spot. They liked to play in the park."),
    ("Tom saw", " a big tree.", " many many many birds in the sky and he was very happy"),
    ("One day, a bird", " flew away.", " was sad. It could not fly. It wanted to go home to its mom"),
    ("Tom saw", " it.", " a cat and a ball"),
]
"""Prompt, chosen and rejected."""

LAMBDAS = [0.0, 0.5, 1.0, 2.0]


@pytest.fixture(scope="module")
def policies(pair, toy, tmp_path_factory):
    """The pair as folders."""
    folder = tmp_path_factory.mktemp("models") / "aligned"
    save_policy(pair[1], folder)
    return load_policies(toy, folder)


@pytest.fixture(scope="module")
def torch_logprobs(policies):
    """Ids to log π of every next token under each model, [models, tokens − 1, vocab], by transformers."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    models = [AutoModelForCausalLM.from_pretrained(p.folder).double().eval() for p in policies]

    @cache
    def logprobs(ids):
        with torch.no_grad():
            logits = [model(torch.tensor([ids])).logits[0, :-1] for model in models]
        return torch.stack(logits).log_softmax(-1).numpy()

    return logprobs


# Stored rows


def a_row(prompt_id, tokens, **more):
    return {
        "prompt_id": prompt_id, "prompt": f"prompt {prompt_id}", "completion": "words", "tokens": tokens,
        "length": len(tokens) - 1, "finish_reason": "eos", "rewards": {}, **more,
    }  # fmt: skip


def test_only_rows_that_lack_a_reward_are_judged():
    seen = []

    def count(completions):
        seen.append((completions.prompts, completions.tokens, dict(completions.columns)))
        return [float(len(tokens)) for tokens in completions.tokens]

    rows = [a_row(0, [5, 6, 1], rewards={"count": -7.0, "other": 1.0}), a_row("b", [5, 6, 7, 1])]
    assert judge(rows, [Reward("count", count)], {"b": {"topic": "tea"}}, decode=str)
    # EOS is left out; what was there stays.
    assert seen == [(["prompt b"], [[5, 6, 7]], {"topic": ["tea"]})]
    assert [row["rewards"] for row in rows] == [{"count": -7.0, "other": 1.0}, {"count": 3.0}]
    assert not judge(rows, [Reward("count", count)], {}, decode=str) and len(seen) == 1


def by_text(completions, **more):
    return [float(len(text)) for text in completions]


def by_ids(completion_ids):
    return [float(len(ids)) for ids in completion_ids]


def test_rows_without_ids_are_judged_by_their_text_only():
    rows = [{name: value for name, value in a_row(0, [5, 1]).items() if name != "tokens"}]
    assert judge(rows, parse_rewards(f"keywords:words,python:{__name__}:by_text"), {}, decode=str)
    assert list(rows[0]["rewards"].values()) == [1.0, 5.0]
    for asks in ("length:1:2", f"python:{__name__}:by_ids"):
        with pytest.raises(ValueError, match="kept without"):
            judge(rows, parse_rewards(asks), {}, decode=str)


@pytest.fixture
def run(policies, tmp_path):
    list(sweep(policies, ["Once upon a time", "Tom saw"], [0.0, 1.0], out=tmp_path / "run",
               max_new_tokens=24, rows=4))  # fmt: skip
    return tmp_path / "run"


def test_a_run_is_judged_without_decoding(run):
    before = read_rows(run)
    rewards = parse_rewards("length:1:30,length:1:99:\\n")
    assert judge_run(run, rewards, {}, ["a", "command"])
    after = read_rows(run)
    assert [row | {"rewards": {}} for row in after] == before
    for row in after:
        # Cut off at 24 tokens: no length yet, unless a line has ended.
        whole = row["finish_reason"] == "eos"
        ended = whole or "\n" in row["completion"]
        assert row["rewards"] == {"length:1:30": whole - 1.0, "length:1:99:\\n": ended - 1.0}
    manifest = read_manifest(run)
    assert manifest["commands"][-1]["command"] == ["a", "command"]
    assert manifest["extent"]["rewards"] == ["length:1:30", "length:1:99:\\n"]
    assert manifest["extent"]["num_prompts"] == 2


def test_judging_again_writes_nothing(run):
    rewards = parse_rewards("keywords:a")
    judge_run(run, rewards, {}, [])
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert not judge_run(run, rewards, {}, ["again"])
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_reward_that_fails_leaves_the_rows(run):
    def broken(completions):
        raise ValueError("reward broken: no")

    before = (run / "rows.jsonl").read_bytes()
    with pytest.raises(ValueError, match="reward broken"):
        judge_run(run, [*parse_rewards("keywords:a"), Reward("broken", broken)], {}, [])
    assert (run / "rows.jsonl").read_bytes() == before


def test_a_run_without_models_is_judged_where_no_text_is_asked_for(run):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["provenance"] = {}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert judge_run(run, parse_rewards("length:1:5"), {}, [])
    with pytest.raises(ValueError, match="needs the tokenizer"):
        judge_run(run, parse_rewards("length:1:5:x"), {}, [])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none: no such folder"):
        judge_run(tmp_path / "none", parse_rewards("length:1:5"), {}, [])
    assert not (tmp_path / "none").exists()


# Preference pairs


def write_pairs(path, pairs=PAIRS):
    names = ("prompt", "chosen", "rejected")
    path.write_text("".join(json.dumps(dict(zip(names, pair, strict=True))) + "\n" for pair in pairs))
    return str(path)


def encoded(policies, path, limit=None):
    return encode_pairs(policies, load_pairs(path, limit)[0])[0]


def test_accuracies_are_those_of_torch(policies, torch_logprobs, tmp_path):
    pairs = encoded(policies, write_pairs(tmp_path / "pairs.jsonl"))
    table = pairwise_accuracy(policies, pairs, [(x,) for x in LAMBDAS], rows=4)
    tokenizer = policies[0].tokenizer

    def figures(prompt, completion, lambda_):
        """Σ log π(y|x)/|y| and Σ log π(y|x)/π_ref(y|x) of the mixture, y with EOS."""
        ids = [*tokenizer(prompt + completion).input_ids, tokenizer.eos_token_id]
        start = len(tokenizer(prompt).input_ids) - 1
        reference, aligned = torch_logprobs(tuple(ids))
        mixed = (1 - lambda_) * reference + lambda_ * aligned
        mixed -= np.log(np.exp(mixed).sum(-1, keepdims=True))
        steps = np.arange(len(ids) - 1)
        logprobs, at_reference = (h[steps, ids[1:]][start:] for h in (mixed, reference))
        return logprobs.mean(), (logprobs - at_reference).sum()

    for (strength, accuracy, implicit), lambda_ in zip(table, LAMBDAS, strict=True):
        margins = np.array(
            [
                np.subtract(figures(prompt, chosen, lambda_), figures(prompt, rejected, lambda_))
                for prompt, chosen, rejected in PAIRS
            ]
        )
        # No pair is so close that rounding could decide it.
        assert np.abs(margins[:, 0]).min() > 1e-3
        wins = (margins > 0).mean(axis=0)
        assert strength == (lambda_,) and accuracy.mean == pytest.approx(wins[0])
        assert 0 < wins[0] < 1
        if lambda_:
            assert np.abs(margins[:, 1]).min() > 1e-3
            assert implicit.mean == pytest.approx(wins[1])
        else:
            assert implicit is None


def test_pairs_of_one_prompt_have_no_interval_and_are_valid_json(policies, tmp_path):
    pairs = encoded(policies, write_pairs(tmp_path / "pairs.jsonl"), limit=1)
    figures = as_json(pairwise_accuracy(policies, pairs, [(0.0,), (1.0,)], rows=4))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures[0]["lambda"] == 0.0 and figures[0]["implicit_reward_accuracy"] is None
    accuracy = figures[1]["accuracy"]
    assert accuracy["mean"] in (0.0, 1.0) and (accuracy["low"], accuracy["high"]) == (None, None)


@pytest.mark.parametrize(
    "line, message",
    [
        (
            '{"prompt": "a", "chosen": "b"}',
            r"pairs\.jsonl:2: expected `chosen` and `rejected`, .* found prompt, ",
        ),
        ('{"prompt": "a", "chosen": 1, "rejected": "c"}', r":2: chosen: expected a string or a list of"),
        ('{"prompt": "a", "chosen": "b", "rejected": [1]}', r":2: rejected\[0\]: expected an object with"),
        ('{"prompt": "a", "chosen"', r":2: not valid JSON"),
    ],
)
def test_broken_pairs_are_named_by_their_line(tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_pairs(str(path))


def test_pairs_that_cannot_be_used_are_dropped_and_counted(policies, tmp_path):
    texts = [PAIRS[0], ("Tom", "", " b"), ("Tom", " b", " b"), ("Tom", " and" * 600, " saw"), PAIRS[1]]
    pairs, unread = load_pairs(write_pairs(tmp_path / "pairs.jsonl", texts))
    pairs, unfit = encode_pairs(policies, pairs)
    assert [pair.group for pair in pairs] == [PAIRS[0][0], PAIRS[1][0]]
    assert (unread | unfit).reasons == {
        "chosen is empty": 1, "chosen equal to rejected": 1, "pair too long": 1,
    }  # fmt: skip
    said = ["chosen is empty", "chosen equal", r"\d+ tokens with .* 256"]
    for text, message in zip(texts[1:4], said, strict=True):
        with pytest.raises(ValueError, match=rf"one\.jsonl:1: {message}"):
            encoded(policies, write_pairs(tmp_path / "one.jsonl", [text]))


def test_pairs_are_read_as_trainings_read_them(policies, tmp_path):
    """Texts, transcripts and chats: the ids of the same records in train.dpo."""
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    chats = [dataclasses.replace(policy, template=template) for policy in policies]
    user, good, bad = (
        {"role": role, "content": text}
        for role, text in [("user", "Hi"), ("assistant", "Yes"), ("assistant", "No")]
    )
    talk, answers = "\n\nHuman: a\n\nAssistant:", {"chosen": [good], "rejected": [bad]}
    texts = [
        {"prompt": "Tom", "chosen": " ran", "rejected": "\nsat"},
        {"chosen": talk + " b", "rejected": talk + " c"},
    ]
    said = [
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": [user], **answers},
        {"prompt": "Hi", **answers},
        {"prompt": [user], "chosen": "Yes", "rejected": "No"},
    ]
    path = tmp_path / "pairs.jsonl"
    for models, records in ((policies, texts), (chats, said)):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        pairs = encoded(models, str(path))
        trained, _ = examples.encode_pairs(models[-1], load_records(str(path)), 512)
        for pair, other in zip(pairs, trained, strict=True):
            assert pair.prompts == (other.prompt,) * 2
            assert pair.completions == (other.chosen, other.rejected)
    assert len({pair[1:] for pair in pairs}) == 1
    # What was read before.
    path.write_text(json.dumps({"messages": [user], "chosen": "Yes", "rejected": "No"}))
    assert encoded(chats, str(path))[0][1:] == pairs[0][1:]


# Divergence


def divergence(policies, prompts):
    return kl_per_token(policies, encode_texts(policies, prompts)[0], rows=4)


def test_divergence_is_that_of_torch(policies, torch_logprobs):
    prompts = [Prompt(i, prompt + chosen) for i, (prompt, chosen, _) in enumerate(PAIRS)]
    found = divergence(policies, prompts)
    divergences = []
    for prompt in prompts:
        reference, aligned = torch_logprobs(tuple(policies[0].tokenizer(prompt.text).input_ids))
        divergences.extend((np.exp(aligned) * (aligned - reference)).sum(-1))
    assert found.mean == pytest.approx(np.mean(divergences), rel=1e-4)
    assert found.low < found.mean < found.high
    # It is no distance: the other way round it is another number.
    assert divergence(policies[::-1], prompts).mean != pytest.approx(found.mean, rel=1e-3)


def test_a_model_does_not_diverge_from_itself(policies):
    found = divergence((policies[1], policies[1]), [Prompt(0, "Tom saw a big tree.")])
    assert found.mean == pytest.approx(0, abs=1e-6)


def test_text_without_a_next_token_or_too_long_is_refused(policies):
    long = Prompt(0, "and " * 600)
    with pytest.raises(ValueError, match=r"prompt 0: .* do not fit the context"):
        encode_texts(policies, [long])
    without_bos = copy.deepcopy(policies[0].tokenizer)
    without_bos.backend_tokenizer.post_processor = processors.Sequence([])
    bare = [dataclasses.replace(policy, tokenizer=without_bos) for policy in policies]
    with pytest.raises(ValueError, match="prompt 'x': expected at least 2 tokens, found 1"):
        encode_texts(bare, [Prompt("x", "a")])
    texts, dropped = encode_texts(bare, [Prompt("x", "a"), Prompt("y", "a cat"), long])
    assert [text.id for text in texts] == ["y"] and list(dropped.reasons.values()) == [1, 1]
