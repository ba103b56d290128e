"""What is asked about tasks or a finished run: conflict, signs, general ability."""
