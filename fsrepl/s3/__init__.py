"""S3's rules: names, documents, roles and policies, and which rule chooses a version. Pure."""
