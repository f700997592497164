"""What an ablation varies and what it holds fixed; read from YAML, checked in full."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wan_vae.config import read_yaml
from wan_vae.errors import UserError

Kind = Literal["wan", "resnet", "bottleneck", "preact", "dense", "plain"]
KINDS: tuple[Kind, ...] = get_args(Kind)
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
    """What all networks have in common.

    Attributes:
        patch: Side of the square of pixels that becomes one latent.
        latent_channels: Channels of the latents.
        widths: Channels between the blocks of each kind, from the shallow networks to the deep ones, chosen for
            equally many parameters at each depth.
        bottleneck_ratio: See `VAEConfig`.
        dense_growth: See `VAEConfig`.
    """

    patch: Count
    latent_channels: Count
    widths: dict[Kind, tuple[Count, Count, Count]]
    bottleneck_ratio: Count = 4
    dense_growth: Count

    @model_validator(mode="after")
    def _complete(self) -> "NetworkSection":
        missing = set(KINDS) - set(self.widths)
        if missing:
            raise ValueError(f"widths lacks {min(missing)}")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class PhotoSection(Frozen):
    """The photos that pictures are cut out of.

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
    """How every network is trained: mean absolute error, AdamW, warm-up, cosine to 0, gradients as they come.

    Attributes:
        steps: Optimizer steps.
        batch: Pictures in a batch.
        crop: Side of a picture, in pixels.
        learning_rates: Each network takes that which serves it best on the first seed; stability is tried at all.
        warmup: Steps over which the rate rises from 0.
        validate_every: Steps between two validations.
        validation_pictures: Pictures of a validation.
    """

    steps: Count
    batch: Count
    crop: Count
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)]
    warmup: Count
    validate_every: Count
    validation_pictures: Count

    @model_validator(mode="after")
    def _fits(self) -> "TrainingSection":
        if self.steps % self.validate_every:
            raise ValueError(f"{self.steps} steps are not a multiple of validate_every, {self.validate_every}")
        if self.warmup >= self.steps:
            raise ValueError(f"all {self.steps} steps are warm-up")
        return self


class StackSection(Frozen):
    """How a few blocks learn the synthetic tasks of `experiments.residual_blocks.stacks`.

    Attributes:
        units: How many, see `experiments.residual_blocks.networks.UNIT`.
        steps: Optimizer steps (Adam, cosine to 0).
        learning_rates: Each kind takes that which serves it best over all seeds.
    """

    units: Count
    steps: Count
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)]


class Ablation(Frozen):
    """A whole ablation.

    Attributes:
        seeds: Of weights and batches.
        depths: Units of six layers (see `networks`) of the shallow, the middle and the deep networks.
        network: What they have in common.
        photos: What they are trained and validated on.
        training: How.
        small_set: Pictures of the small training set; elsewhere, every picture is new.
        stack: The synthetic tasks.
    """

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    depths: tuple[Count, Count, Count]
    network: NetworkSection
    photos: PhotoSection
    training: TrainingSection
    small_set: Count
    stack: StackSection

    @model_validator(mode="after")
    def _consistent(self) -> "Ablation":
        if not self.depths[0] < self.depths[1] < self.depths[2]:
            raise ValueError(f"depths is {list(self.depths)}; they must ascend")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}; none may be listed twice")
        if self.training.crop % self.network.patch:
            raise ValueError(f"the crop {self.training.crop} is not a multiple of the patch, {self.network.patch}")
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
