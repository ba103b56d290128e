"""`python -m perdure`, which is also how launchers of several processes start it."""

from perdure.cli import main

main()
