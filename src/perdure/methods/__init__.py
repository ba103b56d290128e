"""One file a paper, and the table of every part and preset (table.py)."""
