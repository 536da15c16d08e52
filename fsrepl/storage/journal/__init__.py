"""The journal: an SQLite index of the trees, rebuilt from them when it is missing.

A step that asks the journal few questions says which in a Protocol of its own, so that a test can answer from memory:
Recorded in capture/scan.py, DeliveryCounts in daemon/metrics.py, JobCounts in storage/backfill_jobs.py. There is no
Protocol of the whole journal: it would repeat the signatures of the table classes here (Versions, Views, Deliveries,
Backlog, Folders), and steps that write need a transaction that behaves as SQLite's, which a journal in memory
(database.py, in_memory) has and a double would only imitate.
"""
