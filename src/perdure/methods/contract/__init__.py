"""The contract between parts and the loop: the roles, what they see, what they return, and how that is checked."""
