"""The console's pages at a million objects: the time until each is there, and the processor time that it takes.

Of the objects, view and stored version are empty files, and their records are in the journal alone; no daemon runs.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from daemons import DESTINATION, SOURCE, Daemon, daemon

from fsrepl.model.amounts import size_text
from fsrepl.model.version import DeliveryRecord, Status, Version
from fsrepl.storage.journal.database import Journal

IN_FOLDER = 500
PAGES = (
    "/", f"/bucket?bucket={SOURCE}", f"/bucket?bucket={SOURCE}&folder=d0001&versions=1",
    f"/object?bucket={SOURCE}&key=d0001/f000500", f"/deliveries?bucket={SOURCE}&status=COMPLETED", "/failures", "/jobs",
    f"/lifecycle?bucket={SOURCE}", f"/replication?bucket={SOURCE}", "/replicate", "/doctor",
)  # fmt: skip


def console(folder: Path, count: int) -> None:
    """Ask for each page twice: the first time as nobody had asked before."""
    with daemon(folder) as site:
        site.stop()
        _fill(site, count)
        command = [sys.executable, "-m", "fsrepl", "--site", str(site.root), "console", "--listen", ""]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            print(f"console: {count:,} objects; each page, asked for twice")
            for address in PAGES:
                print(f"  {address:60}" + "".join(_ask(site, process.pid, address) for _ in range(2)))
            time.sleep(10)  # the first look at the status, and the doctor's
            memory = size_text(_resident_bytes(process.pid))
            print(f"  all that it did: {_cpu_s(process.pid):.2f} CPU s, {memory} in memory")
            process.terminate()


def _fill(site: Daemon, count: int) -> None:
    journal, now_ns = Journal(str(site.root / ".fsrepl-site" / "journal.db")), time.time_ns()
    for start in range(0, count, IN_FOLDER):
        versions = [_version(number, now_ns) for number in range(start, min(count, start + IN_FOLDER))]
        with journal.transaction():
            journal.versions.add_shown(SOURCE, [(version, None) for version in versions])
        for top in (site.path(SOURCE), site.path(SOURCE, ".fsrepl/versions")):
            (top / os.fsdecode(versions[0].key)).parent.mkdir()
            for version in versions:
                stored = f";{version.id}" if top.name == "versions" else ""
                os.close(os.open(top / (os.fsdecode(version.key) + stored), os.O_CREAT | os.O_WRONLY, 0o600))
    journal.close()


def _version(number: int, now_ns: int) -> Version:
    key = b"d%04d/f%06d" % (number // IN_FOLDER, number)
    sent = {DESTINATION: DeliveryRecord("src-to-dst", Status.COMPLETED, since_ns=now_ns)}
    return Version(key, f"{number:026}", now_ns, size=0, digest=bytes(32), deliveries=sent)


def _ask(site: Daemon, pid: int, address: str) -> str:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(site.root / ".fsrepl-site" / "console"))
    before_s, began_s = _cpu_s(pid), time.monotonic()
    connection.request("GET", address)
    answer = connection.getresponse()
    answer.read()
    took_s, cpu_s = time.monotonic() - began_s, _cpu_s(pid) - before_s
    connection.close()
    return f"   {answer.status} {1000 * took_s:5.0f} ms {cpu_s:.2f} CPU s"


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
