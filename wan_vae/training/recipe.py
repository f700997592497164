"""Training recipes: what to train, on what, for how long, against which losses; read from YAML, checked in full."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wan_vae.config import VAEConfig, read_yaml
from wan_vae.errors import UserError
from wan_vae.evaluation.lpips import SMALLEST_SIDES

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """What is trained.

    Attributes:
        preset: An architecture to train from random weights: a preset's name or a YAML file; or
        checkpoint: trained weights to go on from: a name, a file in any layout or a diffusers folder.
        trainable: "all", or "decoder": the encoder then stays as it is to the bit, so that latents stay compatible.
        gradient_checkpointing: Compute activations again in the backward pass rather than keep them.
        compile: Run through `torch.compile`: minutes to start, then faster.
    """

    preset: str | None = None
    checkpoint: str | None = None
    trainable: Literal["all", "decoder"] = "all"
    gradient_checkpointing: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSection":
        if (self.preset is None) == (self.checkpoint is None):
            raise ValueError("name either a preset or a checkpoint to start from")
        return self


class DataSection(_Section):
    """What it is trained on.

    Attributes:
        videos: A clip, or a folder of clips.
        photos: An image, or a folder of images; None for none.
        held_out: Names of files among them that validation takes and training never sees.
        video_short_side: Clips are scaled to this short side once, when they are put in the frame store.
        photo_short_side: Likewise for photos, which are never enlarged.
        most_frames: At most this many frames of a clip are stored.
        workers: Processes that prepare batches beside the training.
    """

    videos: Path | None = None
    photos: Path | None = None
    held_out: tuple[str, ...] = ()
    video_short_side: Count = 288
    photo_short_side: Count = 800
    most_frames: Count = 600
    workers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _some_source(self) -> "DataSection":
        if self.videos is None and self.photos is None:
            raise ValueError("name videos, photos, or both")
        return self


class LossSection(_Section):
    """Weights of the losses, each a mean over pixel values.

    Attributes:
        l1: Mean absolute error.
        kl: Divergence of the posterior from a standard normal, summed over latents, per pixel value.
        lpips: LPIPS distance (Zhang et al. 2018) of `lpips_frames` random frames of every clip.
        adversarial: Hinge loss against a 3-D patch discriminator, which trains along from the stage's start.
        adversarial_warmup: Steps of the stage in which the discriminator trains alone.
        lpips_frames: See above.
    """

    l1: Weight = 1.0
    kl: Weight = 1.0e-6
    lpips: Weight = 0.0
    adversarial: Weight = 0.0
    adversarial_warmup: Annotated[int, Field(ge=0)] = 0
    lpips_frames: Count = 1


class Stage(_Section):
    """A stretch of training with one kind of batch and one schedule.

    Attributes:
        name: For the log.
        steps: Optimizer steps.
        batch: Clips in a batch, of one process and one accumulated part.
        lengths: Clip lengths to draw from, 1 + 4k frames each, with their shares.
        crop: Side of the square crops, in pixels.
        photo_share: Share of clips that are made of photos, moved over by pan and zoom.
        learning_rate: At its highest.
        warmup: Steps over which the rate rises from 0.
        final_rate: What the cosine falls to, as a share of `learning_rate`.
        taught: Whether encoder and decoder learn apart, both from the principal components of the data (see
            `principal.py`): a way to start from random weights.
        loss: Weights of the losses.
    """

    name: str
    steps: Count
    batch: Count
    lengths: dict[Count, Share]
    crop: Count
    photo_share: Share = 0.4
    learning_rate: Annotated[float, Field(gt=0)]
    warmup: Annotated[int, Field(ge=0)] = 0
    final_rate: Share = 0.0
    taught: bool = False
    loss: LossSection = LossSection()

    @model_validator(mode="after")
    def _some_length(self) -> "Stage":
        if not any(self.lengths.values()):
            raise ValueError("lengths must name a clip length with a share above 0")
        return self


class LpipsSection(_Section):
    """The network behind LPIPS.

    Attributes:
        network: "alex" is many times cheaper than "vgg", and what LPIPS is usually reported with.
        backbone: Safetensors file of its convolutions, with torchvision's names.
    """

    network: Literal["alex", "vgg"] = "alex"
    backbone: Path


class Recipe(_Section):
    """A whole training run.

    Attributes:
        seed: Of the weights and of everything drawn; step n depends on the seed and n alone.
        model: What is trained.
        data: What it is trained on.
        stages: One after the other.
        lpips: The network behind LPIPS, where a stage or the validation wants it.
        optimizer: "adamw", or "muon", which takes fewer steps from random weights and is untried for fine-tuning.
        betas: Of AdamW.
        weight_decay: Of the optimizer.
        gradient_clip: Longest gradient, by norm over all weights, of the VAE and of the discriminator; longer ones are
            scaled down.
        ema_decay: Of the exponential moving average of the weights, which is what is validated and kept in the end.
        mixed_precision: "bf16" or "no"; None leaves it to accelerate's launcher.
        gradient_accumulation: Batches to an optimizer step; accelerate's launcher may set another number.
        log_every: Steps between two entries of the log.
        validate_every: Steps between two validations; a checkpoint is validated before the first step, too.
        checkpoint_every: Steps between two checkpoints of the run.
        validation_clips: At most this many held-out clips are validated on,
        validation_frames: with this many frames of each, 1 + 4k.
    """

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: ModelSection
    data: DataSection
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    lpips: LpipsSection | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: Weight = 0.0
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Share = 0.999
    mixed_precision: Literal["no", "bf16"] | None = None
    gradient_accumulation: Count = 1
    log_every: Count = 20
    validate_every: Count = 1000
    checkpoint_every: Count = 500
    validation_clips: Count = 4
    validation_frames: Count = 17

    @model_validator(mode="after")
    def _lpips_has_a_backbone(self) -> "Recipe":
        if self.lpips is None and any(stage.loss.lpips for stage in self.stages):
            raise ValueError("a stage weighs LPIPS, so section lpips must name its backbone")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, int]:
        """Return the index of the stage that `step` falls in, and the step's number in that stage."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, step
            step -= stage.steps
        raise IndexError(step)

    def check_fits(self, config: VAEConfig) -> None:
        """Refuse crops and lengths that the architecture or LPIPS cannot take, and an architecture that has no target.

        Raises:
            UserError: A stage's crop or length does not fit, or the decoder upscales; the message names it.
        """
        if config.output_upscale != 1:
            raise UserError(
                f"this model decodes to {config.output_upscale} times the size, and nothing of that size is there to"
                f" compare with; train one with output_upscale 1."
            )
        space, time = config.spatial_compression, config.temporal_compression
        lengths = [(stage.name, length) for stage in self.stages for length in stage.lengths]
        for where, length in [*lengths, ("validation_frames", self.validation_frames)]:
            if (length - 1) % time:
                raise UserError(f"{where}: {length} frames are not 1 + {time}k, which this model needs.")
        for stage in self.stages:
            if stage.crop % space:
                raise UserError(f"{stage.name}: the crop {stage.crop} is not a multiple of {space}.")
            smallest = SMALLEST_SIDES[self.lpips.network] if self.lpips is not None and stage.loss.lpips else 0
            if stage.crop < smallest:
                raise UserError(
                    f"{stage.name}: the crop {stage.crop} is too small for LPIPS; with this model and network,"
                    f" {-(-smallest // space) * space} or more would work."
                )


def load_recipe(path: Path, changes: dict[str, dict[str, Any]] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: A YAML file.
        changes: Values to set in its sections, such as `{"data": {"videos": "clips"}}`.

    Raises:
        UserError: There is no such file, or it is no recipe; the message names the entry.
    """
    content = read_yaml(path, missing=f"There is no recipe {path}; configs/train/ holds some to start from.")
    if not isinstance(content, dict):
        raise UserError(f"{path} is no recipe: it is {content!r}, not names with values.")
    for section, values in (changes or {}).items():
        found = content.get(section) or {}
        if isinstance(found, dict):  # otherwise it is refused below, as it stands
            content[section] = {**found, **values}
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the recipe"
        value = f", but it is {first['input']!r}" if isinstance(first["input"], (str, int, float)) else ""
        raise UserError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}{value}.") from error
