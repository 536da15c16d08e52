"""The Debian package, built by its one command, then installed, used and purged in a machine of its own; and by uv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounts import own_mounts

ROOT = Path(__file__).parents[2]

MACHINE = """
set -eu
work=$1 package=$2
mount -t tmpfs none "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
mount -t tmpfs none "$work/root/srv"
mount --rbind /dev "$work/root/dev"
mount -t proc none "$work/root/proc"
rm -rf "$work/root/etc/fsrepl" "$work/root/var/lib/fsrepl" "$work/root/opt/fsrepl"
rm -f "$work/root/var/lib/man-db/auto-update"
cp "$package" "$work/root/srv/fsrepl.deb"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root chroot "$work/root" /bin/sh -euc "$3"
"""
USE = """
dpkg --force-unsafe-io -i /srv/fsrepl.deb
fsrepl --version
fsrepl init /etc/fsrepl --region east=/srv/east --region west=/srv/west
fsrepl bucket create east/src --versioning
fsrepl bucket create west/dst --versioning
fsrepl replication enable east/src west/dst
fsrepl check
fsrepl daemon 2> /srv/daemon.log & daemon=$!
echo meow > /srv/east/src/cat
fsrepl wait --timeout 60
cmp /srv/east/src/cat /srv/west/dst/cat
fsrepl console --listen '' > /srv/console.log & console=$!
for n in $(seq 600); do [ -S /var/lib/fsrepl/console ] && break; sleep 0.1; done
[ "$(fsrepl console --listen '' | grep -c 'runs already')" = 1 ]
kill $console $daemon
wait
zgrep -q 'barrier\\|replicated' "$(ls /usr/share/man/man1/fsrepl-wait.1.gz)"
test -s /usr/lib/systemd/system/fsrepl.service
test -s /usr/lib/systemd/system/fsrepl-console.service
test -s /usr/share/bash-completion/completions/fsrepl
dpkg --purge fsrepl
for left in /opt/fsrepl /usr/bin/fsrepl /etc/fsrepl /var/lib/fsrepl /usr/share/doc/fsrepl /lib/systemd/system/fsrepl*
do
    [ ! -e $left ] || { find $left | head; exit 9; }
done
cmp /srv/west/dst/cat - <<'END'
meow
END
ls /srv/west/dst/.fsrepl/versions
"""


@pytest.mark.slow(40)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs a package")
@pytest.mark.skipif(not shutil.which("dpkg"), reason="this is no Debian")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="Debian's python3 is not installed")
def test_a_package_is_built_installed_used_and_purged(tmp_path: Path) -> None:
    """Nothing of the machine changes: its root is the lower part of an overlay in a mount namespace of its own. Users'
    files outlive a purge, with their versions."""
    trial = subprocess.run(["unshare", "--mount", "true"], check=False)
    if trial.returncode:
        pytest.skip("mount namespaces are not permitted here")
    built = subprocess.run(
        ["bash", "packaging/build-deb", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (package,) = tmp_path.glob("*.deb")
    (tmp_path / "machine").mkdir()
    used = subprocess.run(
        [*own_mounts(tmp_path, "--pid", "--fork", "--kill-child"), "sh", "-c", MACHINE, "sh",
         str(tmp_path / "machine"), str(package), USE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert used.returncode == 0, used.stdout + used.stderr
    assert "next: fsrepl init /etc/fsrepl" in used.stdout


UV = ROOT / ".venv" / "bin" / "uv"


@pytest.mark.slow(5)
@pytest.mark.skipif(not UV.exists(), reason="uv is not installed; tests/run installs it")
def test_uv_installs_it_as_a_tool(tmp_path: Path) -> None:
    """`uv tool install '.[console]'`: the command works, and the console has all that it imports."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "fsrepl", source / "fsrepl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    index = ["--default-index", url] if (url := os.environ.get("PIP_INDEX_URL")) else []
    done = subprocess.run(
        [UV, "tool", "install", "--quiet", "--python", sys.executable, *index, ".[console]"],
        cwd=source, capture_output=True, text=True, check=False,
        env={**os.environ, "UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    command, site = tmp_path / "bin" / "fsrepl", tmp_path / "site"
    made = subprocess.run([command, "init", site], cwd="/", capture_output=True, text=True, check=True, timeout=60)
    assert f"site {site}" in made.stdout
    with subprocess.Popen(
        [command, "--site", site, "console", "--listen", ""], cwd="/", stdout=subprocess.PIPE, text=True
    ) as console:  # fmt: skip
        try:
            assert console.stdout is not None
            assert console.stdout.readline() == f"console of {site}\n"
        finally:
            console.terminate()
