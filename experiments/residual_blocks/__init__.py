"""The residual laboratory: the same small VAE with every kind of block, at several depths. Needs the extra `lab`."""
