"""Prompts that go on from caches say what prompts that are read anew say, and read only what is new."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from dera_jax import generate, load_policies
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import Prompt, as_prompts
from dera_jax.decoding.complete import MixtureDraw, complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.pieces import cut_row, read_piece
from dera_jax.decoding.prefix_cache import Entry, Owner, PrefixCache
from dera_jax.decoding.prefix_reading import LEAST
from dera_jax.decoding.request import Request
from dera_jax.decoding.state import Prefilled
from dera_jax.devices.usage import Usage
from dera_jax.policies import low_rank
from dera_jax.policies.policy import with_params
from tests.support import tiny_models
from tests.support.conversations import (
    CHATML,
    CONFIG,
    OPENING,
    TURNS,
    assert_alike,
    chatting,
    check,
    read_anew,
    request_of,
    talk,
)


@pytest.fixture(scope="module")
def toy():
    """The toy pair as chat models; nothing ends their answers but their length."""
    return chatting(load_policies())


def with_windows(policies, size):
    """The same models with a window in every other layer."""
    own = tuple((size, 0)[n % 2] for n in range(policies[0].config.num_layers))
    return tuple(replace(p, config=replace(p.config, windows=own)) for p in policies)


def of_family(toy, name):
    """Two models of a family with random parameters, that speak the toy's words."""
    config = tiny_models.configs()[name]
    if not config.encoder_decoder:
        config = replace(config, max_positions=512)
    made = [tiny_models.random_params(config, seed) for seed in range(2)]
    return chatting([replace(p, config=config, params=own) for p, own in zip(toy, made, strict=True)])


@pytest.mark.parametrize("turns", [2, 3])
def test_later_turns_read_what_is_new_alone(toy, turns):
    found, usage, _ = check(toy, [{"turns": TURNS[:turns]}])
    first = sum(len(context) for context, _ in found[0, 0, 0, (0.5,), 0].request.prompt.parts)
    assert usage.prompt_tokens_read + usage.prompt_tokens_cached == read_anew(found)
    # A later turn reads its message, and where the text of an answer is other tokens than were drawn, those.
    assert usage.prompt_tokens_read < first + 2 * 60 * (turns - 1)


def test_of_an_answer_its_last_token_alone_is_read(toy):
    """In caches it is not: it was drawn and never fed, where the answer fills its last chunk."""
    words = np.random.default_rng(0).integers(3, 500, size=200).tolist()
    chat = Prompt(0, messages=({"role": "user", "content": "words"},))

    def ask(ids, draw, usage=None):
        (done,) = draw(toy, [request_of(ids, chat)], config, 1, usage=usage)
        return done

    for new_tokens, read in ((16, 10), (20, 9)):
        config, draw = replace(CONFIG, max_new_tokens=new_tokens), MixtureDraw(prefixes=PrefixCache())
        asked = [*words, *ask(words, draw).tokens, *words[:10]]
        usage = Usage()
        assert_alike({0: ask(asked, draw, usage)}, {0: ask(asked, complete)})
        assert usage.prompt_tokens_read == 2 * read


def test_several_conversations_at_several_strengths(toy):
    prompts = [{"id": n, "turns": [f"{n}. {TURNS[0]}", *TURNS[1:]]} for n in range(3)]
    strengths = ((0.0,), (0.5,), (1.0,), (2.0,))
    for share in (True, False):
        found, usage, _ = check(toy, prompts, strengths=strengths, rows=8, share=share)
        assert usage.prompt_tokens_cached > read_anew(found) / 2


def test_answers_to_what_was_asked_before_go_first(toy):
    """Even where the store has room for one conversation alone, it is not gone when its next turn comes."""
    prompts = [{"id": n, "turns": [f"{n}. {TURNS[0]}", TURNS[1]]} for n in range(3)]
    store = PrefixCache(most=0.0)
    _, usage = talk(toy, prompts, store)
    assert len(store.entries) == 1 and usage.prompt_tokens_cached > 2 * 100


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox", "llama, llama3 rope"])
def test_other_families(toy, name):
    """Positions that are learned; windows and bounded scores; parallel blocks; scaled frequencies."""
    pair = of_family(toy, name)
    assert (pair[0].config.rope is None) == (name == "gpt2")
    _, usage, _ = check(pair, [{"turns": TURNS}])
    assert usage.prompt_tokens_cached > usage.prompt_tokens_read


def test_what_an_encoder_reads_is_read_anew(toy):
    found, usage, store = check(of_family(toy, "t5 v1.1, tied"), [{"turns": TURNS}])
    assert (usage.prompt_tokens_read, usage.prompt_tokens_cached) == (read_anew(found), 0)
    assert not store.entries


def test_windows_that_have_not_come_round(toy):
    pair = with_windows(toy, 256)
    _, usage, store = check(pair, [{"turns": TURNS}])
    assert usage.prompt_tokens_cached > usage.prompt_tokens_read
    assert all(entry.can_be_cut for entry in store.entries)


@pytest.mark.parametrize("size", [24, 160])
def test_windows_that_come_round_go_on_from_whole_prompts(toy, size):
    """The answer was drawn beyond its end, and what it took the place of is gone: it is read again."""
    pair = with_windows(toy, size)
    found, usage, store = check(pair, [{"turns": TURNS}])
    first = sum(len(context) for context, _ in found[0, 0, 0, (0.5,), 0].request.prompt.parts)
    assert usage.prompt_tokens_cached >= first
    assert not store.entries[-1].can_be_cut
    # Another end of the first question: nothing of it can be had, and it is read anew.
    other = [{"turns": [TURNS[0] + " Go on!"]}]
    again, used = talk(pair, other, store)
    assert used.prompt_tokens_cached == 0
    assert_alike(again, talk(pair, other)[0], within=0)


def test_caches_of_eight_bits(toy):
    """The new tokens see what the store kept in eight bits, where those read anew see each other exactly."""
    config = replace(CONFIG, kv_cache="int8", temperature=0.0)
    _, usage, _ = check(toy, [{"turns": TURNS}], config=config, within=0.1)
    assert usage.prompt_tokens_cached > usage.prompt_tokens_read


def test_models_of_one_base_and_a_template_for_each(toy):
    """Members of one model differ in what they have read, and in how much of it is kept."""
    pair = [low_rank.with_lora(toy[0], 4, 8.0, seed=seed) for seed in range(2)]

    def moved(path, value):
        return value + 0.05 if path[-1].key == "lora_b" else value

    pair[1] = with_params(pair[1], jax.tree.map_with_path(moved, pair[1].params))
    _, alike, _ = check(pair, [{"turns": TURNS}])
    assert alike.prompt_tokens_cached > alike.prompt_tokens_read
    own = pair[0], replace(pair[1], template="Be kind. " + CHATML)
    # Of one bucket for both, as they are one model where all prompts are.
    _, used, _ = check(own, [{"turns": [TURNS[0][:-20], *TURNS[1:]]}])
    assert used.prompt_tokens_cached > used.prompt_tokens_read


@pytest.mark.parametrize(
    "content", ["m.content | trim | upper", "m.content[:12]", "m.content | replace('e', 'a')"]
)
def test_a_template_that_tells_earlier_answers_otherwise(toy, content):
    """What was read and what is to be read part within the answer, or at its beginning."""
    shown = "{% if m.role == 'assistant' %}{{ " + content + " }}{% else %}{{ m.content }}{% endif %}"
    pair = chatting(toy, CHATML.replace("{{ m.content }}", shown))
    _, usage, _ = check(pair, [{"turns": TURNS[:2]}])
    assert usage.prompt_tokens_cached > 2 * 100


def test_a_template_that_forgets_is_read_anew(toy):
    pair = chatting(toy, "{{ messages | length }}" + CHATML.replace("messages", "messages[-1:]"))
    _, usage, _ = check(pair, [{"turns": TURNS}])
    assert usage.prompt_tokens_cached == 0


def test_an_answer_that_a_stop_text_cuts(toy):
    """The caches go as far as the completion's tokens do, whatever the row drew behind them."""
    (free, *_) = talk(toy, [{"turns": TURNS[:1]}])[0].values()
    config = replace(CONFIG, stop=(free.text[20:23],))
    found, usage, _ = check(toy, [{"turns": TURNS}], config=config)
    first = found[0, 0, 0, (0.5,), 0]
    assert first.finish_reason == "stop" and len(first.tokens) % 16
    assert usage.prompt_tokens_cached > usage.prompt_tokens_read
    only = PrefixCache()
    talk(toy, [{"turns": TURNS[:1]}], only, config)
    (entry,) = only.entries
    asked = first.request.prompt.tokens[0]
    assert entry.tokens[0].tolist() == [*asked, *first.tokens]


def test_examples_that_prompts_begin_with_are_read_once(toy):
    shots = f"{OPENING} {OPENING} {OPENING}\n"
    prompts = [shots + end for end in ("The cat sat.", "Tom ran to the big tree.", "It was late.", "Ben")]
    store, usage = PrefixCache(), Usage()
    requests = [Request(p, 0, (x,)) for p in encode_prompts(toy, as_prompts(prompts), 8) for x in (0.0, 1.0)]
    config = DecodeConfig(max_new_tokens=8)
    expected = {done.request.key: done for done in complete(toy, requests, config, 4)}
    found = MixtureDraw(prefixes=store)(toy, requests, config, 4, usage=usage)
    assert_alike({done.request.key: done for done in found}, expected)
    contexts = [request.prompt.parts[0][0] for request in requests[::2]]
    common = next(n for n, each in enumerate(zip(*contexts, strict=False)) if len(set(each)) > 1)
    ends = sum(len(context) - common for context in contexts)
    # Both models read the beginning once, and the end of each prompt (at most what two of them share is less).
    assert usage.prompt_tokens_read <= 2 * (common + ends)
    assert usage.prompt_tokens_cached >= 2 * common * (len(prompts) - 1)


def test_what_is_new_is_read_in_pieces(toy):
    """More than a piece of it, at the very lengths where pieces and caches become larger."""
    numbers = np.random.default_rng(0)
    words = numbers.integers(3, 500, size=2048).tolist()
    pair = [replace(p, config=replace(p.config, max_positions=4096)) for p in toy]
    for own, rest in ((700, 1), (640, 513), (900, 600)):
        beginning, whole = words[:own], words[: own + rest]
        requests = [request_of(ids) for ids in (beginning, whole)]
        config, draw = DecodeConfig(max_new_tokens=4), MixtureDraw(prefixes=PrefixCache())
        list(draw(pair, requests[:1], config, 1))
        usage = Usage()
        found = list(draw(pair, requests[1:], config, 1, usage=usage))
        assert (usage.prompt_tokens_cached, usage.prompt_tokens_read) == (2 * (own - 1), 2 * rest)
        assert_alike({0: found[0]}, {0: next(complete(pair, requests[1:], config, 1))})


def test_a_prompt_of_which_little_is_known_is_read_anew(toy):
    """Less than a block of slots, or less than half."""
    draw, config = MixtureDraw(prefixes=PrefixCache()), DecodeConfig(max_new_tokens=4)
    words = np.random.default_rng(0).integers(3, 500, size=300).tolist()

    def cached(ids):
        usage = Usage()
        list(draw(toy, [request_of(ids)], config, 1, usage=usage))
        return usage.prompt_tokens_cached // 2

    assert cached(words[:101]) == 0
    assert cached(words[: LEAST - 1] + [1] * 9) == 0
    assert cached(words[:250]) == 0
    assert cached(words[:70] + [1] * 60) == 70


def test_other_parameters_do_not_hit(toy):
    """Nor do those of other configurations: caches belong to the very models that made them."""
    store, asked = PrefixCache(most=1.0), [{"turns": TURNS[:1]}]
    talk(toy, asked, store, rows=8)

    def cached(pair, config=CONFIG):
        found, usage = talk(pair, asked, store, config, rows=8)
        if not usage.prompt_tokens_cached:
            assert_alike(found, talk(pair, asked, None, config, rows=8)[0], within=0)
        return usage.prompt_tokens_cached

    equal = with_params(toy[1], jax.tree.map(lambda a: a + 0, toy[1].params))
    other = with_params(toy[1], jax.tree.map(lambda a: a * 1.01, toy[1].params))
    for pair in ((toy[0], other), (toy[0], equal), toy[::-1], toy[:1] * 2, with_windows(toy, 256)):
        assert cached(pair) == 0
    assert cached(toy, replace(CONFIG, kv_cache="bfloat16")) == 0
    assert cached(chatting(toy)) > 0
    del other
    assert cached(toy) > 0


def test_the_number_of_compilations_does_not_grow_with_conversations(toy):
    def compiled(prompts):
        before = [function._cache_size() for function in (cut_row, read_piece)]
        talk(toy, prompts, PrefixCache(most=1.0), rows=2)
        return [f._cache_size() - had for f, had in zip((cut_row, read_piece), before, strict=True)]

    def conversations(count, first):
        return [{"id": n, "turns": [f"{n} {TURNS[0]}", *TURNS[1:]]} for n in range(first, first + count)]

    compiled(conversations(2, 0))
    assert compiled(conversations(6, 10)) == [0, 0]


def test_entries_take_no_more_than_their_share(toy):
    prompts = [{"id": n, "turns": [f"{n}. {TURNS[0]}", *TURNS[1:]]} for n in range(8)]
    store, most = PrefixCache(), []
    add = store.add

    def noted(entry, limit):
        add(entry, limit)
        most.append((store.slots, limit, len(store.entries)))
        for kept in store.entries:
            rooms = [cache.mask.shape[1] for cache in kept.prefilled.caches]
            assert kept.slots == sum(rooms)
            assert all(room <= max(128, 2 * len(own)) for room, own in zip(rooms, kept.tokens, strict=True))

    store.add = noted
    talk(toy, prompts, store, rows=8)
    assert all(slots <= limit or count == 1 for slots, limit, count in most)
    assert max(count for *_, count in most) >= 2
    with pytest.raises(ValueError, match="most: expected a number"):
        PrefixCache(most=1.5)


def test_a_store_takes_the_longer_for_the_shorter():
    """Entries that are the beginning of another are not kept beside it; the one used longest ago goes first."""
    owner, nothing = Owner((), ()), Prefilled((), np.zeros((0, 1), np.int32), np.zeros((0, 1), np.int32))

    def entry(text, slots=10, can_be_cut=True):
        return Entry(owner, (np.frombuffer(text.encode(), np.uint8),), nothing, 0, slots, can_be_cut)

    def texts():
        return [bytes(each.tokens[0]).decode() for each in store.entries]

    store = PrefixCache()
    for text in ("ab", "abcd", "abc", "xy"):
        store.add(entry(text), 30)
    assert texts() == ["abcd", "xy"]
    found, common = store.find(owner, (np.frombuffer(b"abxy", np.uint8),))
    assert common == [2] and found is store.entries[0]
    store.use(found, common)
    assert texts() == ["xy", "abcd"]
    store.add(entry("abxy"), 20)
    assert texts() == ["abcd", "abxy"]
    store.add(entry("abxyz", can_be_cut=False), 30)
    assert texts() == ["abcd", "abxy", "abxyz"]
    store.use(store.entries[2], [4])
    assert texts() == ["abcd", "abxy"]
    store.add(entry("large", 100), 30)
    assert texts() == ["large"]


def test_generate_with_one_store_for_several_calls(toy):
    draw = MixtureDraw(prefixes=PrefixCache())
    asked = [{"role": "user", "content": TURNS[0]}]
    (first,) = generate(toy, [{"messages": asked}], 0.5, max_new_tokens=8, draw=draw)
    asked += [{"role": "assistant", "content": first.text}, {"role": "user", "content": TURNS[1]}]
    (second,) = generate(toy, [{"messages": asked}], 0.5, max_new_tokens=8, draw=draw)
    (alone,) = generate(toy, [{"messages": asked}], 0.5, max_new_tokens=8)
    assert_alike({0: second}, {0: alone})
    assert len(draw.prefixes.entries) == 1
    assert hash(draw) == hash(replace(draw)) and draw == replace(draw) != MixtureDraw()


@pytest.mark.parametrize("draft", ["ngram", "aligned"])
def test_rows_that_were_drafted_ahead(toy, draft):
    """They end where their drafts were kept, each at a number of tokens of its own."""
    prompts = [{"id": n, "turns": [f"{n}. {TURNS[0]}", TURNS[1]]} for n in range(2)]
    expected, _ = talk(toy, prompts, rows=2)
    found, usage = talk(toy, prompts, PrefixCache(most=1.0), rows=2, draft=draft)
    assert usage.drafts_accepted > 0 and usage.prompt_tokens_cached > 4 * 120
    assert_alike(found, expected)
