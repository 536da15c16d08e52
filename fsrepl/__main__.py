"""python -m fsrepl"""

from __future__ import annotations

from fsrepl.cli import main

main()
