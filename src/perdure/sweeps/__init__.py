"""Many runs from one file: what they are, their processes, their records, and how methods are compared."""
