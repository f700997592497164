"""The command line: one module a command, none of which imports torch before its command runs."""

from wan_vae.cli.app import main

__all__ = ["main"]
