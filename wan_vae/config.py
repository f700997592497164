"""The architecture as one frozen dataclass, the presets shipped as YAML files, and the YAML reader."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import yaml

from wan_vae.arguments import shown
from wan_vae.errors import UserError

_LARGEST_YAML = 2**17  # bytes; PyYAML takes about a second for as many
_MOST_YAML_VALUES = 2**17

MODEL_OF_CHANNELS = {16: "wan2.1", 48: "wan2.2"}
"""The preset of latents with so many channels, where nothing names their model."""

BLOCK_KINDS = ("wan", "resnet", "bottleneck", "preact", "dense", "plain")


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The architecture of one VAE.

    Where nothing else is said, whole numbers are from 1 to 4096; those of blocks, dense layers, patches and upscaling
    from 1 to 64.

    Attributes:
        latent_channels: Channels z of the latents; the encoder emits 2 z, mean and log-variance. With a linear skip at
            most the values of a block of pixels, image_channels * spatial_compression ** 2.
        encoder_width: Channels after the encoder's first convolution.
        decoder_width: Channels before the decoder's last convolution.
        width_multipliers: Channels of each level, highest resolution first, as multiples of the width; 1 to 8 levels.
        blocks_per_level: Residual blocks in each level of the encoder; the decoder has one more. One number for all
            levels, or one for each, highest resolution first; equal ones become one number.
        temporal_downsample: For each step between two levels, true if it halves time in addition to space.
        level_shortcuts: Wan2.2's levels: each has a parameter-free shortcut, and upsampling keeps the width (in Wan2.1
            it halves the width).
        patch_size: Side of the square patches of pixels that are moved to the channels (2 in Wan2.2).
        output_upscale: Side of the decoder's output per side of the encoder's input (2 in the 2x-upscaling decoder).
        dropout: Probability of dropping a value inside a residual block while training, in [0, 1).
        block: Kind of the residual blocks, one of `BLOCK_KINDS`.
        latent_mean: Mean of each raw latent channel over the training data.
        latent_std: Standard deviation of each raw latent channel over the training data, above 0.
        image_channels: Channels of the pictures: 3 for RGB, 4 for RGB and alpha.
        images_only: The model knows single pictures only (Qwen-Image-2.1): its kernels have no past frames.
        linear_skip: A linear map of blocks of pixels to latents around the encoder, and one back around the decoder,
            which the network learns the difference from.
        middle_attention: Attention among the pixels of a frame at the lowest resolution, at a cost that grows with the
            square of their number; without it, every result depends on its surroundings alone.
        bottleneck_ratio: Output width of a `bottleneck` block per width of its 3x3x3 convolution.
        dense_growth: Channels that each layer of a `dense` block adds.
        dense_layers: Layers of a `dense` block.

    Raises:
        UserError: A value is out of range, or two values contradict each other.
    """

    latent_channels: int
    encoder_width: int
    decoder_width: int
    width_multipliers: tuple[int, ...]
    blocks_per_level: int | tuple[int, ...]
    temporal_downsample: tuple[bool, ...]
    level_shortcuts: bool
    patch_size: int
    output_upscale: int
    dropout: float
    block: str
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    image_channels: int = 3
    images_only: bool = False
    linear_skip: bool = False
    middle_attention: bool = True
    bottleneck_ratio: int = 4
    dense_growth: int = 32
    dense_layers: int = 4

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            largest = _LARGEST_OF.get(field.name, _LARGEST)
            if not _is_of_type(value, field.type, largest):
                raise UserError(
                    f"{field.name} is {shown(value)}; it must be {_TYPE_NAMES[field.type].format(largest)}."
                )
        if self.block not in BLOCK_KINDS:
            raise UserError(f"block is {self.block!r}; the kinds are {', '.join(BLOCK_KINDS)}.")
        if self.image_channels not in (3, 4):
            raise UserError(f"image_channels is {self.image_channels}; it must be 3 (RGB) or 4 (RGB and alpha).")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it must be in [0, 1).")
        if not 1 <= len(self.width_multipliers) <= 8:
            raise UserError(f"width_multipliers is {list(self.width_multipliers)}; there can be 1 to 8 levels.")
        if len(self.temporal_downsample) != len(self.width_multipliers) - 1:
            raise UserError(
                f"temporal_downsample has {len(self.temporal_downsample)} entries; {len(self.width_multipliers)} levels"
                f" have {len(self.width_multipliers) - 1} steps between them."
            )
        if isinstance(self.blocks_per_level, tuple):
            if len(self.blocks_per_level) != len(self.width_multipliers):
                counts = len(self.blocks_per_level), len(self.width_multipliers)
                raise UserError(f"blocks_per_level has {counts[0]} entries for {counts[1]} levels.")
            if len(set(self.blocks_per_level)) == 1:
                object.__setattr__(self, "blocks_per_level", self.blocks_per_level[0])
        if self.linear_skip and self.latent_channels > (least := self.image_channels * self.spatial_compression**2):
            raise UserError(
                f"latent_channels is {self.latent_channels}; with linear_skip there can be {least}, the values of a"
                " block of pixels."
            )
        self._check_widths()
        for name in ("latent_mean", "latent_std"):
            if (count := len(getattr(self, name))) != self.latent_channels:
                raise UserError(f"{name} has {count} values for {self.latent_channels} latent channels.")
        if min(self.latent_std) < _SMALLEST_STD:
            raise UserError(
                f"latent_std holds {min(self.latent_std)}; standard deviations are positive, {_SMALLEST_STD} or more."
            )

    def _check_widths(self) -> None:
        multipliers = self.width_multipliers
        if not self.level_shortcuts:
            odd = [self.decoder_width * m for m in multipliers[1:] if self.decoder_width * m % 2]
            if odd:
                raise UserError(f"a decoder level is {odd[0]} channels wide; upsampling halves it, so it must be even.")
            return
        # The encoder's shortcuts average groups of whole channels, the decoder's repeat whole channels.
        folds = [8 if temporal else 4 for temporal in self.temporal_downsample]
        encoder = zip((1, *multipliers), multipliers, (*folds, 1), strict=False)
        decoder = zip((multipliers[-1], *multipliers[:0:-1]), multipliers[:0:-1], folds[::-1], strict=False)
        for narrow, wide, fold in (*encoder, *((out, into, fold) for into, out, fold in decoder)):
            if narrow * fold % wide:
                raise UserError(
                    f"width_multipliers is {list(multipliers)}; a level's shortcut folds {narrow} * {fold} widths of"
                    f" channels, space and time to {wide}, which does not divide them."
                )

    @property
    def spatial_compression(self) -> int:
        """Side of the input, in pixels, per side of the latents."""
        return int(self.patch_size * 2 ** (len(self.width_multipliers) - 1))

    @property
    def temporal_compression(self) -> int:
        """Frames per latent, except for the first latent, which holds one frame; 1 for a model of single pictures."""
        return 1 if self.images_only else int(2 ** sum(self.temporal_downsample))

    @property
    def level_blocks(self) -> tuple[int, ...]:
        """Residual blocks in each level of the encoder, highest resolution first; the decoder has one more."""
        blocks = self.blocks_per_level
        return (blocks,) * len(self.width_multipliers) if isinstance(blocks, int) else blocks

    @property
    def input_channels(self) -> int:
        """Channels of the encoder's first convolution."""
        return self.image_channels * self.patch_size**2

    @property
    def output_channels(self) -> int:
        """Channels of the decoder's last convolution."""
        return self.input_channels * self.output_upscale**2

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types; `VAEConfig(**config.to_dict()) == config`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Any, *, origin: str) -> "VAEConfig":
        """Build a config from untrusted values; error messages name `origin` as their source.

        Raises:
            UserError: `values` is no mapping, has missing or unknown fields, or values that `VAEConfig` refuses.
        """
        if not isinstance(values, Mapping):
            raise UserError(
                f"{origin} does not describe an architecture: it is {shown(values)}, not names with values."
            )
        try:
            return cls(**values)
        except (TypeError, UserError) as error:
            message = str(error).replace("VAEConfig.__init__() ", "")
            raise UserError(f"{origin} does not describe an architecture: {message}") from error


_LARGEST = 4096
_LARGEST_OF = {"blocks_per_level": 64, "patch_size": 64, "output_upscale": 64, "dense_layers": 64}
_LARGEST_FLOAT = 3e38  # of float32
_SMALLEST_STD = 1e-30  # below, a latent divided by it overflows float32
_TYPE_NAMES: dict[Any, str] = {
    int: "a whole number from 1 to {}",
    bool: "true or false",
    float: "a finite number",
    str: "a word",
    tuple[int, ...]: "a list of whole numbers from 1 to {}",
    int | tuple[int, ...]: "a whole number from 1 to {0}, or a list of them",
    tuple[bool, ...]: "a list of true and false",
    tuple[float, ...]: "a list of finite numbers (in YAML, 0.001 or 1.0e-3)",
}


def _is_of_type(value: object, kind: object, largest: int) -> bool:
    if isinstance(kind, UnionType):
        return any(_is_of_type(value, one, largest) for one in get_args(kind))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest
    if kind is float:
        # An integer may be too large for a float, but not to be compared with one; NaN compares as false.
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST_FLOAT
    if isinstance(kind, type) and not get_args(kind):
        return isinstance(value, kind)
    return isinstance(value, tuple) and all(_is_of_type(item, get_args(kind)[0], largest) for item in value)


def config_folder() -> Path:
    """Return the folder of YAML files: inside the package if installed, next to it in a clone."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def recipe_names() -> list[str]:
    """Return the names of the shipped training recipes."""
    return sorted(path.stem for path in (config_folder() / "train").glob("*.yaml"))


def preset_names() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def read_preset(name_or_path: str | Path) -> dict[str, Any]:
    """Return the YAML of a shipped preset, such as "wan2.1", or of a file, as a dictionary with key `architecture`.

    A trained preset also has `file`, the name of a file in `wan_vae/weights`, or `hub`, a repository and a file in it.

    Raises:
        UserError: There is no such preset or file, or it is not YAML with an `architecture`.
    """
    shipped = str(name_or_path) in preset_names()
    path = config_folder() / f"{name_or_path}.yaml" if shipped else Path(name_or_path)
    missing = f"{name_or_path} is neither a preset ({', '.join(preset_names())}) nor a YAML file."
    content = read_yaml(path, missing=missing)
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), dict):
        raise UserError(f"{path} has no section `architecture`.")
    return content


def load_config(name_or_path: str | Path) -> VAEConfig:
    """Return the architecture of a preset or of a YAML file (see `read_preset`)."""
    return VAEConfig.from_dict(read_preset(name_or_path)["architecture"], origin=str(name_or_path))


def read_yaml(path: Path, *, missing: str) -> Any:
    """Return the content of a YAML file; `missing` is the error message if there is no such file.

    Raises:
        UserError: There is no such file, it cannot be read, it is not YAML, or it is too large for settings.
    """
    try:
        if not path.is_file():  # reading a pipe or a device might never end
            raise UserError(f"{path} is not a YAML file: it is no regular file." if path.exists() else missing)
        with path.open("rb") as file:
            text = file.read(_LARGEST_YAML + 1)
        if len(text) > _LARGEST_YAML:
            raise UserError(f"{path} is not a YAML file of settings: it is larger than {_LARGEST_YAML} bytes.")
        loader = yaml.SafeLoader(text.decode())
        node = loader.get_single_node()
        _check_aliases(node, path)
        return None if node is None else loader.construct_document(node)
    except UserError:
        raise
    except (ArithmeticError, OSError, RecursionError, TypeError, ValueError, yaml.YAMLError) as error:
        # Not only YAMLErrors: PyYAML recognizes dates and numbers that Python cannot hold.
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error


def _check_aliases(node: yaml.Node | None, path: Path) -> None:
    """Raise a UserError for aliases of aliases that multiply: a small file can stand for more than memory can hold."""
    waiting: list[Any] = [] if node is None else [node]
    count = 0
    while waiting:
        count += 1
        if count > _MOST_YAML_VALUES:
            raise UserError(f"{path} is not a YAML file of settings: its aliases stand for too many values.")
        value = waiting.pop().value
        if isinstance(value, list):  # of nodes, or of pairs of nodes
            waiting += [item for entry in value for item in (entry if isinstance(entry, tuple) else (entry,))]
