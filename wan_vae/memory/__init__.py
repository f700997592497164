"""A budget of memory, and how a clip is cut up to keep to it."""

from wan_vae.memory.budget import Budget, bytes_of, in_words, tells
from wan_vae.memory.part import Part
from wan_vae.memory.plan import Plan
from wan_vae.memory.planning import input_of, planned

__all__ = ["Budget", "Part", "Plan", "bytes_of", "in_words", "input_of", "planned", "tells"]
