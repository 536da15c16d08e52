"""python -m fsrepl"""

from fsrepl.cli import main

main()
