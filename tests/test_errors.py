"""The text of errors in messages."""

from __future__ import annotations

import errno

import pytest

from fsrepl.errors import Refused, reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "whatever", "/home/somebody/secret"), "no space left on device"),
        (OSError(errno.ELOOP, "whatever", "/home/somebody/secret"), "a symbolic link is in the way"),
        (OSError("It was cut short"), "it was cut short"),
        (Refused("NoSuchKey", "east/src has no K"), "NoSuchKey: east/src has no K"),
        (ValueError("No number"), "No number"),
    ],
)
def test_the_text_of_an_error_has_no_file_names(error: Exception, said: str) -> None:
    """Section 5: names may be chosen by other users; the caller that knows them adds them."""
    assert reason(error) == said
