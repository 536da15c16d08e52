"""The screen of `fsrepl status`: names chosen by users are shown as they are, and change neither cursor nor colour."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fsrepl.cli import status_screen

Json = dict[str, Any]


def document(**more: object) -> Json:
    daemon = {"running": True, "pid": 1, "ready": True, "since": "2026-11-24T12:00:00Z"}
    return {"daemon": daemon, "buckets": [], "transfers": [], **more}


def bucket(name: str, **more: object) -> Json:
    numbers = dict.fromkeys(("objects", "versions", "bytes", "pending", "failed", "skipped", "lag_seconds"), 0)
    return {"bucket": name, "online": True, "versioning": "Enabled", "rules": [], **numbers, **more}


def test_names_are_no_markup_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """Section 5: control characters are escaped wherever they are printed; a rule may be called [/] or [red]."""
    rule = dict.fromkeys(("pending", "failed", "completed", "lag_seconds"), 0)
    rules = [{"id": name, "status": "Enabled", "destination": "west/dst", **rule} for name in ("[/]", "[red]x")]
    transfer = {
        "key": "[/b]\x1b[31m",
        "source": "east/src",
        "destination": "west/dst",
        "bytes_done": 1,
        "bytes_total": 2,
    }
    conflict = {"Key": "k\x1b[2J", "Why": "a directory\n is in the way"}
    buckets = [bucket("east/src", rules=rules, view_conflicts=[conflict])]
    status_screen.show(document(buckets=buckets, transfers=[transfer]))
    shown = capsys.readouterr().out
    for text in ("[/]", "[red]x", r"[/b]\x1b[31m", r"k\x1b[2J", r"a directory\x0a is in the way"):
        assert text in shown
    assert "\x1b" not in shown


def test_captures_and_verifications_are_shown_apart_from_copies(capsys: pytest.CaptureFixture[str]) -> None:
    """Section 5: status names the kind of each transfer."""
    capture = {"key": "k", "source": "east/src", "destination": "east/src", "bytes_done": 25, "bytes_total": 100}
    verified = capture | {"destination": "west/dst", "bytes_done": 100, "bytes_verified": 30}
    prepared = {**verified, "key": "c", "what": "preparing"}
    everything = capture | {"key": "", "what": "verifying"}
    status_screen.show(document(transfers=[capture, verified, prepared, everything]))
    captured, sent, copied, read = capsys.readouterr().out.splitlines()[-4:]
    assert "east/src, being captured" in captured
    assert captured.rstrip().endswith("25 % of 100 B")
    assert "west/dst" in sent
    assert sent.rstrip().endswith("100 % of 100 B, 30 % verified")
    assert "west/dst, being prepared" in copied
    assert "all versions  east/src, being verified" in read


def test_large_objects_show_how_fast_they_are_and_what_of_them_crossed(capsys: pytest.CaptureFixture[str]) -> None:
    """Section 9: bytes, rate and time left of a transfer; of a rule, what the destination did not have."""
    rule: Json = {
        "id": "r",
        "status": "Enabled",
        "destination": "west/dst",
        "large_bytes": 4096,
        "large_bytes_crossed": 1024,
    }
    rule |= dict.fromkeys(("pending", "failed", "completed", "lag_seconds"), 0)
    transfer = {"key": "k", "source": "east/src", "destination": "west/dst", "bytes_done": 50, "bytes_total": 100}
    transfer |= {"bytes_crossed": 10, "bytes_per_second": 25, "eta_seconds": 2.0}
    status_screen.show(document(buckets=[bucket("east/src", rules=[rule])], transfers=[transfer]))
    out = capsys.readouterr().out
    assert "50 % of 100 B, 25 B/s, 2.0 s left, 10 B crossed" in out
    assert "large objects of east/src to west/dst: 4.0 KiB delivered, 1.0 KiB crossed" in out


def test_a_region_that_is_away_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Section 5: one screen, however many buckets a region has."""
    why = "region west is offline: /mnt/\x1bwest: no such file or directory"
    status_screen.show(document(buckets=[bucket(f"west/{name}", online=False, trouble=why) for name in ("one", "two")]))
    shown = capsys.readouterr().out
    assert shown.count(r"! region west is offline: /mnt/\x1bwest") == 1
    assert shown.count("OFFLINE") == 2


def test_a_daemon_that_does_not_answer_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Section 5: status only reads, and shows what the journal has even then."""
    trouble = "the daemon did not answer status within 10.0 s"
    daemon = {"running": True, "pid": None, "ready": False, "since": None, "trouble": trouble}
    status_screen.show(document(daemon=daemon, buckets=[bucket("east/src")]))
    shown = capsys.readouterr().out
    assert trouble in shown
    assert "east/src" in shown


def test_at_80_columns_no_number_is_cut() -> None:
    """A terminal as it opens: names are folded, lines stay within it, and every number is whole."""
    rule: Json = {
        "id": "photographs-to-photographs-copy",
        "status": "Enabled",
        "destination": "eu-west-1/photographs-copy",
    }
    rule |= {"pending": 12_345, "failed": 67, "completed": 1_234_567, "lag_seconds": 3700}
    made = bucket("us-east-1/photographs", rules=[rule])
    made |= {"objects": 1_234_567, "versions": 2_345_678, "bytes": 5 << 40, "pending": 12_345, "failed": 67}
    transfer = {"key": "2026/holidays/video.mp4", "source": "us-east-1/photographs", "destination": rule["destination"]}
    transfer |= {"bytes_done": 1 << 30, "bytes_total": 5 << 30, "bytes_verified": 1 << 29}
    for width in (80, 105):
        console = Console(width=width, no_color=True, file=io.StringIO())
        console.print(status_screen.render(document(buckets=[made], transfers=[transfer]), narrow=width < 100))
        assert isinstance(console.file, io.StringIO)
        out = console.file.getvalue()
        assert max(map(len, out.splitlines())) <= width
        _is_whole(out)


def _is_whole(out: str) -> None:
    for text in ("1,234,567", "2,345,678", "5.0 TiB", "12,345", "Enabled", "61.7 min", "COMPLETED", "online"):
        assert text in out, out
    assert "…" not in out
