"""The protocol over tasks (sequence.py), and who is told about it while it runs."""
