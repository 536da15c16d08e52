"""The unit: systemd accepts it, each option has an explanation, and it forbids nothing that fsrepl does."""

from __future__ import annotations

import functools
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.waiting import DEADLINE_S

UNIT = Path(__file__).parent.parent.parent / "systemd" / "fsrepl.service"
CONSOLE = UNIT.with_name("fsrepl-console.service")
PROGRAM = "/opt/fsrepl/bin/fsrepl"

needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed here")


def options(unit: Path = UNIT) -> list[tuple[str, str, str]]:
    """Section, name and value of each option. The units have no continued lines."""
    section, found = "", []
    for line in unit.read_text().splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            assert re.fullmatch(r"[A-Za-z]+", name), line
            assert section, line
            assert not value.endswith("\\"), line
            found.append((section, name, value))
    return found


def service(name: str) -> list[str]:
    return [value for section, key, value in options() if (section, key) == ("Service", name)]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Type", ["notify"]),
        ("NotifyAccess", ["main"]),
        ("ExecStartPre", [f"-{PROGRAM} check"]),
        ("ExecStart", [f"{PROGRAM} daemon"]),
        ("ExecReload", [f"{PROGRAM} check", "/bin/kill -HUP $MAINPID"]),
        ("Environment", ["FSREPL_SITE=/etc/fsrepl"]),
        ("StateDirectory", ["fsrepl"]),
        ("Restart", ["on-failure"]),
        ("ProtectSystem", ["strict"]),
        ("NoNewPrivileges", ["yes"]),
        ("PrivateTmp", ["yes"]),
        ("UMask", ["0077"]),
        # options that would break fsrepl: see the end of the unit
        ("RestrictSUIDSGID", []),
        ("DynamicUser", []),
        ("PrivateUsers", []),
        ("ProcSubset", []),
    ],
)
def test_the_unit_says(name: str, values: list[str]) -> None:
    assert service(name) == values


def test_the_unit_has_limits_and_a_watchdog() -> None:
    for name in ("WatchdogSec", "RestartSec", "TimeoutStopSec", "LimitNOFILE", "OOMScoreAdjust", "SystemCallFilter"):
        assert service(name), name
    assert ("Install", "WantedBy", "multi-user.target") in options()


def test_root_keeps_the_powers_that_are_used_and_no_other() -> None:
    """Each capability was seen to be needed by removing it: without FSETID a setgid bit vanishes without an error."""
    (kept,) = service("CapabilityBoundingSet")
    assert set(kept.split()) == {
        f"CAP_{name}" for name in ("DAC_OVERRIDE", "CHOWN", "FOWNER", "FSETID", "LEASE", "SETUID", "SETGID")
    }


def test_each_option_has_a_comment_above_it() -> None:
    lines = UNIT.read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if "=" in line and not line.startswith("#"):
            assert above.startswith("# "), f"nothing explains {line}"
    assert max(map(len, lines)) <= 120


def test_the_console_may_do_no_more_than_the_daemon() -> None:
    """A fault in a page is not worth more than one in the daemon; and neither keeps the other from starting."""
    console, daemon = ({name: value for _, name, value in options(unit)} for unit in (CONSOLE, UNIT))
    capabilities = [set(unit["CapabilityBoundingSet"].split()) for unit in (console, daemon)]
    assert capabilities[0] < capabilities[1]
    strict = {
        name for name in daemon if name.startswith(("Protect", "Private", "Restrict", "Memory", "System", "IP", "Lock"))
    }
    assert {name: console.get(name) for name in strict} == {name: daemon[name] for name in strict}
    assert console["ExecStart"] == f"{PROGRAM} console"
    assert console["Environment"] == daemon["Environment"]
    assert "Requires" not in console


@needs_analyze
@pytest.mark.parametrize("unit", [UNIT, CONSOLE], ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit(tmp_path: Path, unit: Path) -> None:
    """With a program that exists, since fsrepl is not installed where tests run."""
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    said = done.stdout + done.stderr
    if "unrecognized option" in said:
        pytest.skip("systemd-analyze is older than 250")
    assert (done.returncode, [line for line in said.splitlines() if copy.name in line]) == (0, [])


@needs_analyze
def test_the_filter_lets_our_calls_through_and_others_not() -> None:
    ours = """
        openat2 renameat2 linkat unlinkat ioctl fcntl fsetxattr flistxattr fremovexattr fchown fchmod utimensat
        sendfile copy_file_range fsync fdatasync syncfs inotify_init1 inotify_add_watch epoll_wait poll statx ftruncate
        setfsuid setfsgid setresuid setresgid setgroups clone3 execve flock mmap socket accept4
    """
    allowed = set().union(*(calls(name) for value in service("SystemCallFilter") for name in value.split()))
    assert [name for name in ours.split() if name not in allowed] == []
    assert allowed.isdisjoint({"mount", "ptrace", "init_module", "reboot", "swapon", "settimeofday", "bpf"})


@functools.cache
def calls(group: str) -> frozenset[str]:
    """The system calls of one of systemd's groups, groups within it included."""
    command = ["systemd-analyze", "syscall-filter", group]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    names = [line.strip() for line in done.stdout.splitlines()[1:] if line.strip() and "#" not in line]
    return frozenset().union(*(calls(name) if name.startswith("@") else {name} for name in names))
