"""Pictures of a scene for the page: Web-Mercator tiles, crops of tiles, and where the tiles lie."""
