"""The attack from the command line: prints what it found. The exit status is 1 where a state is forbidden."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.attack import course


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description="Attack a site.")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of every random choice")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long users work")
    parser.add_argument("--kills", type=int, default=0, help="end after so many kill -9, whatever time that takes")
    parser.add_argument("--sharing", choices=("auto", "private", "link"), default="auto")
    parser.add_argument("--shape", choices=tuple(course.SHAPES), default="two-way")
    parser.add_argument("--trees", action="store_true", help="tree buckets: directories and symlinks are objects")
    parser.add_argument("--rules", action="store_true", help="disable rules and enable them again")
    parser.add_argument("--suspend", action="store_true", help="suspend versioning of the source now and then")
    parser.add_argument("--clock", action="store_true", help="step the daemon's clock, also back")
    parser.add_argument("--slowness", type=float, default=1.0, help="what the pauses of users are multiplied by")
    parser.add_argument("--user", type=int, help="an uid to run everything as; needs root")
    parser.add_argument("--home", type=Path, help="a folder for it, kept afterwards (default: a temporary one)")
    options = parser.parse_args()
    if options.user is not None and os.getuid() != options.user:
        os.setgroups([])
        os.setgid(options.user)
        os.setuid(options.user)
        # Begin again: a process that was another user's may not be asked for its descriptors in /proc, by which
        # tests/program.py hands them on. Source: PR_SET_DUMPABLE in prctl(2).
        os.execv(sys.executable, [sys.executable, "-m", "tests.attack", *sys.argv[1:]])
    home = options.home or Path(tempfile.mkdtemp(prefix="fsrepl-attack-"))
    home.mkdir(parents=True, exist_ok=True)
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(course.Plan)}
    plan = course.Plan(**given)
    print(f"{plan} in {home}", flush=True)
    outcome = course.run(home, plan)
    print("\n".join(outcome.lines()))
    if not outcome.faults and options.home is None:
        shutil.rmtree(home)
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
