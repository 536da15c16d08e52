"""What S3 says: names, documents, roles and policies, which rule chooses a version. Pure."""
