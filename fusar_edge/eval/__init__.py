"""Task metrics, the same for a checkpoint and for a bundle of any precision."""
