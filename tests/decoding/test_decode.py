"""The loop: a row does not depend on its neighbours, and the number of compilations on shapes only."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dera_jax.data import buckets
from dera_jax.data.encoding import EncodedPrompt, encode_prompts, encode_usable
from dera_jax.data.prompts import Prompt, load_prompts
from dera_jax.decoding import device_loop, state
from dera_jax.decoding.complete import complete, complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.decoding.room import CHUNK
from dera_jax.devices.usage import Usage
from dera_jax.scoring.score import score_tokens
from tests.support.figures import assert_bit_equal

pytestmark = pytest.mark.bits


CONFIG = DecodeConfig(max_new_tokens=40, seed=3)
TEXTS = ["Once upon a time", "One day, a little fish", "Lily and Ben", "The sun was hot. Tom wanted"]
ROWS = 8


def cells_of(policies, texts=TEXTS, strengths=((0.0,), (0.7,), (1.0,)), samples=2):
    prompts = encode_prompts(policies, [Prompt(i, text) for i, text in enumerate(texts)], 40)
    return [Request(p, sample, s) for p in prompts for sample in range(samples) for s in strengths]


def by_cell(completions):
    return {(c.request.prompt.id, c.request.sample, c.request.lambda_): c for c in completions}


@pytest.fixture(scope="module")
def all_rows(pair):
    return by_cell(complete(pair, cells_of(pair), CONFIG, ROWS))


@pytest.mark.parametrize("lambda_, model", [((0.0,), 0), ((1.0,), 1)])
def test_endpoints_are_the_models_alone(pair, all_rows, lambda_, model):
    alone = by_cell(complete((pair[model],), cells_of((pair[model],), strengths=[()]), CONFIG, ROWS))
    for (prompt, sample, _), completion in alone.items():
        assert completion.tokens == all_rows[prompt, sample, lambda_].tokens


def test_rows_do_not_depend_on_order(pair, all_rows):
    again = by_cell(complete(pair, cells_of(pair)[::-1], CONFIG, ROWS))
    for key, completion in all_rows.items():
        assert_bit_equal(completion, again[key])


def test_rows_do_not_depend_on_other_strengths_prompts_and_samples(pair, all_rows):
    few = cells_of(pair, TEXTS[:2], [(0.7,)], samples=1)
    others = cells_of(pair, TEXTS[:2], [(0.7,), (1.9,), (-0.3,), (0.1,)], samples=3)
    for found in (complete(pair, few, CONFIG, ROWS), complete(pair, others, CONFIG, ROWS)):
        rows = by_cell(found)
        for key in [(0, 0, (0.7,)), (1, 0, (0.7,))]:
            assert_bit_equal(all_rows[key], rows[key])


def changed_words(one: dict, other: dict) -> tuple[int, int]:
    """Words that differ at the first place where rows part, and words up to there."""
    changed = words = 0
    for key, completion in one.items():
        pairs = list(zip(completion.tokens, other[key].tokens, strict=False))
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        changed += first is not None
        words += len(pairs) if first is None else first + 1
    return changed, words


def test_batch_size_and_bucket_change_at_most_one_word_in_ten_thousand(pair, monkeypatch):
    cells = cells_of(pair, samples=24)
    rows = by_cell(complete(pair, cells, CONFIG, 32))
    smaller = by_cell(complete(pair, cells, CONFIG, 5))
    monkeypatch.setattr(buckets, "SMALLEST_BUCKET", 64)
    padded = by_cell(complete(pair, cells_of(pair, samples=24), CONFIG, 32))
    for name, other in {"5 rows": smaller, "bucket 64": padded}.items():
        changed, words = changed_words(rows, other)
        print(f"{name}: {changed} of {words} words changed")
        assert changed <= max(1, 1e-4 * words)
    for key in rows:
        if rows[key].tokens == padded[key].tokens:
            np.testing.assert_allclose(rows[key].logprobs, padded[key].logprobs, atol=1e-4)


def test_compilations_do_not_depend_on_the_number_of_strengths(pair):
    jitted = (device_loop.prefill_prompts, state.fill_slots, device_loop.decode_chunk)

    def compilations():
        return [function._cache_size() for function in jitted]

    rows = 6  # a shape that no other test uses
    before = compilations()
    list(complete_unshared(pair, cells_of(pair, TEXTS[:1], [(0.5,)]), CONFIG, rows))
    once = compilations()
    list(complete_unshared(pair, cells_of(pair, TEXTS[:1], [(0.1 * i,) for i in range(11)]), CONFIG, rows))
    assert compilations() == once
    assert once[1] - before[1] == once[2] - before[2] == 1


def test_settings_that_are_numbers_are_not_compiled_in(pair):
    """Temperatures that were closed over once have been ignored silently elsewhere."""
    cells = cells_of(pair, TEXTS[:1], [(1.0,)], samples=4)
    texts = []
    for temperature, seed in [(0.5, 0), (1.5, 0), (1.5, 1)]:
        config = DecodeConfig(max_new_tokens=16, temperature=temperature, seed=seed)
        texts.append([c.tokens for c in complete(pair, cells, config, 7)])
        count = device_loop.decode_chunk._cache_size()
    assert texts[0] != texts[1] != texts[2]
    list(complete(pair, cells, DecodeConfig(max_new_tokens=16, temperature=0.9), 7))
    assert device_loop.decode_chunk._cache_size() == count


def test_a_prompt_is_prefilled_once(pair, monkeypatch):
    calls = Counter()
    original = device_loop.prefill_prompts

    def counted(configs, params, tokens, mask, last, mesh):
        calls[tuple(np.asarray(tokens[0]).ravel())] += 1
        return original(configs, params, tokens, mask, last, mesh)

    monkeypatch.setattr(device_loop, "prefill_prompts", counted)
    list(complete(pair, cells_of(pair, samples=5), CONFIG, ROWS))
    assert len(calls) == len(TEXTS) and set(calls.values()) == {1}


def test_the_loop_stops_when_every_row_is_done(pair):
    """Rows that end at once take one chunk, whatever the longest completion might be."""
    from dataclasses import replace

    every_word = tuple(range(512))
    impatient = tuple(replace(policy, eos_ids=every_word) for policy in pair)
    config, usage = DecodeConfig(max_new_tokens=200), Usage()
    found = list(complete(impatient, cells_of(impatient, TEXTS[:1], samples=1), config, ROWS, usage=usage))
    assert [c.finish_reason for c in found] == ["eos"] * 3 and [c.length for c in found] == [0] * 3
    assert usage.slot_steps == ROWS * CHUNK


def test_slots_are_refilled_while_others_go_on(pair):
    """More cells than rows, completions of very different lengths: every cell is answered once."""
    config = DecodeConfig(max_new_tokens=60, stop=(" the",), seed=1)
    found = list(complete(pair, cells_of(pair, samples=6), config, 4))
    assert len(by_cell(found)) == len(found) == len(cells_of(pair, samples=6))
    assert all(" the" not in c.text for c in found)
    assert {c.finish_reason for c in found} >= {"stop", "length"}
    alone = by_cell(complete(pair, cells_of(pair, samples=6)[-3:], config, 4))
    rows = by_cell(found)
    for key, completion in alone.items():
        assert_bit_equal(completion, rows[key])


def test_each_model_reads_its_own_prompt(pair):
    first = pair[0].tokenizer("Once upon a time").input_ids
    second = pair[0].tokenizer("It was a very long day, and the little bird was tired of it. Then").input_ids
    prompt = EncodedPrompt(Prompt(0, "x"), (tuple(first), tuple(second)))
    assert prompt.buckets[0] != prompt.buckets[1]
    (found,) = complete(pair, [Request(prompt, 0, (0.6,))], CONFIG, 2)
    (scored,) = score_tokens(pair, [prompt.tokens], [found.tokens], [0.6], 1)
    np.testing.assert_allclose(found.model_logprobs, scored.model_logprobs, atol=2e-4)
    np.testing.assert_allclose(found.logprobs, scored.logprobs[0], atol=2e-4)


def test_teacher_forcing_gives_the_figures_of_decoding(pair, all_rows):
    completions = list(all_rows.values())
    strengths = [0.0, 0.7, 1.0]
    prompts, tokens = zip(*[(c.request.prompt.tokens, c.tokens) for c in completions], strict=True)
    scored = list(score_tokens(pair, prompts, tokens, strengths, 5))
    for completion, again in zip(completions, scored, strict=True):
        at = strengths.index(completion.request.lambda_[0])
        np.testing.assert_allclose(again.model_logprobs, completion.model_logprobs, atol=2e-4)
        np.testing.assert_allclose(again.logprobs[at], completion.logprobs, atol=2e-4)
        np.testing.assert_allclose(again.kl_to_reference[at], completion.kl_to_reference, atol=2e-4)
        np.testing.assert_allclose(again.log_normalizers[at], completion.log_normalizers, atol=2e-4)


def test_prompts_that_do_not_fit_are_refused(pair):
    with pytest.raises(ValueError, match=r"prompt 7: .* do not fit the context .*256 tokens"):
        encode_prompts(pair, [Prompt(7, "word " * 600)], 40)


def test_prompts_that_do_not_fit_are_told(pair, tmp_path):
    texts = ["Once", "word " * 600, "One day", "word " * 700]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    prompts = load_prompts(str(tmp_path / "a.txt"))
    kept, fitting, dropped = encode_usable(pair, prompts, 40)
    assert kept == [prompts[0], prompts[2]] and [prompt.prompt for prompt in fitting] == kept
    first = f"the first {tmp_path / 'a.txt'}:2: 1203 tokens and 40 new ones do not fit the context of"
    assert str(dropped).startswith(f"2 records dropped (2 prompt too long, {first}")
    with pytest.raises(ValueError, match=r"a\.txt:2: 1203 tokens and 40 new ones do not fit"):
        encode_usable(pair, prompts[1:2], 40)
    with pytest.raises(ValueError, match=r"no record can be used: 2 records dropped \(2 prompt too long"):
        encode_usable(pair, prompts[1::2], 40)


def test_the_last_new_token_needs_no_place(pair):
    """Drawn and never read: transformers gives as many."""
    short = [replace(policy, config=replace(policy.config, max_positions=32)) for policy in pair]
    room = 32 - len(pair[0].tokenizer("Once upon a time").input_ids) + 1
    for count in (room, room + 1):
        prompts = [Prompt(0, "Once upon a time")]
        if count > room:
            with pytest.raises(ValueError, match=f"it has room for --max-new-tokens={room}"):
                encode_prompts(short, prompts, count)
            continue
        cell = Request(encode_prompts(short, prompts, count)[0], 0, (0.5,))
        config = DecodeConfig(max_new_tokens=count, temperature=0)
        (completion,) = complete(short, [cell], config, rows=2)
        (expected,) = complete(pair, [cell], config, rows=2)
        assert completion.tokens == expected.tokens and np.isfinite(completion.logprobs).all()
