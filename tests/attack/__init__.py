"""An attack on a two-way site: random users on both sides, and a daemon that is killed again and again.

    python -m tests.attack --seed 7 --seconds 60 --sharing link

Users write in every way that files are written, make hard links, rename directories, and replace directories by links
to them. At the end they stop; then the site must come to rest by itself, both sides the same, with nothing left over.

What users had is recorded: which bytes rested at which key, and for how long. So a loss (bytes that rested long enough
to be captured, and that no version holds) differs from what nobody promises (bytes that were overwritten at once).
"""
