"""One clip over several devices: each holds a part of every frame and asks its neighbors for what lies beyond."""
