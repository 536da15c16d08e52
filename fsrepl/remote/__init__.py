"""Buckets of S3 services, which take replicas."""
