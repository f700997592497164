"""How fast this library is, beside `diffusers.AutoencoderKLWan`: one process for each, the same work, in turn."""
