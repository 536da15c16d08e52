"""What things are: keys, versions, rules, views, metadata. Pure."""
