"""Files that a crash leaves old or new, never half, and output that never replaces what it must not."""
