"""An attack on a site: random users on each side, and a daemon that is killed again and again.

    python -m tests.attack --kills 1000 --shape mesh --rules --clock

Users write in every way that files are written, make hard links, rename directories, and replace directories by links
to them. An administrator disables and enables rules, suspends versioning, and sets the clock. In the end all of them
stop; then the site must come to rest by itself, all sides the same, with nothing left over.

Users record which bytes rested at which key, and for how long (ledger.py). After each kill the disks are read as they
are (stores.py). A pure checker compares both (history.py), as Jepsen does with a database: nothing lost, mixed,
doubled, swapped or gone, and COMPLETED only where the replica is. A loss (bytes that rested long enough to be captured,
and that no version holds) differs from what nobody promises (bytes that were overwritten at once).
"""
