"""The order in which examples are taken: every one once an epoch, at any step, on any number of hosts."""

from itertools import pairwise

import numpy as np
import pytest

from dera_jax.data.order import WINDOW, shuffled

SIZES = [(10, 4), (7, 7), (3, 8), (1000, 8), (1, 1), (5000, 24)]


def random_lengths(count):
    return np.random.default_rng(0).integers(1, 500, count).tolist()


def taken(order, steps):
    return np.concatenate([order(step) for step in steps])


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("count, batch_size", SIZES)
def test_every_position_comes_once_an_epoch(count, batch_size, by_length):
    order = shuffled(count, batch_size, 3, random_lengths(count) if by_length else None)
    seen = taken(order, range(-(-4 * count // batch_size)))[: 4 * count].reshape(4, count)
    np.testing.assert_array_equal(np.sort(seen), np.tile(np.arange(count), (4, 1)))
    if count > 9:
        assert all(list(one) != list(other) for one, other in pairwise(seen))


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("count", [500, 5000])
def test_a_step_takes_the_same_whatever_came_before(count, by_length):
    def new():
        return shuffled(count, 48, 5, random_lengths(count) if by_length else None)

    steps = list(range(120))
    forward = [new()(step) for step in steps]
    once = new()
    for step in np.random.default_rng(1).permutation(steps):
        np.testing.assert_array_equal(once(int(step)), forward[step])


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("hosts", [2, 3, 8])
def test_hosts_share_the_batch_of_one(hosts, by_length):
    lengths = random_lengths(100) if by_length else None
    shares = [shuffled(100, 24, 0, lengths, host, hosts) for host in range(hosts)]
    alone = shuffled(100, 24, 0, lengths)
    for step in range(0, 30, 3):
        together = np.concatenate([share(step) for share in shares])
        np.testing.assert_array_equal(together, alone(step))


def test_seeds_have_their_own_orders():
    """In every epoch: no seed's second is another's first."""
    for count in (50, 5000):
        streams = [taken(shuffled(count, 50, seed), range(3 * count // 50)) for seed in range(6)]
        orders = {tuple(epoch[:50]) for stream in streams for epoch in stream.reshape(3, count)}
        assert len(orders) == 18


def test_batches_by_length_pad_less_and_come_in_no_order_of_length():
    count, batch_size = 16 * 100, 16
    lengths = np.array(random_lengths(count))
    plain, sorted_ = (
        lengths[taken(shuffled(count, batch_size, 0, given), range(count // batch_size))].reshape(-1, 16)
        for given in (None, lengths.tolist())
    )
    padding = [(part.max(1) * batch_size).sum() / part.sum() - 1 for part in (plain, sorted_)]
    print(f"padding per token: {padding[0]:.2f} shuffled, {padding[1]:.2f} by length")
    assert padding[1] < 0.15 < 0.5 < padding[0]
    # What a window takes is what it took unsorted; its batches neither rise nor fall.
    np.testing.assert_array_equal(np.sort(sorted_[:WINDOW], None), np.sort(plain[:WINDOW], None))
    rises = np.mean(np.diff(sorted_.max(1)) > 0)
    assert 0.3 < rises < 0.7


@pytest.mark.parametrize("count, batch_size, hosts", [(0, 4, 1), (10, 0, 1), (10, 4, 3)])
def test_what_cannot_be_shared_is_refused(count, batch_size, hosts):
    with pytest.raises(ValueError, match=f"found {count} examples and a batch size of {batch_size}"):
        shuffled(count, batch_size, 0, process_count=hosts)
