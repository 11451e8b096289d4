"""On-board mode: how hot the board is, what it may still do, and what goes down to the ground."""
