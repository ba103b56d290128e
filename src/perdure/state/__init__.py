"""A run on disk: the store, what is written about a stage, how training resumes inside one, and the run opened again."""
