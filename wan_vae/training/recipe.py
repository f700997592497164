"""Training recipes: a YAML file with the model, the data, the stages and their losses, validated when it is read."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wan_vae.arguments import check_path, shown
from wan_vae.config import VAEConfig, config_folder, read_yaml, recipe_names
from wan_vae.errors import UserError
from wan_vae.evaluation.lpips import SMALLEST_SIDES

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """The model to train: exactly one of `preset` and `checkpoint`."""

    preset: str | None = None  # architecture to train from random weights: the name of a preset or a YAML file
    checkpoint: str | None = None  # weights to fine-tune: a name, a file in any layout or a diffusers folder
    # "decoder" leaves the encoder unchanged to the bit, so that latents stay compatible.
    trainable: Literal["all", "decoder"] = "all"
    gradient_checkpointing: bool = False  # recompute activations in the backward pass instead of storing them
    compile: bool = False  # use torch.compile, which takes minutes at the start and then trains faster

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSection":
        if (self.preset is None) == (self.checkpoint is None):
            raise ValueError("name either a preset or a checkpoint to start from")
        return self


class DataSection(_Section):
    """The training data: clips, photos or both."""

    videos: Path | None = None  # a clip or a folder of clips
    photos: Path | None = None  # an image or a folder of images
    held_out: tuple[str, ...] = ()  # file names of clips and photos to validate on and not to train on
    video_short_side: Count = 288  # short side in pixels that clips are scaled to in the frame store
    photo_short_side: Count = 800  # short side in pixels that larger photos are scaled down to
    most_frames: Count = 600  # largest number of frames stored of a clip
    workers: Annotated[int, Field(ge=0)] = 0  # processes that prepare batches; 0: the training process does

    @model_validator(mode="after")
    def _some_source(self) -> "DataSection":
        if self.videos is None and self.photos is None:
            raise ValueError("name videos, photos, or both")
        return self


class LossSection(_Section):
    """The weights of the losses."""

    l1: Weight = 1.0  # of the mean absolute error
    mse: Weight = 0.0  # of the mean squared error
    psnr: Weight = 0.0  # of the mean PSNR of the frames in dB, which is subtracted
    kl: Weight = 1.0e-6  # of the posterior's KL divergence from a standard normal, summed over latents, per pixel value
    lpips: Weight = 0.0  # of the LPIPS distance (Zhang et al. 2018)
    adversarial: Weight = 0.0  # of the hinge loss against a 3-D patch discriminator
    # Steps at the start of the stage in which only the discriminator is trained with the hinge loss.
    adversarial_warmup: Annotated[int, Field(ge=0)] = 0
    lpips_frames: Count = 1  # random frames of each clip that LPIPS is computed on

    @model_validator(mode="after")
    def _entries_have_an_effect(self) -> "LossSection":
        if not any((self.l1, self.mse, self.psnr, self.lpips)):
            raise ValueError("one of l1, mse, psnr and lpips must be above 0, or nothing is learned")
        if self.adversarial_warmup and not self.adversarial:
            raise ValueError("adversarial_warmup has no effect while adversarial is 0; leave it out")
        return self


class Stage(_Section):
    """A number of steps with one kind of batch and one learning rate schedule."""

    name: str  # for error messages
    steps: Count  # optimizer steps
    batch: Count  # clips in a batch, per process and accumulated batch
    lengths: dict[Count, Share]  # probability of each clip length in frames, 1 + 4k; scaled to a sum of 1
    crop: Count  # side of the square crops, in pixels
    # Share of clips that are made from photos by panning and zooming; where no clip is long enough, all are.
    photo_share: Share = 0.4
    fast_share: Share = 0.0  # share of clips in fast motion: frames skipped, faster cameras, objects that pass
    learning_rate: Annotated[float, Field(gt=0)]  # highest learning rate
    warmup: Annotated[int, Field(ge=0)] = 0  # steps of linear warm-up
    final_rate: Share = 0.0  # learning rate at the end of the cosine schedule, as a share of learning_rate
    loss: LossSection = LossSection()

    @model_validator(mode="after")
    def _entries_have_an_effect(self) -> "Stage":
        if not any(self.lengths.values()):
            raise ValueError("lengths must name a clip length with a share above 0")
        if self.warmup > self.steps:
            raise ValueError(f"warmup is {self.warmup}, but there are {self.steps} steps; it must not be more")
        if self.loss.adversarial and self.loss.adversarial_warmup > self.steps:
            warmup = f"adversarial_warmup is {self.loss.adversarial_warmup}"
            raise ValueError(f"{warmup}, but there are {self.steps} steps; it must not be more")
        return self


class LpipsSection(_Section):
    """The LPIPS network."""

    network: Literal["alex", "vgg"] = "alex"  # "alex" is many times faster and usual for evaluation
    backbone: Path  # safetensors file of its convolutions, with torchvision's names


class Recipe(_Section):
    """A training run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of the initial weights and of all random choices
    model: ModelSection
    data: DataSection
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]  # in order
    lpips: LpipsSection | None = None  # required if a stage uses LPIPS; validation then measures it too
    # "muon" needs fewer steps from random weights and is untested for fine-tuning.
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)  # of AdamW
    weight_decay: Weight = 0.0
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0  # largest gradient norm, of the VAE and of the discriminator
    ema_decay: Share = 0.999  # of the moving average of the weights, which is validated and written at the end
    mixed_precision: Literal["no", "bf16"] | None = None  # None: the setting of accelerate's launcher
    gradient_accumulation: Count = 1  # batches per optimizer step; accelerate's launcher may override it
    log_every: Count = 20  # steps between log entries
    validate_every: Count = 1000  # steps between validations; a checkpoint is also validated before the first step
    checkpoint_every: Count = 500  # steps between writes of the run's state
    validation_clips: Count = 4  # largest number of held-out clips to validate on
    validation_frames: Count = 17  # largest number of frames to validate on per clip, 1 + 4k

    @model_validator(mode="after")
    def _lpips_has_a_backbone(self) -> "Recipe":
        if self.lpips is None and any(stage.loss.lpips for stage in self.stages):
            raise ValueError("a stage weighs LPIPS, so section lpips must name its backbone")
        return self

    @property
    def steps(self) -> int:
        """Number of optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, int]:
        """Return the index of the stage that a step belongs to, and the number of the step within that stage."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, step
            step -= stage.steps
        raise IndexError(step)

    def check_fits(self, config: VAEConfig) -> None:
        """Check that the architecture and LPIPS take the crops and lengths, and that it is one that can be trained.

        Raises:
            UserError: One of these does not hold; the message names the entry.
        """
        if config.output_upscale != 1:
            raise UserError(
                f"this model decodes to {config.output_upscale} times the size, and nothing of that size is there to"
                f" compare with; train one with output_upscale 1."
            )
        if config.image_channels != 3:
            raise UserError(
                "this model is of pictures with alpha, which clips and photos are read without; train one of RGB."
            )
        space, time = config.spatial_compression, config.temporal_compression
        lengths = [(stage.name, length) for stage in self.stages for length in stage.lengths]
        for where, length in [*lengths, ("validation_frames", self.validation_frames)]:
            if (length - 1) % time:
                raise UserError(f"{where}: {length} frames are not 1 + {time}k, which this model needs.")
        for stage in self.stages:
            if config.images_only and (
                long := [length for length, share in stage.lengths.items() if share and length > 1]
            ):
                raise UserError(
                    f"{stage.name}: this model takes single pictures, not {long[0]} frames; lengths {{1: 1.0}} fit."
                )
            if stage.crop % space:
                raise UserError(f"{stage.name}: the crop {stage.crop} is not a multiple of {space}.")
            smallest = SMALLEST_SIDES[self.lpips.network] if self.lpips is not None and stage.loss.lpips else 0
            if stage.crop < smallest:
                raise UserError(
                    f"{stage.name}: the crop {stage.crop} is too small for LPIPS; with this model and network,"
                    f" {-(-smallest // space) * space} or more would work."
                )


def load_recipe(path: str | Path, changes: dict[str, dict[str, Any]] | None = None) -> Recipe:
    """Read a YAML file, or the shipped recipe of that name, such as "finetune_decoder".

    Args:
        path: The file; a name stands for a shipped recipe where there is no file of that name.
        changes: Overrides entries by section, such as `{"data": {"videos": "clips"}}`.

    Raises:
        UserError: The file is missing or not a valid recipe; the message names all entries that are wrong.
    """
    path, names = check_path("path", path), recipe_names()
    if str(path) in names and not path.is_file():
        path = config_folder() / "train" / f"{path}.yaml"
    missing = f"There is no recipe {path}; name a YAML file, or one of {', '.join(names)}."
    content = read_yaml(path, missing=missing)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no recipe: it is {shown(content)}, not names with values.")
    for section, values in (changes or {}).items():
        found = content.get(section) or {}
        if isinstance(found, dict):  # otherwise validation refuses it below
            content[section] = {**found, **values}
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(_faults(error))}.") from error


def _faults(error: ValidationError) -> Iterator[str]:
    """Yield what is wrong with each entry; a misspelled name and the missing entry that is meant are one."""
    faults = error.errors()
    meant: dict[tuple[int | str, ...], str] = {}
    for fault in faults:
        if fault["type"] == "extra_forbidden":
            section = fault["loc"][:-1]
            for name in get_close_matches(str(fault["loc"][-1]), _names_in(section), n=1):
                meant[fault["loc"]] = name
    explained = {(*place[:-1], name) for place, name in meant.items()}
    for fault in faults:
        place, kind = fault["loc"], fault["type"]
        shown_place = ".".join(str(part) for part in place) or "the recipe"
        inside = any(len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in faults)
        if place in meant:
            yield f"{shown_place} is unknown, did you mean {meant[place]}"
        elif kind == "extra_forbidden":
            yield f"{shown_place} is unknown, the entries are {', '.join(_names_in(place[:-1]))}"
        elif kind == "missing" and place not in explained:
            yield f"{shown_place} is missing"
        elif kind != "missing" and not (inside and kind == "too_short"):  # a wrong stage counts as none
            value = f", but it is {shown(fault['input'])}" if isinstance(fault["input"], (str, int, float)) else ""
            yield f"{shown_place}: {fault['msg'].removeprefix('Value error, ')}{value}"


def _names_in(place: tuple[int | str, ...]) -> list[str]:
    """Return the entries of a section, by its place such as ("stages", 0, "loss")."""
    sections: dict[str, type[BaseModel]] = {
        "model": ModelSection,
        "data": DataSection,
        "lpips": LpipsSection,
        "stages": Stage,
        "loss": LossSection,
    }
    names = [part for part in place if isinstance(part, str)]
    return list((sections[names[-1]] if names else Recipe).model_fields)
