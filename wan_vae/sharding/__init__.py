"""One clip over several devices: each holds a part of every frame and asks its neighbors for what lies beyond."""

from wan_vae.sharding.sharded_vae import ShardedVAE

__all__ = ["ShardedVAE"]
