"""Latents files of other programs: ComfyUI, musubi-tuner, FastVideo, ai-toolkit, and bare tensors.

Examples:
    >>> from wan_vae.interchange import read_latents, write_latents
    >>> latents = read_latents("ComfyUI_00001_.latent", vae.config)  # normalized, (1, z, t, h, w)
    >>> write_latents("clip.latent", latents, vae.config)

`encode_file` and `decode_file` write and read them, too.
"""

from wan_vae.interchange.reader import ForeignLatents as ForeignLatents
from wan_vae.interchange.reader import open_latents as open_latents
from wan_vae.interchange.reader import read_latents as read_latents
from wan_vae.interchange.writer import ForeignWriter as ForeignWriter
from wan_vae.interchange.writer import write_latents as write_latents
