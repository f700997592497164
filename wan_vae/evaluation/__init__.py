"""Quality of reconstructions: metrics, contact sheets and side-by-side pictures."""
