"""A budget of memory, and how a clip is cut up to keep to it."""

from wan_vae.memory.budget import Budget, bytes_of, in_words
from wan_vae.memory.plan import Plan
from wan_vae.memory.planner import Job, choose

__all__ = ["Budget", "Job", "Plan", "bytes_of", "choose", "in_words"]
