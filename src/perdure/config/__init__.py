"""What a run is, as validated settings; a preset's name or a composition of parts becomes the whole method."""
