"""Names of temporary files, by program: the default of `temporary` in [capture].

A temporary file is renamed or removed soon. Capture waits a little longer for it and never reads it while it is open,
so that half a download makes no version. A false match costs an ordinary file those seconds, so no pattern here matches
ordinary names: neither 8 hex digits (Excel) nor a name with six letters after a dot (GLib, Qt). Those files are renamed
before they are settled in any case.
"""

from __future__ import annotations

from msgspec import Struct


class Temporary(Struct, frozen=True):
    """A pattern of temporary names. pattern: for fnmatch, without a directory. example: a matching name.

    source: "seen" where the program was run; otherwise its manual or source text.
    """

    pattern: str
    program: str
    example: str
    source: str


_ANY = "[!.]"
"""A character other than a dot: `sed` and six of them match a temporary file of sed, but not `sedan.txt`."""

TABLE = (
    # editors and office programs
    Temporary(".*.sw?", "Vim, swap file", ".notes.txt.swp", "Vim, :help swap-file"),
    Temporary("*~", "Vim, Emacs and others, backup", "notes.txt~", "Vim, :help backupext; Emacs manual, Backup Names"),
    Temporary("#*#", "Emacs, auto-save", "#notes.txt#", "Emacs manual, Auto Save Files"),
    Temporary(
        ".goutputstream-??????", "GIO (gedit, Nautilus)", ".goutputstream-U6EGP0",
        "glib, glocalfileoutputstream.c",
    ),
    Temporary(".~lock.*", "LibreOffice, lock", ".~lock.report.odt#", "LibreOffice, svl/source/misc/lockfilecommon.cxx"),
    Temporary(
        "~$*", "Microsoft Office, owner file", "~$report.docx",
        "Microsoft, KB 211632",
    ),
    Temporary("*.tmp", "Microsoft Word", "~WRL0001.tmp", "Microsoft, KB 211632"),
    # tools that edit in place
    Temporary("sed" + 6 * _ANY, "GNU sed -i", "sedlhewvj", "seen, sed 4.9"),
    Temporary("XX" + 6 * _ANY, "perl -i", "XXpoiIj0", "seen, Perl 5.36"),
    Temporary("*.gawk.??????", "gawk -i inplace", "data.csv.gawk.Qe81bZ", "gawk, extension/inplace.c"),
    Temporary("tmp.??????????", "mktemp", "tmp.1YRk2JwHg6", "seen, coreutils 9; mktemp(1)"),
    Temporary(
        "tmp" + 8 * _ANY, "Python, tempfile", "tmpx8f_2k1q",
        "Python, Lib/tempfile.py: template and _RandomNameSequence",
    ),
    Temporary("tmp_obj_??????", "git, loose object", "tmp_obj_a8Bx0q", "git, object-file.c: create_tmpfile"),
    # copying and synchronizing
    Temporary(".*.??????", "rsync", ".cat.jpg.Xa81bq", "rsync(1), --temp-dir; receiver.c: get_tmpname"),
    Temporary("*.partial", "rclone", "cat.jpg.1f2e3d4c.partial", "rclone.org/docs, --inplace and --partial-suffix"),
    Temporary(".rclone_temp_put_*", "rclone serve s3, chunker", ".rclone_temp_put_0b2c", "rclone, cmd/serve/s3 manual"),
    Temporary("*.tmp", "Syncthing", ".syncthing.cat.jpg.tmp", "syncthing, lib/fs/tempname.go"),
    Temporary("*.tmp", "Syncthing on Windows", "~syncthing~cat.jpg.tmp", "syncthing, lib/fs/tempname.go"),
    Temporary("*.tmp", "Unison", ".unison.cat.jpg.581106b2.unison.tmp", "Unison manual; src/os.ml: tempFilePrefix"),
    Temporary(
        ".*.~*", "Nextcloud, ownCloud", ".cat.jpg.~5f3e21",
        "nextcloud/desktop, src/libsync/propagatedownload.cpp",
    ),
    Temporary("*.filepart", "WinSCP", "cat.jpg.filepart", "winscp.net/eng/docs/ui_pref_resume"),
    Temporary(
        ".pureftpd-upload.*", "pure-ftpd", ".pureftpd-upload.4eefcd05.15.543d.f8a021e",
        "pure-ftpd(8), -O and -0; src/ftpd.c",
    ),
    # downloads
    Temporary(
        "*.part", "Firefox, KDE, Transmission, yt-dlp", "film.mkv.part",
        "Transmission wiki: rename-partial-files; yt-dlp --part",
    ),
    Temporary("*.crdownload", "Chrome, Edge", "film.mkv.crdownload", "chromium, download_path_reservation_tracker.cc"),
    Temporary(".*.??????", "Chrome on Linux", ".com.google.Chrome.Xa81bq", "chromium, base/files/file_util_posix.cc"),
    Temporary("*.opdownload", "Opera", "film.mkv.opdownload", "not seen: as other programs list it"),
    Temporary("*.aria2", "aria2, control file", "film.mkv.aria2", "aria2 manual, Technical Notes, Control File"),
    Temporary(
        "*.aria2__temp", "aria2, control file being saved", "film.mkv.aria2__temp",
        "aria2, DefaultBtProgressInfoFile.cc",
    ),
    Temporary("*.!qB", "qBittorrent", "film.mkv.!qB", "qBittorrent WebUI API: incomplete_files_ext"),
    Temporary("*.!ut", "uTorrent", "film.mkv.!ut", "not seen: as other programs list it"),
    # files removed while open
    Temporary(".fuse_hidden*", "libfuse", ".fuse_hidden0000002a00000001", "libfuse, fuse.h: hard_remove"),
    Temporary(
        ".nfs????????????????????????", "NFS client", ".nfs00000000004a2b1c0000000f",
        "Linux, fs/nfs/unlink.c: SILLYNAME_LEN",
    ),
)  # fmt: skip

PATTERNS = tuple(dict.fromkeys(row.pattern for row in TABLE))

CONTROL_FILES = (b".aria2",)
"""Suffixes of control files, which exist beside a file until it is complete.

Source: aria2 manual, Technical Notes.
"""
