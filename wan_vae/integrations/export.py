"""One chunk of a stream as a function of tensors alone, for `torch.export`, AOTInductor and ONNX.

A stream caches the last frames in front of every causal convolution. Here the caches are inputs and outputs: the first
step takes the clip's first frame, or its first latent, and returns the caches; every following step takes the next
chunk with the caches, and returns its result with new ones. In a row, they give what `encode` and `decode` give.

Examples:
    >>> first, following = export_steps(WanVAE.from_pretrained("nano"), "decode", height=64, width=96)
    >>> frames, *caches = first.module()(latents[:, :, :1])
    >>> more, *caches = following.module()(latents[:, :, 1:2], *caches)
"""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from wan_vae.arguments import check_count, shown
from wan_vae.errors import UserError
from wan_vae.inference.passes import Direction
from wan_vae.model.halo import CachedHalo
from wan_vae.model.layers import CausalConv3d
from wan_vae.model.resample import TemporalStridedConv3d
from wan_vae.posterior import LatentStatistics
from wan_vae.vae import WanVAE
from wan_vae.validation import check_video_size


class StreamStep(nn.Module):
    """A pass of a stream without state, on the parameters of a VAE.

    Encoding takes (B, 3, 1, H, W) first and (B, 3, 4n, H, W) then, in [-1, 1], and gives normalized latents, the
    posterior's mean. Decoding takes normalized latents, (B, z, 1, h, w) first and (B, z, n, h, w) then, and gives
    frames in [-1, 1], one first and 4n then. 4 stands for the temporal compression.

    Args:
        vae: The model.
        direction: "encode" or "decode".
        first: Whether this is the pass of a clip's first frame, before which nothing is cached.
    """

    def __init__(self, vae: WanVAE, direction: Direction, *, first: bool) -> None:
        super().__init__()
        self.vae = vae
        self.first = first
        self._encodes = direction == "encode"
        self._names = [name for name, layer in self._half().named_modules() if _frames_before(layer)]

    def forward(self, x: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Return the result for `x`, then the new caches, (B, C, 1 or 2, H', W') each, in the order they are taken."""
        half = self._half()
        halo = _FilledHalo(dict(zip(map(half.get_submodule, self._names), caches, strict=not self.first)))
        statistics = LatentStatistics.of(self.vae.config, x.dtype, x.device)
        if self._encodes:
            mean, _ = self.vae.quant_conv(half(x, halo)).chunk(2, dim=1)
            result = statistics.normalized(mean)
        else:
            result = half(self.vae.post_quant_conv(statistics.denormalized(x)), halo).clamp(-1, 1)
        # Compiled programs take for granted that inputs lie in memory as those did with which they were exported.
        return result.contiguous(), *(self._cache(name, halo, x).contiguous() for name in self._names)

    def _half(self) -> nn.Module:
        return self.vae.encoder if self._encodes else self.vae.decoder

    def _cache(self, name: str, halo: "_FilledHalo", x: Tensor) -> Tensor:
        layer = self._half().get_submodule(name)
        assert isinstance(layer, nn.Conv3d)
        cached = halo.frames_before(layer)
        if cached is not None:
            return cached
        # Upsampling in time leaves a clip's first frame alone, so that nothing is cached; zeros say the same.
        scale = 2 ** int(name.split(".")[1])
        batch, _, _, height, width = x.shape
        return x.new_zeros(batch, layer.in_channels, _frames_before(layer), height * scale, width * scale)


class _FilledHalo(CachedHalo):
    """The halo of a pass whose caches are given; without any, that of a clip's first frame."""

    def __init__(self, caches: dict[nn.Module, Tensor]) -> None:
        super().__init__()
        self._cache = {layer: [cache] for layer, cache in caches.items()}
        self.at_start = not caches

    def frames_before(self, layer: nn.Module) -> Tensor | None:
        """Return what is cached for a layer, (B, C, n, H, W); None if the layer was not called."""
        return torch.cat(self._cache[layer], dim=2) if layer in self._cache else None


def export_steps(
    vae: WanVAE, direction: Direction, *, height: int, width: int, latents: int = 1, dynamic: bool = False
) -> tuple[ExportedProgram, ExportedProgram]:
    """Export the first and the following step of a stream with `torch.export`, without gradients.

    The programs hold copies of the weights in their dtype and on their device, and are ready for
    `torch._inductor.aoti_compile_and_package`, `torch.onnx.export` and `torch.export.save`. They need torch 2.6. All
    inputs must be contiguous, as the results are: programs of AOTInductor do not look.

    Args:
        vae: The model, in evaluation mode.
        direction: "encode" or "decode".
        height: Of the video, in pixels.
        width: Of the video, in pixels.
        latents: Latents per following step.
        dynamic: Whether the programs take other heights and widths, too.

    Raises:
        UserError: The size does not fit the model, it takes single pictures only, or an argument is not possible.
    """
    if direction not in ("encode", "decode"):
        raise UserError(f"The direction is {shown(direction)}; it must be 'encode' or 'decode'.")
    if vae.training:
        raise UserError("The model is in training mode; call vae.eval() first.")
    config, count = vae.config, check_count("latents", latents)
    if config.images_only:
        raise UserError(
            "This model takes single pictures, so there are no steps of a stream; export a model of videos."
        )
    check_video_size(1, height, width, config, whole=True)
    side = config.spatial_compression
    if direction == "encode":
        sizes = [
            (1, config.image_channels, frames, height, width) for frames in (1, config.temporal_compression * count)
        ]
    else:
        sizes = [(1, config.latent_channels, frames, height // side, width // side) for frames in (1, count)]
    dtype = vae.dtype if direction == "encode" else vae.decoder_dtype
    programs = []
    caches: list[Tensor] = []
    for number, size in enumerate(sizes):
        step = StreamStep(vae, direction, first=number == 0)
        arguments = (torch.zeros(size, dtype=dtype, device=vae.device), *caches)
        sides = {3: Dim.AUTO, 4: Dim.AUTO} if dynamic else {}
        shapes = (sides, tuple(sides for _ in caches)) if caches else (sides,)
        with torch.no_grad():
            program = torch.export.export(step, arguments, dynamic_shapes=shapes, strict=False)
            _, *caches = program.module()(*arguments)
        programs.append(program)
    return programs[0], programs[1]


def _frames_before(layer: nn.Module) -> int:
    """Return how many frames before its input a layer looks at."""
    if isinstance(layer, TemporalStridedConv3d):
        return 1
    return layer.needed.before if isinstance(layer, CausalConv3d) else 0
