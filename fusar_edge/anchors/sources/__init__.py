"""What a table is built from: AlphaEarth rasters and tables of points, where they lie, the index that lists them."""
