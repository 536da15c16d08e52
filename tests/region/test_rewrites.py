"""Pure: content that looks encrypted, and how much of a bucket it takes to say so."""

from __future__ import annotations

import base64
import random
import zlib

import pytest

from fsrepl.region.rewrites import KEYS_MIN, WINDOW_S, Rewrites, has_high_entropy

RANDOM = random.Random(7)
TEXT = b"".join(b"Line %d: the quick brown fox jumps over the lazy dog. \n" % n for n in range(200))


@pytest.mark.parametrize("size", [64, 100, 1000, 4095, 4096, 1 << 20])
def test_random_content_is_told_from_other_content(size: int) -> None:
    """Of a hundred random contents few are taken for others, and others never for random ones."""
    assert sum(has_high_entropy(RANDOM.randbytes(size)) for _ in range(100)) >= 95
    assert not has_high_entropy(TEXT[:size])
    assert not has_high_entropy(bytes(size))
    assert not has_high_entropy(base64.b64encode(RANDOM.randbytes(size))[:size])


def test_short_content_is_never_suspicious_and_compressed_content_is_like_encrypted_content() -> None:
    assert not has_high_entropy(RANDOM.randbytes(63))
    assert has_high_entropy(zlib.compress(RANDOM.randbytes(3000) + TEXT))


def _rewrite(rewrites: Rewrites, number: int, now_s: float = 0.0) -> bool:
    asked = False
    for each in range(number):
        asked |= rewrites.add(b"%d" % each, "before", now_s)
    return asked


def test_it_takes_many_keys_of_the_bucket() -> None:
    """A tenth of it, and 200 in any case; until then a bucket is not counted again for each key."""
    rewrites = Rewrites()
    assert not _rewrite(rewrites, KEYS_MIN - 1)
    assert _rewrite(rewrites, KEYS_MIN)
    assert rewrites.is_many(KEYS_MIN * 10)
    assert not rewrites.is_many(KEYS_MIN * 20)
    assert not _rewrite(rewrites, 2 * KEYS_MIN - 1)
    assert _rewrite(rewrites, 2 * KEYS_MIN)
    assert rewrites.is_many(KEYS_MIN * 20)


def test_keys_older_than_the_window_do_not_count() -> None:
    rewrites = Rewrites()
    _rewrite(rewrites, KEYS_MIN - 1)
    assert not rewrites.add(b"later", "before", WINDOW_S + 1)
    assert list(rewrites.keys) == [b"later"]


def test_what_was_compressed_before_is_no_news_and_a_warning_is_given_once_in_a_window() -> None:
    rewrites = Rewrites()
    _rewrite(rewrites, KEYS_MIN)
    assert 16 <= len(rewrites.sample()) <= 64
    assert not rewrites.is_alarming([True] * 20 + [False] * 12, 1.0)
    assert rewrites.keys == {}
    assert _rewrite(rewrites, KEYS_MIN, 2.0)
    assert rewrites.is_alarming([True] * 12 + [False] * 20, 3.0)
    assert not _rewrite(rewrites, KEYS_MIN, 4.0)
    assert _rewrite(rewrites, KEYS_MIN, 3.0 + WINDOW_S)
