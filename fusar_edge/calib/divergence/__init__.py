"""Two precisions layer by layer, and the first layer where they part."""
