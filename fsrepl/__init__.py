"""S3 cross-region replication for ordinary directories."""

__version__ = "0.1.0"
