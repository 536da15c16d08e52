"""The command line: exit status, stdout and stderr, and questions. Each command is a process of its own."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.program import new_interpreter
from tests.site import DESTINATION, SOURCE, Site
from tests.waiting import DEADLINE_S


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, replicate=False)


def test_what_a_command_finds_is_its_exit_status(site: Site) -> None:
    """Section 5: an exit status that a command sets itself reaches the shell, like those of errors."""
    assert site.run("check").code == 0
    roles = site.root / "roles"
    roles.mkdir()
    (roles / "bad.json").write_text("{")
    found = site.run("check")
    assert (found.code, found.err.split(":")[0]) == (3, "MalformedPolicyDocument")
    assert site.run("wait").code == 5
    assert site.run("cat", f"{SOURCE}/nothing").code == 3
    assert site.run("bucket", "create", "nowhere/bucket").code == 2
    assert site.run("ls").code == 2


def test_quiet_keeps_the_answers(site: Site) -> None:
    """`-q` leaves out what was done; what a command is asked for is printed, as are warnings."""
    assert site.must("-q", "bucket", "create", "east/quiet").out == ""
    assert "east/quiet" in site.must("-q", "bucket", "ls").out
    site.must("-q", "replication", "enable", SOURCE, DESTINATION)
    suspended = site.must("-q", "versioning", "suspend", DESTINATION)
    assert (suspended.out, SOURCE in suspended.err, "DstBucketUnversioned" in suspended.err) == ("", True, True)


def test_buckets_are_listed_of_a_site_a_region_or_by_name(site: Site) -> None:
    """Section 5: `bucket ls` takes an address too, as the other commands on buckets do."""

    def listed(*where: str) -> list[str]:
        return [each["Bucket"] for each in json.loads(site.must("bucket", "ls", *where, "--json").out)["Buckets"]]

    site.must("bucket", "create", "east/other")
    assert listed() == ["east/other", SOURCE, DESTINATION]
    assert listed("east") == ["east/other", SOURCE]
    assert listed(SOURCE) == [SOURCE]
    for where, status, message in (
        ("east/none", 3, "NoSuchBucket: "),
        ("nowhere", 2, "there is no region"),
        ("nowhere/src", 2, "there is no region"),
    ):
        refused = site.run("bucket", "ls", where)
        assert (refused.code, refused.out, refused.err.startswith(message)) == (status, "", True)


def test_any_number_of_seconds_is_a_timeout(site: Site) -> None:
    """Section 5: a timeout that no clock can hold is no limit; what is no number is refused as usage."""
    with site:
        site.start()
        for seconds in ("inf", "1e308", "1e10", "1e9"):
            assert site.run("wait", "--timeout", seconds).code == 0
        for seconds in ("nan", "-1", "soon"):
            refused = site.run("wait", "--timeout", seconds)
            assert (refused.code, "--timeout" in refused.err) == (2, True)


def test_a_daemon_that_is_just_being_started_is_waited_for(site: Site) -> None:
    """The README's first steps, pasted: `fsrepl daemon &` on one line, `fsrepl wait && echo safe` on the next."""
    with site:
        site.start(ready=False)
        assert site.run("wait").code == 0


def test_what_is_missing_next_is_said_at_once(site: Site) -> None:
    """A site made again over existing regions lists their buckets; removing a role lists the buckets that still use
    it."""
    site.must("replication", "enable", SOURCE, DESTINATION)
    removed = site.must("role", "rm", "replication_role_for_src_to_dst")
    assert (
        removed.err
        == f"{SOURCE} still uses role replication_role_for_src_to_dst: deliveries that need it will be FAILED\n"
    )
    document = site.must("replication", "get", SOURCE).out.encode()
    put = site.must("replication", "put", SOURCE, "-", stdin=document)
    assert put.err.startswith("role replication_role_for_src_to_dst is missing: ")
    made = site.must("init", site.home / "again", *(f"--region={n}={p}" for n, p in site.regions.items())).out
    assert f"    bucket {SOURCE}\n" in made
    assert "check` names the roles that are missing" in made


def test_bucket_names_are_those_of_s3(site: Site) -> None:
    """S3's naming rules, and nothing is made for a name that breaks one."""
    for name in ("ab", "Photos", "a_b", "-ab", "a..b", "10.0.0.1", "xn--ab", "a-.b", "a.-b", "x" * 64):
        site.refused("InvalidBucketName", "bucket", "create", f"east/{name}")
    assert {path.name for path in site.regions["east"].iterdir()} == {"src", ".fsrepl-region.json"}


def test_versioning_says_first_what_space_it_takes(site: Site) -> None:
    """Section 2: adopting, and enabling versioning on a folder with files, first print what space the versions take."""
    site.must("bucket", "create", "east/plain")
    site.write("d/k", b"k", "east/plain")
    said = site.must("versioning", "enable", "east/plain").out.splitlines()
    assert said[0].startswith("east/plain holds 1 file, 1 B; their versions take about 8.0 KiB, and ")
    (site.regions["east"] / "old").mkdir()
    site.write("k", b"k", "east/old")
    asked = site.run("bucket", "adopt", "east/old")
    assert asked.code == 2, "without a terminal it needs --yes"
    assert not site.path(".fsrepl", "east/old").exists()
    said = site.must("bucket", "adopt", "east/old", "--yes").out.splitlines()
    assert said[0].startswith("east/old holds 1 file, 1 B; ")
    assert said[1] == "bucket east/old: 1 file adopted, versioning Enabled"


def test_adopting_again_says_first_what_is_deleted(site: Site) -> None:
    """G1: files missing from a lost bucket are deleted here and at its replicas, or put back; adopt announces which."""
    site.must("replication", "enable", SOURCE, DESTINATION)
    for key in ("a", "b"):
        site.write(key, b"k")
    with site:
        site.start()
        site.must("wait")
    shutil.rmtree(site.path(".fsrepl"))
    site.path("a").unlink()
    said = site.must("bucket", "adopt", SOURCE, "--dry-run").out
    assert f"1 object with no file in it will be deleted here, and 1 object at {DESTINATION}\n" in said
    shutil.rmtree(site.path(""))
    said = site.must("bucket", "adopt", SOURCE, "--yes").out
    assert "2 objects with no file in it will be put back; nothing is deleted\n" in said
    assert said.endswith("2 missing files put back; nothing is deleted\n")
    assert site.path("a").read_bytes() == b"k"


def _on_a_terminal(site: Site, *arguments: str) -> tuple[int, str]:
    """Run a command on a terminal, where it could ask. Returns the exit status and the text that it shows."""
    shown, terminal = pty.openpty()
    try:
        command = [sys.executable, "-m", "fsrepl", "--site", str(site.root), *arguments]
        done = subprocess.run(command, stdin=terminal, stderr=terminal, stdout=subprocess.DEVNULL, timeout=DEADLINE_S)
        return done.returncode, os.read(shown, 65536).decode()
    finally:
        os.close(terminal)
        os.close(shown)


@pytest.mark.parametrize("detached", [False, True], ids=["not-mounted", "not-attached"])
def test_adopting_again_without_a_region_takes_yes(site: Site, detached: bool) -> None:
    """G8: versions that only that region has would be lost. The region is named with the command that attaches it, also
    on a terminal."""
    site.must("replication", "enable", SOURCE, DESTINATION)
    site.write("k", b"k")
    with site:
        site.start()
        site.must("wait")
    shutil.rmtree(site.path(".fsrepl"))
    west = site.regions["west"]
    if detached:
        identities = site.root / ".fsrepl-site" / "identities.json"
        known = json.loads(identities.read_text())
        del known["regions"]["west"]
        identities.write_text(json.dumps(known))
    else:
        west.rename(west.with_name("elsewhere"))
    remedy = f"fsrepl region add west={west}" if detached else "not mounted"
    piped = site.run("bucket", "adopt", SOURCE)
    for code, said in ((piped.code, piped.err), _on_a_terminal(site, "bucket", "adopt", SOURCE)):
        assert code == 3
        assert said.startswith("InvalidRequest: ")
        assert "If you continue now, versions are lost that only a missing region has: region west is " in said
        assert remedy in said or str(west) in said
        assert not site.path(".fsrepl").exists()
    assert site.run("bucket", "adopt", SOURCE, "--yes").code == 0
    assert site.path(".fsrepl/bucket.json").exists()


def test_odd_names_are_escaped_wherever_they_are_printed(tmp_path: Path) -> None:
    """Section 5: terminal control characters are escaped, and bytes that are not UTF-8 are printed as \\xNN; here in
    the site's own path."""
    home = os.fsencode(tmp_path) + b"/s\xff\x1b[31m"
    for arguments in ([b"init", home], [b"--site", home, b"region", b"ls"], [b"--site", home + b"/none", b"status"]):
        done = subprocess.run([sys.executable, b"-m", b"fsrepl", *arguments], capture_output=True)
        said = done.stdout + done.stderr
        assert b"\x1b" not in said
        assert rb"/s\xff\x1b[31m" in said


def test_an_error_begins_with_its_code_whatever_else_is_wrong(site: Site) -> None:
    """Section 5: exit status 3, with S3's code first on stderr. An unrelated offline bucket is shown by `status` and -v
    only."""
    site.must("bucket", "create", "east/broken")
    site.path(".fsrepl/replication.json", "east/broken").write_text("{")
    site.refused("NoSuchKey", "restore", f"{SOURCE}/nothing")
    assert "offline bucket=east/broken" in site.run("-v", "restore", f"{SOURCE}/nothing").err


def test_the_reason_why_a_bucket_is_offline_is_printed(site: Site) -> None:
    """Section 5: the error names the cause; here the file of FSREPL_CLOCK cannot be read."""
    site.environ["FSREPL_CLOCK"] = str(site.home / "no-clock")
    found = site.run("rm", f"{SOURCE}/k")
    assert found.code == 1
    assert "FSREPL_CLOCK: cannot read" in found.err


def test_a_role_is_removed_from_the_folder_of_roles_alone(site: Site) -> None:
    """Section 2, roles/NAME.json: a name that leads out of the folder is no role, and no other file is removed."""
    precious = site.root / "precious.json"
    precious.write_text("{}")
    (site.root / "roles").mkdir()
    for name in ("../precious", "../east/src/.fsrepl/bucket", "", "a/b"):
        site.refused("ValidationError", "role", "rm", name)
        site.refused("ValidationError", "role", "show", name)
    assert precious.exists()
    assert site.path(".fsrepl/bucket.json").exists()
    site.refused("NoSuchEntity", "role", "rm", "nobody")


def test_a_role_may_be_named_by_its_arn(site: Site) -> None:
    """Section 4: only the last part of a role's ARN counts, on the command line too."""
    arn = "arn:aws:iam::000000000000:role/service-role/courier"
    for name in ("courier", arn, arn.replace("service-role/", "")):
        answer = site.json("replication", "enable", SOURCE, DESTINATION, "--replace", "--role", name)
        assert (answer["Role"], answer["ReplicationConfiguration"]["Role"]) == ("courier", arn)
    site.refused("InvalidArgument", "replication", "enable", SOURCE, DESTINATION, "--replace", "--role", "a b")


def test_a_role_that_does_not_exist_is_named_with_a_warning(site: Site) -> None:
    """s3-semantics, 1.4: that the role exists is not checked; but `enable` says so, as `put` does."""
    told = site.must("replication", "enable", SOURCE, DESTINATION, "--role", "nobody")
    assert "role nobody is missing: deliveries that need it will be FAILED; `fsrepl role create nobody`" in told.err
    site.must("role", "create", "nobody", "--from", SOURCE, "--to", DESTINATION)
    assert "missing" not in site.must("replication", "enable", SOURCE, DESTINATION, "--replace", "--role", "nobody").err


def test_a_key_that_is_not_there_is_not_tried_again(site: Site) -> None:
    """Section 5, retry: a misspelt key is refused instead of reported as success."""
    site.start()
    site.refused("NoSuchKey", "retry", f"{SOURCE}/nothing")
    site.refused("NoSuchBucket", "retry", "east/nothing")
    assert site.must("retry", f"{SOURCE}/folder/").out == "tried again: 0 deliveries\n"
    site.write("k", b"k")
    assert site.must("retry", f"{SOURCE}/k").out == "tried again: 0 deliveries\n"
    site.stop()


def test_an_empty_address_is_usage(site: Site) -> None:
    """A script whose variable is empty waits for nothing else instead, and retries nothing else."""
    for command in ("wait", "retry", "ls", "head", "rm"):
        assert site.run(command, "").code == 2


def test_a_name_that_ends_in_a_dot_is_named_whole(site: Site) -> None:
    """What to do next is added to a message, which is not cut for that."""
    assert f"no {SOURCE}/report.; " in site.refused("NoSuchKey", "head", f"{SOURCE}/report.").err


def test_content_is_not_printed_where_nothing_is_open_for_it(site: Site) -> None:
    """`fsrepl cat ... >&-`: a sentence, and no unexpected error."""
    site.write("k", b"k")
    arguments = shlex.join(
        os.fsdecode(each) for each in new_interpreter("--site", str(site.root), "cat", f"{SOURCE}/k")
    )
    done = subprocess.run(["sh", "-c", f"{arguments} >&-"], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("standard output is closed")


def test_check_prints_json(site: Site) -> None:
    """Section 5: each command that prints has --json; the JSON contains the mistakes, and the exit status is the
    same."""
    site.must("replication", "enable", SOURCE, DESTINATION, "--role", "courier")
    answer = site.json("check")
    assert answer["Buckets"] == [SOURCE, DESTINATION]
    assert (answer["Regions"], answer["Errors"]) == (["east", "west"], [])
    (note,) = answer["Notes"]
    assert note.startswith("role courier, used by east/src, is missing")
    site.path(".fsrepl/versioning.json", DESTINATION).write_text("[]")
    found = site.run("check", "--json")
    (error,) = found.json()["Errors"]
    assert (found.code, found.err) == (1, "")
    assert "bucket west/dst: .fsrepl/versioning.json" in error
    document = site.path(".fsrepl/versioning.json", DESTINATION)
    document.unlink()
    document.symlink_to("/etc/hostname")
    (error,) = site.run("check", "--json").json()["Errors"]
    assert error.startswith("bucket west/dst: .fsrepl/versioning.json is not a file of the daemon's own")


def test_a_site_cannot_be_below_a_file(tmp_path: Path) -> None:
    """Bad input: the message names the problem and the path, and nothing is made."""
    (tmp_path / "file").touch()
    done = subprocess.run([sys.executable, "-m", "fsrepl", "init", tmp_path / "file/site"], capture_output=True)
    assert done.returncode == 2
    assert (
        done.stderr.decode()
        == f"the site cannot be created at {tmp_path}/file/site: not a directory; `fsrepl init --help` describes it\n"
    )
