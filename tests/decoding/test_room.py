"""Room of caches: as much as rows need, and a row's figures do not depend on it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import load_policies, models
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding import device_loop
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.complete import complete, warm_up
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.decoding.room import CHUNK, full_room, room_for
from dera_jax.models.attention import Span, attend
from dera_jax.models.caches import fit_cache, kept, without_padding
from tests.support.figures import FIGURES

pytestmark = pytest.mark.bits


@pytest.fixture(scope="module")
def toy():
    return load_policies()


def cells_of(policies, lengths, samples=1):
    numbers, words = np.random.default_rng(0), policies[0].config.vocab_size
    ids = [tuple(numbers.integers(3, words, size=length).tolist()) for length in lengths]
    prompts = [EncodedPrompt(Prompt(n, "words"), (each, each)) for n, each in enumerate(ids)]
    return [Request(prompt, sample, (0.7,)) for prompt in prompts for sample in range(samples)]


def by_cell(completions):
    return {(c.request.prompt.id, c.request.sample): c for c in completions}


def assert_same(one, other, count):
    assert one.tokens[:count] == other.tokens[:count]
    for name in FIGURES:
        np.testing.assert_array_equal(getattr(one, name)[:count], getattr(other, name)[:count], err_msg=name)


@pytest.mark.parametrize("kind", ["auto", "bfloat16", "int8"])
@pytest.mark.parametrize("rows, kv_heads, group, head_dim", [(8, 4, 2, 8), (1, 1, 8, 64), (5, 2, 1, 32)])
def test_slots_behind_the_last_token_change_no_bit(rows, kv_heads, group, head_dim, kind):
    numbers = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(numbers.standard_normal(shape), jnp.float32)  # noqa: E731
    query = normal(rows, kv_heads * group, 1, head_dim)
    # Cut by NumPy: to cut them, too, a program is compiled for each length.
    keys, values = (jax.device_get(kept(normal(rows, kv_heads, 3072, head_dim), kind)) for _ in range(2))
    recent = [normal(rows, kv_heads, 16, head_dim) for _ in range(2)]
    attended = jax.jit(lambda q, spans: attend(q, spans, head_dim**-0.5))

    def read(slots, taken):
        part = [jax.tree.map(lambda a: a[:, :, :slots], each) for each in (keys, values)]
        mask = (np.arange(slots) < taken - np.arange(rows)[:, None])[:, None]
        new = (np.arange(16) < 5)[None, None]
        return np.asarray(attended(query, (Span(*part, mask), Span(*recent, new))))

    for taken in (20, 130, 1100):
        least = models.whole_blocks(taken)
        expected = read(least, taken)
        for slots in (least + 64, 2 * least, 1536, 3072):
            np.testing.assert_array_equal(read(slots, taken), expected, err_msg=f"{taken} in {slots}")


@pytest.mark.slow
@pytest.mark.parametrize("windows", [(), (48, 0), (150, 0)])
@pytest.mark.parametrize("kind", ["auto", "int8"])
def test_the_largest_allowed_length_changes_no_figure(toy, windows, kind):
    """While caches grow from 128 slots to 256, beyond a window of 150, and with room for 1 000 tokens."""
    layers = toy[0].config.num_layers
    own = tuple(windows[n % 2] for n in range(layers)) if windows else ()
    policies = [
        replace(p, config=replace(p.config, windows=own, max_positions=2048), eos_ids=()) for p in toy
    ]
    cells = cells_of(policies, (5, 90, 33))
    short = by_cell(complete(policies, cells, DecodeConfig(max_new_tokens=100, kv_cache=kind), 4))
    stops = {c.text[-1] for c in short.values()}
    long = DecodeConfig(max_new_tokens=1000, kv_cache=kind, stop=tuple(sorted(stops)))
    for key, completion in by_cell(complete(policies, cells, long, 4)).items():
        assert_same(completion, short[key], min(len(completion.tokens), 100))


def test_prompts_of_any_lengths_share_a_batch_and_have_the_figures_they_have_alone(toy, monkeypatch):
    rooms, original = [], Batch.fit_caches
    monkeypatch.setattr(Batch, "fit_caches", lambda self, room: rooms.append(room) or original(self, room))
    config = DecodeConfig(max_new_tokens=40, stop=(" the",))
    cells = cells_of(toy, (180, 3, 70, 20, 140, 9), samples=2)
    together = by_cell(complete(toy, cells, config, 4))
    assert len(together) == len(cells) and len(set(rooms)) > 1
    for number in range(0, len(cells), 2):
        for key, completion in by_cell(complete(toy, cells[number : number + 2], config, 4)).items():
            assert_same(completion, together[key], None)


@pytest.mark.slow
def test_room_is_what_the_longest_row_at_work_needs(toy, monkeypatch):
    """Completions of few tokens cost the same whatever is allowed; and a long prompt's room is given back."""
    rooms, original = [], Batch.run_chunk
    monkeypatch.setattr(Batch, "run_chunk", lambda self: rooms.append(self.room[0]) or original(self))
    impatient = [replace(policy, eos_ids=tuple(range(policy.config.vocab_size))) for policy in toy]
    list(complete(impatient, cells_of(toy, (5,), samples=3), DecodeConfig(max_new_tokens=180), 2))
    assert rooms == [128, 128]
    rooms.clear()
    patient = [replace(policy, eos_ids=()) for policy in toy]
    list(complete(patient, cells_of(toy, (5,)), DecodeConfig(max_new_tokens=200), 2))
    assert rooms == [128] * 7 + [192] * 4 + [256] * 2


def test_steps_of_room():
    assert [room_for(n) for n in (1, 128, 129, 193, 257, 385, 1100, 1600)] == [
        128, 128, 192, 256, 384, 512, 1536, 2048,
    ]  # fmt: skip
    for slots in range(1, 5000, 7):
        assert slots <= room_for(slots) <= max(128, 1.5 * slots) and room_for(slots) % models.BLOCK == 0
    assert full_room(10, 17) == full_room(33, 32) == 128 and full_room(100, 32) == 192


def test_the_figures_of_a_cache_do_not_depend_on_its_bucket():
    """A left-padded row and its tokens alone are the same cache; a layer's window is a ring."""
    config = models.decoder.DecoderConfig(
        vocab_size=61, width=32, mlp_width=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        max_positions=256, windows=(20, 0),
    )  # fmt: skip
    prefill = jax.jit(models.bind(config, models.init_params(config, 0)).prefill)
    tokens = np.random.default_rng(0).integers(1, 61, size=(2, 40)).astype(np.int32)
    mask = np.arange(40) >= 40 - np.array([30, 7])[:, None]
    found = without_padding(prefill(jnp.asarray(tokens), jnp.asarray(mask)))
    assert found.index.tolist() == [30, 7]
    for row, count in enumerate((30, 7)):
        alone = prefill(jnp.asarray(tokens[row : row + 1, -count:]), jnp.ones((1, count), bool))
        alone = fit_cache(alone, 40, config.windows)
        np.testing.assert_array_equal(found.mask[row], alone.mask[0])
        for mine, other in zip((*found.keys, *found.values), (*alone.keys, *alone.values), strict=True):
            there = min(count, mine.shape[2])
            np.testing.assert_allclose(mine[row, :, :there], other[0, :, :there], atol=1e-5)


def test_the_time_that_is_foretold_is_that_of_full_caches(toy, monkeypatch):
    """`--dry-run` says how long a run takes at most: its steps read the room of the longest completion."""
    seen, chunk = [], device_loop.decode_chunk

    def watched(configs, params, state, *rest, **more):
        seen.append({cache.mask.shape[1] for cache in state.caches})
        return chunk(configs, params, state, *rest, **more)

    monkeypatch.setattr(device_loop, "decode_chunk", watched)
    (cell,) = cells_of(toy, [9])
    for full, slots in ((False, room_for(8 + CHUNK)), (True, full_room(8, 200))):
        seen.clear()
        warm_up(toy, [cell], DecodeConfig(max_new_tokens=200), 2, full=full)
        assert seen == [{slots}] * 2
