"""The learning rate at every step."""

import math

from wan_vae.train.recipe import Recipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine from the stage's rate to its final share (Loshchilov and Hutter 2017).

    Args:
        recipe: Its stages.
        step: Optimizer step of the whole run, from 0.
    """
    index, step = recipe.stage_at(step)
    stage = recipe.stages[index]
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return stage.learning_rate * (stage.final_rate + (1 - stage.final_rate) * cosine)
