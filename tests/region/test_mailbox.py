"""Messages between regions are values: nothing that one of them sent changes later."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator

from msgspec import Struct

from fsrepl.region.mailbox import Call, Message


def parts(kind: object, *around: object) -> Iterator[object]:
    """A type, and the types of all that its values hold. around: the types in which it was found."""
    yield kind
    inside = typing.get_type_hints(kind).values() if isinstance(kind, type) and issubclass(kind, Struct) else ()
    for each in (*inside, *typing.get_args(kind)):
        if each not in around:
            yield from parts(each, kind, *around)


def test_messages_never_change() -> None:
    """Architecture: each message, and each Struct in one, is frozen and holds no list, set or dict. A Call alone has
    code, and stays in its process."""
    messages = [kind for kind in typing.get_args(Message) if kind is not Call]
    assert len(messages) > 10
    found = {part for kind in messages for part in parts(kind)}
    kinds = {typing.get_origin(part) or part for part in found}
    structs = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Struct)}
    assert {kind for kind in structs if not kind.__struct_config__.frozen} == set()
    assert not kinds & {list, set, dict, Callable}
