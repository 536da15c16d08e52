"""State of one region, used by the region's own thread: buckets, queues, messages."""
