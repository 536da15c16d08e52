"""The JSON that commands print, a file for each noun. Other code that prints the same JSON imports it from here.

A value that only one command prints has a method `document`, as the state of a scrub (model/scrub.py), and the answer
of `why` is built where its sentences are (commands/why.py). Names and shapes are a contract with scripts. Source:
design.md, section 5.
"""
