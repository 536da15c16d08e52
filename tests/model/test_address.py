"""Addresses as users and commands write them: parsed, and printed again."""

from __future__ import annotations

import pytest

from fsrepl.errors import Usage
from fsrepl.model.address import Address


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("east/src", b""),
        ("east/src/", b""),
        ("east/src/2026/cat.jpg", b"2026/cat.jpg"),
        ("east/src/2026/", b"2026/"),
        ("east/src//odd", b"/odd"),
        ("east/src/caf\udce9", b"caf\xe9"),
    ],
)
def test_an_address_is_a_bucket_or_an_object_in_it(text: str, key: bytes) -> None:
    """Section 5: REGION/BUCKET[/KEY], the key as its bytes are."""
    address = Address.parse(text)
    assert address == Address("east", "src", key)
    assert address.bucket == "east/src"
    assert Address.parse(str(address)) == address
    assert str(address).rstrip("/") == text.rstrip("/")


@pytest.mark.parametrize("text", ["", "/", "east", "east/", "/src", "//src"])
def test_what_names_no_bucket_is_no_address(text: str) -> None:
    """Section 5: exit status 2, and an example."""
    with pytest.raises(Usage, match="does not name a bucket; write REGION/BUCKET, such as eu-west-1/photos"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["east/src/", "east/src/key", "east"])
def test_an_object_is_no_bucket(text: str) -> None:
    """Section 5: where a command needs a bucket."""
    with pytest.raises(Usage, match="does not name a bucket"):
        Address.parse_bucket(text)
