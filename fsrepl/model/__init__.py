"""Domain values: keys, versions, rules, views, metadata. Pure."""
