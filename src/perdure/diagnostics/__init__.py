"""What several updates of one base do to each other: signs, collisions, subspaces, magnitudes.

positions.py  entry by entry, on row tiles: exact, or from sampled rows with a confidence interval
spaces.py     as matrices: exact, in the size of the factors
report.py     both over all modules and pairs: `diagnose(updates) -> Diagnosis`
folders.py    the same for adapter folders, read module by module
text.py       the report as tables for a terminal
words.py      what the numbers mean, in plain sentences
"""
