"""Numbers from a key: which they are, how they are spread, and that nothing short of it tells."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fellrec.privacy import Draws, Secret

KEY = bytes(range(32))


def block(number: int, size: int) -> bytes:
    return hashlib.shake_128(KEY + number.to_bytes(8, "little")).digest(size)


def test_uniform_numbers_are_the_hash_of_key_and_counter() -> None:
    """The upper 24 bits of each four bytes; a call begins a block, and long ones take several."""
    draws = Draws(KEY)
    words = np.frombuffer(block(0, 12), "<u4")
    assert draws.uniform((3,)).tolist() == [int(word) // 256 / 2**24 for word in words]
    long = np.frombuffer(block(1, 1 << 16) + block(2, 8), "<u4")
    drawn = draws.uniform((2, 8193))
    assert drawn.shape == (2, 8193) and drawn.dtype == torch.float32
    assert np.array_equal(drawn.numpy().ravel(), (long // 256).astype(np.float32) / 2**24)


def test_normal_numbers_are_of_box_and_muller() -> None:
    u = (np.frombuffer(block(0, 16), "<u4").astype(np.float64) + 0.5) / 2**32
    length = np.sqrt(-2 * np.log(u[:2]))
    angle = 2 * math.pi * u[2:]
    expected = np.concatenate([length * np.cos(angle), length * np.sin(angle)])
    assert Draws(KEY).normal((3,)).tolist() == pytest.approx(expected[:3].tolist(), abs=1e-5)
    assert Draws(KEY).normal((2, 2)).ravel().tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_they_are_spread_as_they_should_be() -> None:
    draws = Draws(KEY)
    normal, uniform = draws.normal((200_001,)).numpy(), draws.uniform((200_000,)).numpy()
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    halves = normal[:100_000], normal[100_001:]  # the two numbers of a pair
    assert (
        abs(np.corrcoef(*halves)[0, 1]) < 0.01 and abs(np.corrcoef(*np.square(halves))[0, 1]) < 0.01
    )
    assert uniform.min() >= 0 and uniform.max() < 1


@pytest.mark.parametrize("word", [0, 1, 2**31, 2**32 - 1])
def test_no_bits_make_a_number_that_is_none(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(KEY)
    monkeypatch.setattr(draws, "_words", lambda count: np.full(count, word, np.uint32))
    drawn = draws.normal((4,))
    assert bool(drawn.isfinite().all()) and float(drawn.abs().max()) <= 6.8


@given(st.lists(st.integers(0, 40_000), max_size=5))
def test_a_key_tells_all_and_what_was_drawn_is_not_drawn_again(sizes: list[int]) -> None:
    one, other = Draws(KEY), Draws(KEY)
    for size in sizes:
        first, second = (one.uniform((size,)) for _ in range(2))
        assert torch.equal(first, other.uniform((size,)))
        assert torch.equal(second, other.uniform((size,)))
        assert size == 0 or not torch.equal(first, second)
    one.restart(KEY)
    assert torch.equal(one.normal((3,)), Draws(KEY).normal((3,)))


def test_all_of_a_key_counts() -> None:
    """Of a seed torch's generators heed 32 bits: two secrets in 2³² would draw the same."""
    usual = Draws(KEY).normal((4,))
    for place in range(32):
        key = bytearray(KEY)
        key[place] ^= 1
        assert not torch.equal(Draws(bytes(key)).normal((4,)), usual)
    keys = {Secret(b"x" * 16).key_for("noise", "c0", str(round), "learn") for round in range(100)}
    assert len(keys) == 100 and {len(key) for key in keys} == {32}


def test_names_do_not_run_into_each_other() -> None:
    secret = Secret(b"x" * 16)
    assert secret.key_for("a", "b|c") != secret.key_for("a|b", "c") != secret.key_for("a", "b", "c")


@pytest.mark.parametrize("key", [b"", b"x" * 31, b"x" * 33])
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="give 32"):
        Draws(key)


def test_fresh_ones_differ_and_a_generator_gives_the_same_again() -> None:
    assert not torch.equal(Draws.fresh().normal((4,)), Draws.fresh().normal((4,)))
    one, same = (Draws.by(np.random.default_rng(3)).normal((4,)) for _ in range(2))
    assert torch.equal(one, same)
