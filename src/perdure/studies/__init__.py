"""Studies of tasks or of a finished run: conflict, signs, general ability."""
