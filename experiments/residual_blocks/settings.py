"""What an ablation varies and what it holds fixed; read from YAML, checked in full."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wan_vae.config import read_yaml
from wan_vae.errors import UserError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
# Those of scikit-image's photos that are inside its wheel, and free of copyright by their own descriptions.
Photo = Literal[
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
]


class Frozen(BaseModel):
    """A base for settings and results: no unknown entries, no changes, infinities and NaN kept in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class NetworkSection(Frozen):
    """What all networks have in common: two levels, 4x4 pixels and 2 frames to a latent.

    Attributes:
        width: Channels of the higher level; the lower one has twice as many.
        latent_channels: Channels of the latents.
        bottleneck_ratio: See `VAEConfig`.
        dense_growth: Channels that a layer of a dense block adds, as a share of the width.
        dense_layers: See `VAEConfig`.
    """

    width: Annotated[int, Field(ge=2)]
    latent_channels: Count
    bottleneck_ratio: Count = 4
    dense_growth: Positive = 0.5
    dense_layers: Count = 2


class PhotoSection(Frozen):
    """The photos that a virtual camera makes clips of.

    Attributes:
        training: Names of scikit-image's photos to train on.
        held_out: Names of those to validate on.
        short_side: They are reduced to this short side, in pixels.
    """

    training: Annotated[tuple[Photo, ...], Field(min_length=1)]
    held_out: Annotated[tuple[Photo, ...], Field(min_length=1)]
    short_side: Count

    @model_validator(mode="after")
    def _apart(self) -> "PhotoSection":
        both = set(self.training) & set(self.held_out)
        if both:
            raise ValueError(f"{min(both)} is both trained and validated on")
        return self


class TrainingSection(Frozen):
    """How every network is trained: mean absolute error and a little divergence, AdamW, warm-up, cosine to 0.

    Attributes:
        steps: Optimizer steps.
        batch: Clips in a batch.
        frames: Of a clip, 1 + 2k.
        crop: Side of a clip, in pixels, a multiple of 4.
        learning_rates: Each network takes that which serves it best on the first seed.
        warmup: Steps over which the rate rises from 0.
        gradient_clip: Longest gradient, by norm over all weights.
        kl: Weight of the posterior's divergence, in the unit of `wan_vae.training.losses.kl_per_value`.
        validate_every: Steps between two validations.
        validation_clips: Clips of a validation.
        timed_steps: Steps of each network that are timed.
    """

    steps: Count
    batch: Count
    frames: Count
    crop: Count
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)]
    warmup: Count
    gradient_clip: Positive
    kl: Annotated[float, Field(ge=0)]
    validate_every: Count
    validation_clips: Count
    timed_steps: Count

    @model_validator(mode="after")
    def _fits(self) -> "TrainingSection":
        if self.frames % 2 == 0:
            raise ValueError(f"{self.frames} frames are not 1 + 2k")
        if self.crop % 4:
            raise ValueError(f"the crop {self.crop} is not a multiple of 4")
        if self.steps % self.validate_every:
            raise ValueError(f"{self.steps} steps are not a multiple of validate_every, {self.validate_every}")
        return self


class IdentitySection(Frozen):
    """The test of how easily a few blocks learn to pass on their input.

    Attributes:
        blocks: How many, one after the other.
        steps: Optimizer steps (Adam, cosine to 0).
        learning_rates: Each kind takes that which serves it best over all seeds.
    """

    blocks: Count
    steps: Count
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)]


class Ablation(Frozen):
    """A whole ablation.

    Attributes:
        seeds: Of weights, batches and noise.
        depths: Blocks per level of the shallow, the middle and the deep networks.
        network: What they have in common.
        photos: What they are trained and validated on.
        training: How.
        identity: The test of the identity.
    """

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    depths: tuple[Count, Count, Count]
    network: NetworkSection
    photos: PhotoSection
    training: TrainingSection
    identity: IdentitySection

    @model_validator(mode="after")
    def _ascending(self) -> "Ablation":
        if not self.depths[0] < self.depths[1] < self.depths[2]:
            raise ValueError(f"depths is {list(self.depths)}; they must ascend")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}; none may be listed twice")
        return self


def load_ablation(path: Path) -> Ablation:
    """Read the settings of an ablation.

    Raises:
        UserError: There is no such file, or it is not what it should be; the message names the entry.
    """
    content = read_yaml(path, missing=f"There is no {path}; experiments/residual_blocks/configs/ holds two.")
    try:
        return Ablation.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the settings"
        raise UserError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}.") from error
