"""SAR products -> calibrated, georeferenced grey tiles (device side: NumPy, rasterio, pyproj, Pillow)."""
