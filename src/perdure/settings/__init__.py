"""Settings of any kind: read from YAML and key=value, checked against a class, and explained in words."""
