"""Every command of the task pages is run, on a machine of its own for each page."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounts import own_mounts
from tests.services import Service

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
S3 = "https://s3.eu-west-1.amazonaws.com"
"""In its place the pages get a service of the tests'."""
PAGES = sorted(path for path in DOCS.glob("*.md") if path.name != "README.md")

MACHINE = """
set -eu
work=$1
mount -t tmpfs none "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
for place in srv mnt etc/fsrepl var/lib/fsrepl var/lib/postgresql; do
    mkdir -p "$work/root/$place"
    mount -t tmpfs none "$work/root/$place"
done
mount --rbind /dev "$work/root/dev"
mount -t proc none "$work/root/proc"
mkdir "$work/root/tmp/there"
rm -f "$work/root/usr/bin/ssh"
cat > "$work/root/usr/bin/ssh" <<'END'
#!/bin/sh
for word; do shift; case $last in nas) set -- "$@" "$word";; *) last=$word; esac; done
exec sh -c "$*"
END
chmod +x "$work/root/usr/bin/ssh"
exec chroot "$work/root" /bin/bash -c "$2"
"""
"""ssh runs its command on this machine, whatever its options, when the host is `nas`.

The root of this machine is the lower part of an overlay: paths are as in the pages, and nothing here changes."""


@pytest.mark.slow(10)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a machine of its own")
@pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed here")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_work_one_after_the_other(tmp_path: Path, page: Path) -> None:
    """They are copied by people who have something else to do: none may fail, ask, or be out of date."""
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("mount namespaces are not permitted here")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/local/bin"
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    script = "set -eux -o pipefail\ncd /tmp/there\n" + "\n".join(blocks)
    environ = {"PATH": path, "NO_COLOR": "1", "HOME": "/root", "EXAMPLES": str(ROOT / "examples")}
    (tmp_path / "machine").mkdir()
    with contextlib.ExitStack() as services:
        if S3 in script:
            service = services.enter_context(Service(tmp_path / "service.log"))
            script = script.replace(S3, service.url)
            environ["AWS_ENDPOINT_URL"] = service.url  # of AWS's own tools
        done = subprocess.run(
            [*own_mounts(tmp_path, "--pid", "--fork", "--kill-child"), "sh", "-c", MACHINE, "sh",
             str(tmp_path / "machine"), f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"],
            env=environ, capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_page_is_in_the_list_and_leads_somewhere() -> None:
    """The list names each page once; no link of a page leads to nowhere, and no page has a command that is not run."""
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text())
    assert sorted(listed) == [page.name for page in PAGES]
    for page in (*PAGES, DOCS / "README.md"):
        text = page.read_text()
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert (DOCS / target).resolve().exists(), f"{page.name}: {target}"
        assert set(re.findall(r"^```(\w+)$", text, re.MULTILINE)) <= {"bash"}, page.name
        assert max(map(len, text.splitlines())) <= 160, page.name
