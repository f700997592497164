"""How a clip is cut in time and in tiles, and how much memory that takes."""
