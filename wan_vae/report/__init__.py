"""A report on a reconstruction: one HTML page that opens from disk, holds all it shows and loads nothing else."""
