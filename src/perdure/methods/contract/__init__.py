"""The contract between parts and the loop: the roles, what they may see, what they give, and how that is checked."""
