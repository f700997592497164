"""Quality of reconstructions: metrics, contact sheets and evaluation sets."""
