"""Lifecycle, comparisons, the doctor, and a mass deletion in the console."""

from __future__ import annotations

import http.client
import json
import os

import pytest

from fsrepl.daemon import control, requests
from fsrepl.model.address import Address
from fsrepl.settings import FILE, reading
from tests.console.visitor import Page, Visitor, settle
from tests.site import SOURCE, Site
from tests.waiting import until

EXPIRE = {"Rules": [{"ID": "all", "Filter": {"Prefix": "old/"}, "Status": "Enabled", "Expiration": {"Days": 1}}]}


def test_a_lifecycle_is_tried_before_it_is_saved(visitor: Visitor, site: Site) -> None:
    """What it would do at a time, from the form as it is being edited; what is typed survives a refusal."""
    site.write("old/k", b"x")
    site.write("new/k", b"x")
    settle(site)
    address = f"/lifecycle?bucket={SOURCE}"
    assert SOURCE in visitor.get("/lifecycle").text
    page = visitor.get(address)
    assert "has no lifecycle" in page.text
    json.loads(dict(page.form("configuration").fields)["document"])  # the example
    wanted = json.dumps(EXPIRE)
    page = visitor.submit(page, "configuration", document=wanted, at="2030-01-01", do="preview")
    assert "old/k" in page.text
    assert "new/k" not in page.text
    assert site.run("lifecycle", "get", SOURCE).code == 3
    assert dict(page.form("configuration").fields)["at"] == "2030-01-01"
    page = visitor.submit(page, "configuration", do="preview", at="")
    assert "Nothing would be due" in page.text
    page = visitor.submit(page, "configuration", 409, do="preview", at="tomorrow")
    assert "neither a date" in page.text
    page = visitor.submit(page, "configuration", 409, document=wanted.replace("Enabled", "Perhaps"), do="save")
    assert "Perhaps" in dict(page.form("configuration").fields)["document"]
    page = visitor.submit(page, "configuration", document=wanted, do="save")
    assert site.json("lifecycle", "get", SOURCE)["Rules"][0]["ID"] == "all"
    assert "nothing was due" in visitor.submit(page, "Run now").text
    page = visitor.submit(visitor.get(address), "Remove the lifecycle")
    assert "has no lifecycle" in page.text


def test_a_comparison_finds_what_differs_and_repairs_it(visitor: Visitor, site: Site) -> None:
    """A stored version is damaged behind the daemon's back; the comparison runs in its own process."""
    site.write("checked", b"content that matters")
    settle(site)
    stored = site.stored("checked", site.head(f"{SOURCE}/checked")["VersionId"])
    os.chmod(stored, 0o600)
    stored.write_bytes(b"content that is other")
    page = ended(visitor, visitor.submit(visitor.get("/jobs"), "Compare a source", source=SOURCE))
    assert "Differences, after" in page.text
    assert "DigestMismatch" in page.text
    page = ended(visitor, visitor.submit(page, "Compare again, and repair"))
    assert "yes" in page.text
    page = ended(visitor, visitor.submit(visitor.get("/jobs"), "Compare a source", source=SOURCE))
    assert "Source and replicas are the same" in page.text
    assert "with repair" in visitor.get("/jobs").text
    visitor.get("/job?number=99", 404)


def test_the_scrub_is_run_paused_and_resumed(visitor: Visitor, site: Site) -> None:
    """How far it is, and what the last one found, as `scrub status` has it."""
    site.write("scrubbed", b"content")
    settle(site)
    run, pause, resume = (f"/scrub/{what}?bucket={SOURCE}" for what in ("run", "pause", "resume"))

    def submit(page: Page, action: str) -> Page:
        (form,) = [form for form in page.forms if form.action == action]
        page.forms = [form]
        return visitor.submit(page, form.text)

    assert "is paused" in submit(visitor.get("/jobs"), pause).text
    assert "goes on" in submit(visitor.get("/jobs"), resume).text
    assert "are read now" in submit(visitor.get("/jobs"), run).text
    until(lambda: "last" in site.json("scrub", "status", SOURCE)["buckets"][0], "the scrub has ended")
    found = site.json("scrub", "status", SOURCE)["buckets"][0]["last"]
    assert f"{found['checked']} versions" in visitor.get("/jobs").text.replace("1 version,", "1 versions,")


def ended(visitor: Visitor, page: Page) -> Page:
    """The page of a comparison once it is over."""
    address = page.address
    until(lambda: "Running" not in visitor.get(address).text, "the comparison is over")
    return visitor.get(address)


def test_the_doctor_says_what_to_do(visitor: Visitor, site: Site) -> None:
    """The same findings as the command's, each with its remedy."""
    until(lambda: "As of" in visitor.get("/doctor").text, "the doctor has looked")
    page = visitor.get("/doctor")
    for finding in site.run("doctor", "--json").json()["Findings"]:
        assert finding["Level"] in page.text
        assert finding["Area"] in page.text
    document = site.path(".fsrepl/replication.json")
    good = document.read_bytes()
    document.write_bytes(b"{")
    try:
        until(lambda: "error" in visitor.get("/doctor").text, "the doctor finds the document that cannot be read")
        until(lambda: "replication.json" in visitor.get("/").text, "the overview names it")
    finally:
        document.write_bytes(good)


@pytest.mark.slow
def test_a_mass_deletion_is_taken_back_in_the_console(visitor: Visitor, site: Site) -> None:
    """HALTED: the overview offers both ways out, and says before what would come back."""
    source, destination = "east/mass", "west/mass-copy"
    state = reading.load(site.root / FILE).state
    for bucket in (source, destination):
        control.ask(state, requests.CreateBucket(Address.parse_bucket(bucket), versioning=True))
    control.ask(state, requests.EnableReplication(Address.parse_bucket(source), Address.parse_bucket(destination)))
    names = [f"{number:04}" for number in range(1100)]
    for name in names:
        site.path(name, source).write_bytes(b"")
    settle(site)
    for name in names:
        site.path(name, source).unlink()
    until(lambda: "HALTED" in visitor.get("/").text, "the bucket is HALTED")
    page = visitor.get("/")
    assert "Let the deletions cross" in visitor.get(page.link("Let the deletions cross")).text
    page = visitor.get(page.link("Bring the files back"))
    assert "1,100 files" in page.text
    page = visitor.submit(page, "Bring them back")
    assert "1,100 files are back" in page.text
    assert len(site.tree(source)) == 1100
    until(lambda: "HALTED" not in visitor.get("/").text, "the bucket is halted no longer")


def test_the_live_part_says_what_changes(visitor: Visitor, site: Site) -> None:
    """Server-sent events: the first has the whole part, the next comes when something has changed."""
    connection = http.client.HTTPConnection("127.0.0.1", visitor.port, timeout=60)
    connection.request("GET", "/live", headers={"Host": visitor.host, "Cookie": visitor.cookie})
    answer = connection.getresponse()
    assert answer.getheader("content-type", "").startswith("text/event-stream")
    first = json.loads(answer.readline().removeprefix(b"data: "))
    assert "The daemon is" in first
    site.write("live", b"x")
    assert answer.readline() == b"\n"
    second = json.loads(answer.readline().removeprefix(b"data: "))
    assert second != first
    connection.close()
