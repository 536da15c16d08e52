"""What an error is called in messages."""

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
def test_an_error_is_said_without_the_names_of_files_in_it(error: Exception, said: str) -> None:
    """Section 5: names may be anybody's, and are said by whoever knows whose they are."""
    assert reason(error) == said
