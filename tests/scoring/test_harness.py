"""lm-evaluation-harness at any strength, against its own model `hf` on torch and against the mixture itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from dera_jax import load_policies, models
from dera_jax.realign import strength_weights
from dera_jax.scoring import harness, likelihood
from tests.support.harnessed import (
    ALIGNED,
    LAMBDAS,
    LENGTH,
    REFERENCE,
    ROWS,
    hf,
    offline,  # noqa: F401 (pytest looks for it here)
)
from tests.support.t5_models import write_tokenizer

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the sunshine. "


@pytest.fixture(scope="module")
def ours():
    return harness.Realigned(load_policies(), LAMBDAS, ROWS, LENGTH)


def requests(kind, *arguments):
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def assert_answers(found, expected):
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-6, atol=1e-4)
    assert [flag for _, flag in found] == [flag for _, flag in expected]


def greedy(model, prompt, count=8):
    """Returns a request for what `model`, ids to the next token's logits, writes by itself."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return ("", str(tokens)), prompt, tokens[len(prompt) :]


CHOICES = [
    (context, choice)
    for context in ("Lily saw a big", STORY * 4 + "Her mom said", "")
    for choice in (" dog", " cat", " red ball and ran away", ".")
]
LONG = CHOICES[4:8]
PAIRS = [*CHOICES, ("A space ", "behind"), (STORY, STORY), ("<s>One day", " a bird")]
TEXTS = [("One day.",), (STORY,), (STORY * 5,)]
GREEDY = {"until": ["."], "max_gen_toks": 16, "do_sample": False}
ASKED = [
    *[(text, GREEDY) for text in (STORY + "One day, a", STORY + "Her", STORY * 4)],
    (STORY, {"max_gen_toks": 7}),
]


def test_loglikelihoods_equal_those_of_hf(ours, theirs):
    asked = requests("loglikelihood", *PAIRS)
    for number, other in theirs.items():
        own = ours.at(number)
        assert_answers(own.loglikelihood(asked), other.loglikelihood(asked))
        written = [(pair, *own._encode_pair(*pair)) for pair in LONG]
        written.append(greedy(lambda ids, m=other.model: m(ids).logits, [1, 403, 407]))
        assert_answers(own._loglikelihood_tokens(written), other._loglikelihood_tokens(written))
        assert own._loglikelihood_tokens(written)[-1][1]


def test_a_continuation_without_tokens_of_its_own_is_hfs(ours, theirs, caplog):
    """The whole has as many tokens as its beginning: "The" as "Th"."""
    asked = requests("loglikelihood", ("Th", "e"), ("Th", "a"), ("Once upon a", " time"))
    assert ours._encode_pair("Th", "e")[1] == []
    for number, other in theirs.items():
        assert_answers(ours.at(number).loglikelihood(asked), other.loglikelihood(asked))
        assert ours.at(number).loglikelihood(asked[:1]) == [(0.0, True)]
    assert "1 of 3 continuations have no tokens of their own" in caplog.text
    assert caplog.text.count("no tokens of their own") == 1


def test_rolling_loglikelihoods_equal_those_of_hf(ours, theirs):
    asked = requests("loglikelihood_rolling", *TEXTS)
    for number, other in theirs.items():
        expected, found = other.loglikelihood_rolling(asked), ours.at(number).loglikelihood_rolling(asked)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)


def test_texts_equal_those_of_hf(ours, theirs):
    asked = requests("generate_until", *ASKED)
    for number, other in theirs.items():
        assert ours.at(number).generate_until(asked) == other.generate_until(asked)


def test_no_stop_texts_are_a_null(ours):
    """`until: null` of a task; `hf` fails at it."""
    (found,), (expected,) = (
        ours.generate_until(requests("generate_until", (STORY, {"until": none, "max_gen_toks": 7})))
        for none in (None, [])
    )
    assert found == expected


def test_strengths_between_and_beyond_are_the_normalized_mixture(ours, theirs):
    """Directly, from both models' logits on torch."""
    for number in (1, 3):
        (strength,), own = LAMBDAS[number], ours.at(number)

        def mixed(ids, strength=strength):
            logits = [theirs[n].model(ids).logits.double() for n in theirs]
            return (1 - strength) * logits[0] + strength * logits[1]

        asked = [(pair, *own._encode_pair(*pair)) for pair in LONG] + [greedy(mixed, [1, 403, 407])]
        expected = []
        for _, prompt, completion in asked:
            read = (prompt + completion)[-LENGTH - 1 :]
            with torch.no_grad():
                rows = torch.log_softmax(mixed(torch.tensor([read[:-1]]))[0], -1)
            rows, chosen = rows[-len(completion) :], torch.tensor(completion)
            logprob = rows.gather(1, chosen[:, None]).sum().item()
            expected.append((logprob, bool((rows.argmax(-1) == chosen).all())))
        assert expected[-1][1] and not expected[0][1]
        assert_answers(own._loglikelihood_tokens(asked), expected)


def test_models_are_read_once_for_all_strengths_and_completions(monkeypatch):
    read = []
    measure = likelihood.measure_candidates
    monkeypatch.setattr(
        likelihood, "measure_candidates", lambda *a: read.append(a[2].mask.any(1).sum()) or measure(*a)
    )
    model = harness.Realigned(load_policies(), LAMBDAS, ROWS, LENGTH)
    # Four answers of one token to each of three questions, one asked twice: three texts.
    questions = [STORY * 4 + start for start in ("Is it a", "Was she", "Tom")]
    asked = [(question, f" {letter}") for question in questions for letter in "aIst"]
    for number in range(len(LAMBDAS)):
        model.at(number).loglikelihood(requests("loglikelihood", *asked, asked[0]))
    assert sum(read) == 3


def test_memory_does_not_grow_by_a_mixture_for_each_strength():
    configs = tuple(replace(policy.config, num_layers=1) for policy in load_policies())
    params = tuple(map(models.param_shapes, configs))
    batch = likelihood.make_batch([[1] * 8] * 8, [[5] * 255] * 8, 8, tight=True)
    candidates = np.ones((8, 256, 1), np.int32)

    def temporary(count):
        weights = strength_weights([(0.1 * n,) for n in range(count)])
        lowered = likelihood.measure_candidates.lower(configs, params, batch, candidates, weights)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # Of 20 more strengths not even one mixture is there beside the others.
    assert temporary(21) - temporary(1) < 8 * 256 * 512 * 4


def test_sampling_is_repeated_differently_and_reproducibly(ours):
    settings = {"until": [], "max_gen_toks": 16, "do_sample": True, "temperature": 1.0}
    asked = requests("generate_until", *[(STORY, settings)] * 5)
    texts = ours.at(1).generate_until(asked)
    again = harness.Realigned(ours.policies, LAMBDAS, ROWS, LENGTH).at(1)
    assert len(set(texts)) > 1 and again.generate_until(asked) == texts


def test_encoder_decoder_equals_hf(tmp_path):
    folders = [_t5(tmp_path / name, seed) for seed, name in enumerate(("reference", "aligned"))]
    model = harness.Realigned(load_policies(*folders), [(0.0,), (1.0,)], rows=4, max_length=16)
    pairs = [("A dog", "runs"), ("A dog", "runs away from home"), (STORY * 3, "yes"), ("", "nothing")]
    asked = requests("generate_until", ("A dog", {"max_gen_toks": 6}))
    for number, folder in enumerate(folders):
        own, other = model.at(number), hf(folder, max_length=16)
        scored = requests("loglikelihood", *pairs)
        expected, found = other.loglikelihood(scored), own.loglikelihood(scored)
        np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-6, atol=1e-4)
        rolling = requests("loglikelihood_rolling", ("A dog",))
        np.testing.assert_allclose(
            own.loglikelihood_rolling(rolling), other.loglikelihood_rolling(rolling), rtol=1e-6
        )
        # It adds the prompt's length to what an encoder-decoder may write.
        assert other.generate_until(asked)[0].startswith(own.generate_until(asked)[0])


def _t5(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "t5", vocab_size=512, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def test_lm_eval_knows_the_model_by_its_name():
    model = get_model("dera_jax").create_from_arg_string(f"lambda=1/6,rows={ROWS},max_length={LENGTH}")
    assert (model.lambdas, model.rows, model.max_length) == (((1 / 6,),), ROWS, LENGTH)
    assert [policy.folder for policy in model.policies] == [REFERENCE, ALIGNED]


def test_the_template_is_told_what_hfs_is():
    told = {"enable_thinking": False}
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}"
        "<assistant>{% if enable_thinking is defined and not enable_thinking %}(no thoughts){% endif %}{% endif %}"
    )
    theirs = hf(ALIGNED, chat_template_args=told)
    ours = harness.Realigned(load_policies(), [(1.0,)], ROWS, LENGTH, chat_template_args=told)
    theirs.tokenizer.chat_template = ours.tokenizer.chat_template = template
    asked = [{"role": "user", "content": "Hi"}]
    started = [*asked, {"role": "assistant", "content": "Yes"}]
    for chat, begins in ((asked, True), (started, False)):
        assert ours.apply_chat_template(chat, begins) == theirs.apply_chat_template(chat, begins)
    assert ours.apply_chat_template(asked).endswith("(no thoughts)")
