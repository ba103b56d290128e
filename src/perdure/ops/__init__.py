"""Numerics as pure functions; each fast path has a slow reference next to it."""
