"""Areas of the ground: boxes and GeoJSON polygons, and the cells that they touch."""
