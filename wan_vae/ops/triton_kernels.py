"""The operations that have a GPU kernel; each does what its namesake in `wan_vae.ops.reference` does.

Importing this needs Triton; import it where a tensor on a GPU has been seen.
"""

from wan_vae.ops.triton_add import add_bias_and_residual
from wan_vae.ops.triton_conv3d import candidates, pack_weight
from wan_vae.ops.triton_norm_silu import norm_silu

__all__ = ["add_bias_and_residual", "candidates", "norm_silu", "pack_weight"]
