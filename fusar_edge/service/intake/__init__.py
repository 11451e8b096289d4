"""How scenes come in: checks of files that nobody vouches for, the watch folder, STAC items."""
