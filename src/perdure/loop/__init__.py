"""The protocol over tasks (sequence.py), and the reporters that follow it."""
