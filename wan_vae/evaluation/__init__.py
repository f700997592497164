"""How close reconstructions are to their sources: metrics, pictures and evaluation sets."""
