"""Seconds of work, those of the compiler apart."""

import time

import jax
import jax.numpy as jnp
import pytest

from dera_jax.devices.stopwatch import Stopwatch


def test_compilation_is_left_out():
    def work(x):
        for _ in range(60):
            x = jnp.tanh(x @ x)
        return x

    x, watch = jnp.ones((3, 3)), Stopwatch()
    start = time.perf_counter()
    with watch.running():
        jax.jit(work)(x).block_until_ready()
    assert 0 <= watch.seconds < (time.perf_counter() - start) / 2


def test_what_is_done_with_items_does_not_count():
    def items():
        for number in range(3):
            time.sleep(0.05)
            yield number

    watch = Stopwatch()
    for _ in watch.timed(items()):
        time.sleep(0.2)
    assert 0.15 <= watch.seconds < 0.35
    with pytest.raises(ZeroDivisionError):
        next(watch.timed(1 / n for n in [0]))
