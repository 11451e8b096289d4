"""The calibration set: which tiles, listed, and turned into inputs of the graphs."""
