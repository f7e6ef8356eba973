"""Block hashes against xxhash itself, and what a namespace keeps apart."""

from __future__ import annotations

import struct

import msgspec
import pytest
import xxhash

from prebled.core.blocks import block_hashes, cacheable_blocks, hash_path, namespace_seed

TOKENS = struct.pack("<10I", *range(100, 110))


def test_a_hash_is_that_of_its_tokens_seeded_with_the_one_before() -> None:
    first = xxhash.xxh3_64_intdigest(struct.pack("<4I", 100, 101, 102, 103), seed=5)
    second = xxhash.xxh3_64_intdigest(struct.pack("<4I", 104, 105, 106, 107), seed=first)
    assert block_hashes(TOKENS, 4, 5) == [first, second]  # the tail of two tokens has none
    assert hash_path(TOKENS, 4, 5) == struct.pack("=2Q", first, second)
    assert block_hashes(TOKENS[:12], 4, 5) == []


def test_the_seed_is_that_of_the_namespace() -> None:
    assert namespace_seed("m", "l", "s") == xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(["m", "l", "s"]))
    seeds = {namespace_seed(*names) for names in [("m", "", ""), ("", "m", ""), ("", "", "m"), ("m", "m", "")]}
    assert len(seeds) == 4


def test_seeds_of_a_million_namespaces_are_not_all_kept() -> None:
    for number in range(10_000):
        namespace_seed("m", "", str(number))
    assert namespace_seed.cache_info().currsize <= 4096


def test_an_equal_block_after_another_prefix_has_another_hash() -> None:
    other = struct.pack("<I", 99) + TOKENS[4:]
    assert not set(block_hashes(TOKENS, 4, 5)) & set(block_hashes(other, 4, 5))


@pytest.mark.parametrize(
    ("prompt_tokens", "blocks"), [(0, 0), (1, 0), (64, 0), (65, 1), (128, 1), (129, 2), (8192, 127)]
)
def test_the_last_token_is_never_cached(prompt_tokens: int, blocks: int) -> None:
    assert cacheable_blocks(prompt_tokens, 64) == blocks
