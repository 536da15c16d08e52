"""Storage on disk: system calls, site, bucket, records, versions, intents."""
