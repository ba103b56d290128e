"""PEFT adapter folders: what one may contain, read and written module by module."""
