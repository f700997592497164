"""A budget of memory, and how a clip is cut up to keep to it."""

from wan_vae.memory.budget import Budget, bytes_of, in_words, tells
from wan_vae.memory.part import Part
from wan_vae.memory.plan import Plan
from wan_vae.memory.planner import choose
from wan_vae.memory.rehearsing import job_of

__all__ = ["Budget", "Part", "Plan", "bytes_of", "choose", "in_words", "job_of", "tells"]
