"""What each layer costs in INT8, and the fewest to keep out of it."""
