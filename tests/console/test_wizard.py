"""The wizard: the guide's five steps; and what else is done to the replication of a bucket."""

from __future__ import annotations

import json

import pytest

from fsrepl.console.pages import wizard
from fsrepl.console.pages.wizard import PREFIXES, WHOLE, Answers
from fsrepl.errors import Usage
from tests.console.visitor import Console, Page, Visitor, settle
from tests.site import Site
from tests.waiting import until

DONE = Answers("east/src", "west", "west/dst", WHOLE, storage_class="", role="")


def step(page: Page) -> str:
    return page.text.partition(" Skip to the content")[0].rpartition(" · ")[0].rpartition(": ")[2]


def create(visitor: Visitor, region: str, name: str, *, versioning: bool = True) -> str:
    visitor.submit(visitor.get("/"), "Create", region=region, name=name, versioning="1" if versioning else ())
    return f"{region}/{name}"


def test_the_guide_from_its_first_sentence_to_its_last(visitor: Visitor, site: Site) -> None:
    """S8 to S21: a source bucket, the destination's region and then its bucket, the whole bucket, a class, a new role;
    then what was there before, and what comes."""
    source, destination = create(visitor, "east", "guide"), create(visitor, "west", "guide-copy")
    site.write("before", b"1", source)
    settle(site)
    page = visitor.submit(visitor.get("/replicate"), "Source bucket", source=source)
    assert step(page) == "Destination"
    assert "east/" not in "".join(page.form("Destination region").text)
    page = visitor.submit(page, "Destination region", region="west")
    page = visitor.submit(page, "Destination bucket in west", destination=destination)
    assert step(page) == "Source"
    page = visitor.submit(page, "Whole bucket", scope="whole")
    assert step(page) == "Storage class"
    page = visitor.submit(page, "as in the source", storage_class="STANDARD_IA")
    assert step(page) == "Role"
    assert "replication_role_for_guide_to_guide-copy" in page.text
    page = visitor.submit(page, "Create new role")
    assert step(page) == "Review"
    assert f"fsrepl replication enable {source} {destination} --storage-class STANDARD_IA" in page.text
    assert site.run("replication", "get", source).code == 3  # nothing is written yet
    page = visitor.submit(page, "Save")
    assert "Replicate existing objects?" in page.text
    written = site.json("replication", "get", source)
    (rule,) = written["ReplicationConfiguration"]["Rules"]
    assert (rule["Prefix"], rule["Destination"]["StorageClass"]) == ("", "STANDARD_IA")
    assert json.dumps(written["ReplicationConfiguration"]["Rules"]) in " ".join(
        json.dumps(json.loads(page.text[page.text.index("{") :])).split()
    )
    site.write("after", b"2", source)
    page = visitor.submit(page, "Yes, replicate existing objects")
    assert "is accepted" in page.text
    settle(site)
    assert site.tree(destination) == {"before": b"1", "after": b"2"}
    until(lambda: "Complete" in visitor.get("/jobs").text, "the job is shown as complete")


def test_prefixes_each_with_its_class(visitor: Visitor, site: Site) -> None:
    """S13: several prefixes, shown back, added and removed; those that overlap are refused."""
    source, destination = create(visitor, "east", "parts"), create(visitor, "west", "parts-copy")
    page = visitor.get(Answers(source, "west", destination).url())
    page = visitor.submit(page, "Prefix in this bucket", scope="prefixes")
    assert "Type a prefix first" in page.text
    page = visitor.submit(page, "Prefix in this bucket", new_prefix="2026/", do="add")
    page = visitor.submit(page, "Prefix in this bucket", new_prefix="2026/01/", do="add")
    assert "overlaps" in page.text
    page = visitor.submit(page, "Prefix in this bucket", new_prefix="<b>&", do="add")
    # the return key presses a form's first button
    assert page.body.index(b'name="do" value="add"') < page.body.index(b'name="do" value="remove:')
    page = visitor.submit(page, "Prefix in this bucket", do="remove:<b>&")
    page = visitor.submit(
        page, "Prefix in this bucket", new_prefix="originals/", new_class="GLACIER_IR", scope="prefixes"
    )
    assert step(page) == "Role"
    page = visitor.submit(page, "Create new role")
    assert "--prefix 2026/ fsrepl replication enable" in page.text
    assert "--prefix originals/ --storage-class GLACIER_IR --add" in page.text
    visitor.submit(page, "Save")
    rules = site.json("replication", "get", source)["ReplicationConfiguration"]["Rules"]
    assert {rule["Prefix"]: rule["Destination"].get("StorageClass") for rule in rules} == {
        "2026/": None, "originals/": "GLACIER_IR",
    }  # fmt: skip


def test_a_bucket_that_is_not_offered_is_explained(visitor: Visitor) -> None:
    """S11: confirm that it exists in that region, and that versioning is enabled on it; and a button that does it."""
    source = create(visitor, "east", "missing")
    other = create(visitor, "west", "unversioned", versioning=False)
    page = visitor.get(Answers(source, "west").url())
    assert "Confirm that it exists in that region" in page.text
    assert f"{other}: versioning is not enabled" in page.text
    page = visitor.submit(page, f"Enable versioning on {other}")
    assert other in page.form("Destination bucket").text


def test_a_source_with_rules_asks_what_becomes_of_them(visitor: Visitor, site: Site) -> None:
    source = create(visitor, "east", "again")
    one, two = create(visitor, "west", "again-1"), create(visitor, "west", "again-2")
    site.must("replication", "enable", source, one)
    page = visitor.get(Answers(source, "west", two, WHOLE, storage_class="", role="").url())
    assert "is replicated already" in page.text
    assert not any("Save" in form.text for form in page.forms)
    page = visitor.submit(page, "is replicated already", existing="add")
    visitor.submit(page, "Save")
    rules = site.json("replication", "get", source)["ReplicationConfiguration"]["Rules"]
    assert [rule["Destination"]["Bucket"].rpartition(":")[2] for rule in rules] == ["again-1", "again-2"]


def test_directories_and_symlinks_are_offered(visitor: Visitor, site: Site) -> None:
    """Ticked at the end, both buckets are tree buckets; where they are, nothing is offered."""
    source, destination = create(visitor, "east", "tree"), create(visitor, "west", "tree-copy")
    page = visitor.get(Answers(source, "west", destination, WHOLE, storage_class="", role="").url())
    visitor.submit(page, "Save", trees="1")
    assert [site.must("bucket", "trees", each).out for each in (source, destination)] == ["on\n", "on\n"]
    site.path("empty", source).mkdir()
    site.path("link", source).symlink_to("empty")
    settle(site)
    assert site.path("empty", destination).is_dir()
    assert site.path("link", destination).is_symlink()
    again = Answers(source, "west", destination, WHOLE, storage_class="", role="", existing="replace")
    assert "symlinks" not in visitor.get(again.url()).text


def test_rules_are_disabled_enabled_edited_and_removed(visitor: Visitor, site: Site) -> None:
    source, destination = create(visitor, "east", "edited"), create(visitor, "west", "edited-copy")
    site.must("replication", "enable", source, destination)
    address = f"/replication?bucket={source}"
    page = visitor.submit(visitor.get(address), "Disable the rules")
    assert "are disabled" in page.text
    assert site.json("replication", "get", source)["ReplicationConfiguration"]["Rules"][0]["Status"] == "Disabled"
    page = visitor.submit(page, "Enable the rules")
    form = page.form("Document")
    document = dict(form.fields)["document"]
    page = visitor.submit(page, "Document", 409, document=document.replace('"Enabled"', '"Perhaps"'))
    assert "Perhaps" in dict(page.form("Document").fields)["document"]  # what was typed is not lost
    page = visitor.submit(page, "Document", 409, document="{")
    assert "not JSON" in page.text
    page = visitor.submit(page, "Document", document=document.replace('"Prefix": ""', '"Prefix": "a/"'))
    assert site.json("replication", "get", source)["ReplicationConfiguration"]["Rules"][0]["Prefix"] == "a/"
    assert "not ticked" in visitor.submit(page, "not replicated any more").text
    page = visitor.submit(page, "not replicated any more", confirmed="yes")
    assert "This bucket is not replicated" in page.text


def test_a_backfill_that_runs_is_cancelled(visitor: Visitor, site: Site) -> None:
    """The destination is away, so that the job waits."""
    source, destination = create(visitor, "east", "queued"), create(visitor, "west", "queued-copy")
    site.write("k", b"x", source)
    settle(site)
    site.must("replication", "enable", source, destination)
    away = site.regions["west"].rename(site.home / "away")
    try:
        page = visitor.submit(visitor.get(f"/replication?bucket={source}"), "Backfill")
        job = page.text.partition("Backfill ")[2].split()[0]
        until(lambda: any(job in form.action for form in visitor.get("/jobs").forms), "the job is listed")
        page = visitor.get("/jobs")
        page.forms = [form for form in page.forms if job in form.action]
        visitor.submit(page, "Cancel")
        until(lambda: "Cancelled" in visitor.get("/jobs").text, "the job is cancelled")
    finally:
        away.rename(site.regions["west"])


def test_failures_are_explained_and_retried_by_kind(visitor: Visitor, site: Site, console: Console) -> None:
    """The reason, what to look at, and all of a kind at once, without those of another kind."""
    source, destination = create(visitor, "east", "broken"), create(visitor, "west", "broken-copy")
    site.must("replication", "enable", source, destination)
    visitor.submit(visitor.get(f"/bucket?bucket={destination}"), "Suspend versioning")
    site.write("f1", b"1", source)
    site.write("f2", b"2", source)
    until(lambda: site.bucket_status(source)["failed"] == 2, "both have failed")
    page = visitor.get("/failures")
    assert "DstBucketUnversioned" in page.text
    assert "What to do: fsrepl versioning enable on the destination." in page.text
    assert b"<code>fsrepl versioning enable</code>" in page.body
    listed = visitor.get(page.link("List 2 deliveries"))
    assert ("f1" in listed.text, "f2" in listed.text) == (True, True)
    visitor.submit(visitor.get(f"/bucket?bucket={destination}"), "Enable versioning")
    visitor.submit(visitor.get(listed.link("f1")), "Try again now")
    settle_failed = lambda: site.bucket_status(source)["failed"] == 1  # noqa: E731
    until(settle_failed, "one is replicated")
    page = visitor.submit(page, "Retry all of these")
    assert "1 delivery is tried again" in page.text
    settle(site)
    assert site.tree(destination) == {"f1": b"1", "f2": b"2"}
    assert "Nothing has failed" in visitor.get("/failures").text


# -- without a site


def test_the_steps_come_in_the_guide_s_order() -> None:
    """Each answer leads to the next question, and each way back to the one before."""
    answers = [
        Answers(),
        Answers("east/src"),
        Answers("east/src", "west", "west/dst"),
        Answers("east/src", "west", "west/dst", WHOLE),
        Answers("east/src", "west", "west/dst", WHOLE, storage_class=""),
        DONE,
    ]
    assert [each.step for each in answers] == [0, 1, 2, 3, 4, 5]
    assert [each.before().step for each in answers[2:]] == [1, 2, 3, 4]
    by_prefix = Answers("east/src", "west", "west/dst", PREFIXES, (("a/", "GLACIER"),))
    assert by_prefix.step == 4
    assert (by_prefix.before().step, by_prefix.before().prefixes) == (2, by_prefix.prefixes)
    with pytest.raises(Usage):
        by_prefix.request(dry_run=True)


def test_the_commands_say_the_same() -> None:
    """Shell words are quoted; each class is a command of its own, and only the first may replace."""
    prefixes = (("a b/", "GLACIER"), ("c/", ""), ("d/", "GLACIER"))
    answers = Answers("east/src", "west", "west/dst", PREFIXES, prefixes, role="courier", existing="replace")
    assert wizard.commands(answers.request(dry_run=False)) == [
        "fsrepl replication enable east/src west/dst --prefix 'a b/' --prefix d/ --storage-class GLACIER "
        "--role courier --replace",
        "fsrepl replication enable east/src west/dst --prefix c/ --role courier --add",
    ]
    assert wizard.overlapping(prefixes, "a b/x") == "a b/"
    assert wizard.overlapping(prefixes, "e") == ""
