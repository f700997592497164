"""Training a VAE: recipes, data, losses and the loop. Needs the extra `train`."""

from wan_vae.training.recipe import Recipe, load_recipe
from wan_vae.training.trainer import WEIGHTS_NAME, Trainer

__all__ = ["WEIGHTS_NAME", "Recipe", "Trainer", "load_recipe"]
