"""A server for one model: diffusers' Hybrid Inference protocol, and streams of long clips (see docs/serving.md).

It needs the extra `serve`; importing `wan_vae.serving.app` without it is an ImportError.
"""
