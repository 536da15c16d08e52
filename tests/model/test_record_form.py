"""A version's record as stored on a file: written and read, in today's form and those of earlier builds."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from functools import reduce

import pytest
from msgspec.structs import replace

from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, clock, digests, keys, record_form
from fsrepl.model.version import DeliveryRecord, Origin, Place, Posix, Shortfall, Status, Version

ID = "01KB7Z00000000000000000000"
POSIX = Posix(0o640, 1, 2, 1_700_000_000_123_456_789, b"\1\2\xff")
PLAIN = Version(b"d/k", ID, 1_700_000_000_000_000_001, size=3, digest=bytes(range(32)), posix=POSIX)
FULL = Version(
    b"\xffd/k", "null", 1_700_000_000_000_000_001, False, 3, bytes(32), Origin.REPLICA, "eu/photos", "GLACIER", POSIX,
    {"user.binary": b"\xff\0", "user.colour": b"blue", "user.record": b"mine"}, {"class": "x"},
    {
        "us/a": DeliveryRecord("a rule", Status.FAILED, "DstBucketNotFound", since_ns=5),
        "us/b": DeliveryRecord("r", Status.PENDING),
    },
    {"tags": "17 us/a"}, Shortfall(Posix(0o600, 0, 0, 5), frozenset({"user.colour"})),
)  # fmt: skip
MARKER = Version(b"d/k", ID, 1_700_000_000_000_000_001, True)


def earlier(version: Version) -> dict[str, bytes]:
    """The attributes of a version as earlier builds wrote them, one for each field."""
    out = attributes.encode(version)
    if version.status:
        out[attributes.STATUS] = version.status.encode()
    return out


def version_of(fields: dict[str, bytes], of: Version) -> Version:
    name = keys.StoredName(keys.split(of.key)[1], of.id, of.marker, False)
    return attributes.decode(of.key, name, fields, POSIX, of.size)


@pytest.mark.parametrize("version", [PLAIN, FULL, MARKER], ids=["plain", "full", "marker"])
def test_a_record_is_read_as_it_was_written(version: Version) -> None:
    """Section 2: on a file of its own, and complete in one attribute where the file is a view too."""
    fields = {name: value for name, value in attributes.encode(version).items() if name != attributes.STATUS}
    for found in (record_form.read(record_form.on_file(fields)), record_form.read_whole(record_form.whole(fields))):
        assert found == fields
        assert version_of(found, version) == version


@pytest.mark.parametrize("version", [PLAIN, FULL, MARKER], ids=["plain", "full", "marker"])
def test_records_of_earlier_builds_are_read(version: Version) -> None:
    """Section 2: one attribute for each name, and complete records as objects of attribute names; readable for ever."""
    former = earlier(version)
    assert version_of(record_form.read(former), version) == version
    whole = record_form.read_whole(attributes.encode_sidecar(former, compact=True))
    assert whole is not None
    assert version_of(whole, version) == version


def test_a_record_wins_over_attributes_left_by_an_earlier_build() -> None:
    """G7: a rewrite that was cut short leaves both; fields that the record lacks are gone, whatever the others
    contain."""
    left = earlier(FULL)
    found = record_form.read({**left, **record_form.on_file(attributes.encode(PLAIN))})
    assert attributes.STORAGE_CLASS not in found
    assert attributes.EDITED not in found
    assert found[attributes.VERSION_ID] == ID.encode()


def test_deliveries_are_read_in_both_forms() -> None:
    """Section 2: a rule and a status are stored as briefly as possible; longer deliveries name their fields."""
    short = b'{"eu/a":"COMPLETED a rule","eu/b":{"rule":"r","status":"FAILED","reason":"DstBucketNotFound"}}'
    raw = {**attributes.encode(PLAIN), attributes.DELIVERIES: short}
    assert version_of(raw, PLAIN).deliveries == {
        "eu/a": DeliveryRecord("a rule", Status.COMPLETED),
        "eu/b": DeliveryRecord("r", Status.FAILED, "DstBucketNotFound"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "posix",
    [b'{"mode":"0644","uid":01,"gid":0,"mtime_ns":5}', b'{"mode":"0644"', b"[1]", b"\xff{", b'{"mode":"0644"} '],
)
def test_a_damaged_field_leaves_the_other_fields_readable(posix: bytes) -> None:
    """Section 2: decoding that field reports the damage; the other fields are read."""
    fields = {**attributes.encode(PLAIN), attributes.POSIX: posix}
    for found in (record_form.read(record_form.on_file(fields)), record_form.read_whole(record_form.whole(fields))):
        assert found is not None
        assert found[attributes.POSIX].strip() == posix.strip()
        assert found[attributes.BLAKE3] == fields[attributes.BLAKE3]


def test_a_record_without_an_acl_is_written_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 8: one of its kind for each small file, so it is not parsed only to be written again."""
    fields = attributes.encode(replace(PLAIN, posix=replace(POSIX, acl=None)))
    monkeypatch.setattr(record_form, "json", None)
    assert json.loads(record_form.on_file(fields)[attributes.RECORD])["posix"]["mtime_ns"] == POSIX.mtime_ns
    assert json.loads(record_form.whole(fields))["posix"]["uid"] == POSIX.uid


USUAL = [
    replace(PLAIN, posix=replace(POSIX, acl=None, mtime_ns=mtime_ns), origin=origin, source=source, storage_class=name)
    for mtime_ns, origin, source, name in (
        (0, Origin.USER, "", ""), (-1, Origin.ADOPTED, "", "GLACIER"), (1 << 62, Origin.REPLICA, "eu-1/my.photos", "")
    )
] + [MARKER, replace(MARKER, origin=Origin.LIFECYCLE)]  # fmt: skip


@pytest.mark.parametrize("version", USUAL)
def test_the_record_of_most_versions_is_read_without_parsing(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 8: parsing is most of what an action on a version costs beside its system calls."""
    found, whole = record_form.on_file(attributes.encode(version)), record_form.whole_of(version)
    monkeypatch.setattr("fsrepl.model.json_text.json", None)
    assert version_of(record_form.read(found), version) == version
    fields = record_form.read_whole(whole)
    assert fields is not None
    assert version_of(fields, version) == version


@pytest.mark.parametrize("version", USUAL)
def test_a_record_is_read_the_same_in_whatever_form_it_is(version: Version) -> None:
    """Section 2: with any one byte changed or gone it means what JSON says, or is damage."""

    def read(data: bytes) -> Version | None:
        try:
            return version_of(record_form.read({attributes.RECORD: data}), version)
        except StoreDamaged:
            return None

    def read_whole(data: bytes) -> Version | None:
        try:
            fields = record_form.read_whole(data)
            return None if fields is None else version_of(fields, version)
        except StoreDamaged:
            return None

    data = record_form.on_file(attributes.encode(version))[attributes.RECORD]
    whole = record_form.whole_of(version)
    for put in (b"", b"0", b"9", b"a", b'"', b"-", b"\\", b"\xff", b" "):
        for at in range(len(data)):
            changed = data[:at] + put + data[at + 1 :]
            assert read(changed) == read(changed + b" "), changed
        for at in range(len(whole)):
            changed = whole[:at] + put + whole[at + 1 :]
            assert read_whole(changed) == read_whole(changed + b" "), changed


@pytest.mark.parametrize(
    "version",
    [
        *USUAL, PLAIN, FULL,
        *(
            replace(each, **more)
            for each in (USUAL[0], USUAL[2])
            for more in (
                {"key": b'a "quoted" \\ \xc3\xbc'}, {"key": b"\xff"}, {"key": b"k" * 250}, {"key": b"d/~" + b"0" * 32},
                {"id": "null"}, {"posix": POSIX}, {"posix": None}, {"attrs": {"user.a": b"\xff"}}, {"tags": {"a": "b"}},
                {"edited": {"tags": "5 a/b"}}, {"taken": "open"}, {"link": (b"k", ID)}, {"storage_class": "STANDARD"},
                {"deliveries": {"a/b": DeliveryRecord("r", Status.PENDING)}}, {"digest": b""},
                {"shortfall": Shortfall(None, frozenset({"user.a"}))}, {"place": Place("GLACIER", "0" * 32)},
            )
        ),
    ],
)  # fmt: skip
def test_a_record_is_written_in_one_step_as_it_is_of_its_fields(version: Version) -> None:
    """Section 2: whatever a version has, and however it comes to the file."""
    fields = attributes.encode(version)
    assert record_form.of(version) == record_form.on_file(fields)
    assert record_form.whole_of(version) == record_form.whole({**fields, attributes.KEY: version.key})
    assert record_form.shown_of(version) == record_form.shown(fields)
    assert record_form.shared_of(version) == (record_form.whole_of(version), record_form.shown_of(version))
    beside = record_form.shown_beside(record_form.whole_of(version))
    assert beside is None or {attributes.RECORD: beside} == record_form.shown_of(version)
    assert beside is not None or version not in USUAL


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"1", b'{"version-id":1}', b'{"key":{"base64":1}}'])
def test_a_value_that_is_no_record_is_damage(value: bytes) -> None:
    """Section 5: it is reported as damaged, and rebuilt; no field is invented."""
    with pytest.raises(StoreDamaged):
        record_form.read({attributes.RECORD: value})


@pytest.mark.parametrize("field", ["deliveries", "posix", "edited", "shortfall"])
def test_a_nested_value_that_is_damaged_stays_what_it_is(field: str) -> None:
    """Section 5: reading the record reports it; writing another field again does not fail for it."""
    fields = {**attributes.encode(PLAIN), attributes.OURS + field: b"{nonsense"}
    assert record_form.read_whole(record_form.whole(fields)) == fields
    with pytest.raises(StoreDamaged):
        version_of(record_form.read(record_form.on_file(fields)), PLAIN)


def test_the_record_is_readable() -> None:
    """Section 2: it has the names in design.md, for a person who uses getfattr."""
    document = json.loads(record_form.on_file(attributes.encode(PLAIN))[attributes.RECORD])
    assert document == {
        "version-id": ID, "blake3": bytes(range(32)).hex(), "last-modified": "2023-11-14T22:13:20.000000001Z",
        "origin": "user", "posix": {"mode": "0640", "uid": 1, "gid": 2, "mtime_ns": POSIX.mtime_ns, "acl": "AQL/"},
    }  # fmt: skip


def _ext4_block_hash(*values: bytes) -> int:
    """What ext4 finds a block of attributes by. The names, which do not vary, are left out.

    Source: Linux, fs/ext4/xattr.c: ext4_xattr_hash_entry and ext4_xattr_rehash, which rotate by 16 bits each time.
    """

    def mixed(words: Iterable[int]) -> int:
        return reduce(lambda before, word: (before << 16 & 0xFFFFFFFF) ^ (before >> 16) ^ word, words, 0)

    padded = (value + bytes(-len(value) % 4) for value in values)
    return mixed(mixed(word for (word,) in struct.iter_unpack("<I", value)) for value in padded)


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-10", "a", "bb", "ccc"])
@pytest.mark.parametrize("owner", [0, 10, 1000, 65534])
def test_ext4_tells_the_attributes_of_replicas_apart(region: str, owner: int) -> None:
    """A burst of replicas with one mtime, as `tar x` leaves them, takes no longer a file the more there are."""
    ids, now_ns = clock.VersionIds(), 1_795_942_338_565_157_794
    hashes = set()
    for number in range(300):
        version_id, created_ns = ids.next(now_ns + number * 123_457)
        digest = digests.of(b"%d" % number)
        replica = Version(
            b"%05d" % number, version_id, created_ns, False, 4096, digest, Origin.REPLICA, f"{region}/photos",
            posix=Posix(0o644, owner, owner, now_ns),
        )  # fmt: skip
        fields = attributes.encode(replica)
        whole = record_form.whole({**fields, attributes.KEY: replica.key})
        del fields[attributes.POSIX]
        hashes.add(_ext4_block_hash(record_form.on_file(fields)[attributes.RECORD], b"REPLICA", whole))
    assert len(hashes) >= 299
