"""What perdure can be asked, one verb a file; the command line and Python callers use the same functions."""
