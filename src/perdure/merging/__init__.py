"""Merge rules as pure functions, and adapter folders merged on disk."""
