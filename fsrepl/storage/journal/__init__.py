"""The journal: an SQLite index of the trees, rebuilt from them when it is missing.

A step that asks the journal few questions takes a Protocol with just these (questions.py), so that another index, or a
test from memory, can answer it. Steps that write rows take the Journal with its tables (Versions, Views, Deliveries,
Backlog, Folders): they need a transaction that behaves as SQLite's. A Protocol of all tables would only repeat the
signatures of these classes; a test has the same journal in memory (database.py, in_memory).
"""
