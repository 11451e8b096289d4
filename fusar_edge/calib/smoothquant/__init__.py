"""SmoothQuant, folded into the PyTorch model before export."""
