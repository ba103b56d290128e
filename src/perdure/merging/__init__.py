"""Merge rules as pure functions, and adapter folders merged by them on disk."""
