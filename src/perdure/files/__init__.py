"""Files that a crash leaves old or new, never half-written, and output that never overwrites anything by accident."""
