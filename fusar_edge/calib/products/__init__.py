"""Every product of a graph: in INT8 or why not, its work, its bytes."""
