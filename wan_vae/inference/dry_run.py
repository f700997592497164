"""Plans for calls: what a call would take is found by a dry run on the meta device, where nothing is computed."""

import copy
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from wan_vae.arguments import check_count, check_flag, shown
from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget, parse_bytes
from wan_vae.inference.chunk_size import check_latents_per_pass, choose_chunk_size
from wan_vae.inference.passes import Direction, decode_video, encode_moments, open_stream
from wan_vae.inference.planner import Part, Plan, PlanRequest, choose
from wan_vae.inference.tiling import Tiling
from wan_vae.model.autoencoder import Autoencoder
from wan_vae.model.halo import Halo, NoNeighbors
from wan_vae.model.layers import is_altered
from wan_vae.model.stages import LocalStage
from wan_vae.ops import needs_plain_ops
from wan_vae.ops.cpu.build import ensure_kernels, library
from wan_vae.ops.cpu.kernels import processor_has_amx
from wan_vae.ops.memory_estimator import MemoryEstimator
from wan_vae.ops.triton import expects_triton
from wan_vae.validation import check_video_size

# After the first latent and this many passes, everything that is held has its final size.
_PASSES = 3
# Latent pixels to a side in the run that counts operations, which are proportional to the pixels.
_COUNTING_SIDE = 4
_MAX_REQUESTS = 64
# More pixels than a machine can hold as a clip, and few enough that sizes in bytes stay whole numbers of 64 bits.
_MOST_PIXELS = 2**40
_LARGEST_SIDE = 2**16
# Of streams, more than which make no pass faster.
_MAX_LATENTS = 2**10
_requests: OrderedDict[Hashable, PlanRequest] = OrderedDict()


def make_plan(
    model: Autoencoder,
    direction: Direction,
    x: Tensor,
    latents_per_pass: int | None,
    memory: Budget,
    *,
    streaming: bool = False,
    device: torch.device | None = None,
    part: Part | None = None,
) -> Plan:
    """Return how a call keeps to a budget. The dry runs behind it are kept for later calls of the same size.

    Args:
        model: The model.
        direction: "encode" or "decode".
        x: The call's input, or the first chunk of a stream; only shape and dtype are read.
        latents_per_pass: Latents per pass at most; default as without a budget.
        memory: What the call may take in addition to the loaded model and `x`.
        streaming: Whether the clip is a stream, whose length does not matter.
        device: Where the call runs; default the device of the weights.
        part: The part of the picture that is computed there; default all of it.

    Raises:
        UserError: The budget is too small, or the call's memory cannot be predicted.
    """
    if not isinstance(direction, str) or direction not in ("encode", "decode"):
        raise UserError(f"The direction is {shown(direction)}; it must be 'encode' or 'decode'.")
    if model.training:
        raise UserError("A budget of memory is for eval mode; call vae.eval() first.")
    if needs_plain_ops():
        raise UserError(
            "A budget of memory leaves no gradients, tangents, graphs or autocast; call this in torch.no_grad() alone."
        )
    device = model.device if device is None else device
    if device.type == "cpu":
        ensure_kernels()
    budget = parse_bytes(memory, device)
    chosen = check_latents_per_pass(latents_per_pass)
    part = Part() if part is None else part
    config, decodes = model.config, direction == "decode"
    streaming = streaming and not config.images_only
    scale, rate = (config.spatial_compression, config.temporal_compression) if decodes else (1, 1)
    batch, _, length, height, width = x.shape
    _check_size(batch, 1 if streaming else length * rate, height * scale, width * scale)
    side, unit = (1, 1) if decodes else (config.spatial_compression, config.temporal_compression)
    frame = torch.empty((*x.shape[:2], 1, *x.shape[3:]), dtype=x.dtype, device="meta")
    pixels = part.cut(frame)[:, :1].numel() // side**2
    free = None if isinstance(part.neighbors, NoNeighbors) else 0
    latents = choose_chunk_size(model, pixels, chosen, device=device, free=free).frames
    latents = min(latents, _MAX_LATENTS if streaming else -(-length // unit))
    shape = (*x.shape[:2], _PASSES * latents * unit + 1 if streaming else x.shape[2], *x.shape[3:])
    key = (
        *(_fingerprint(model), direction, shape, x.dtype, latents, streaming, str(device), part.key),
        *(library() is not None, processor_has_amx(), torch.get_num_threads()),
        expects_triton(device, x.dtype),
    )
    if key not in _requests:
        _requests[key] = _request(model, direction, shape, x.dtype, latents, streaming, device, part)
        if len(_requests) > _MAX_REQUESTS:
            _requests.popitem(last=False)
    _requests.move_to_end(key)
    return choose(_requests[key], budget)


def dummy_input(
    model: Autoencoder,
    direction: Direction,
    *,
    batch: int,
    frames: int,
    height: int,
    width: int,
    streaming: bool,
) -> Tensor:
    """Return the input of a call for a video of this size, on the meta device; for a stream, a short first chunk.

    Raises:
        UserError: The model does not take such a video.
    """
    check_flag("streaming", streaming)
    config = model.config
    side, unit = config.spatial_compression, config.temporal_compression
    check_count("frames", frames, high=_MOST_PIXELS)
    _check_size(batch, 1 if streaming else frames, height, width)
    check_video_size(frames, height, width, config, whole=True)
    frames = min(frames, 1 + unit) if streaming else frames
    # Frames and latents from files are float32 even where the weights are narrower, and converted copies count.
    wide = torch.promote_types(model.decoder_dtype if direction == "decode" else model.dtype, torch.float32)
    if direction == "decode":
        shape = batch, config.latent_channels, 1 + (frames - 1) // unit, height // side, width // side
    else:
        shape = batch, config.image_channels, frames, height, width
    return torch.empty(shape, dtype=wide, device="meta")


def _check_size(batch: int, frames: int, height: int, width: int) -> None:
    """Raise a UserError if a video has a size that is not planned for."""
    check_count("batch", batch, high=_MOST_PIXELS)
    check_count("frames", frames, high=_MOST_PIXELS)
    check_count("height", height, high=_LARGEST_SIDE)
    check_count("width", width, high=_LARGEST_SIDE)
    if batch * frames * height * width > _MOST_PIXELS:
        raise UserError(
            f"The clip is {batch} x {frames} frames of {width}x{height}; a budget is for {_MOST_PIXELS} pixels in all"
            " at most: pass a longer clip as a stream."
        )


def _fingerprint(model: nn.Module) -> Hashable:
    """Return what tells models apart whose calls take different memory: the modules, and their weights' types."""
    return (
        tuple((name, type(module), is_altered(module)) for name, module in model.named_modules()),
        tuple((tensor.shape, tensor.dtype) for tensor in model.parameters()),
    )


def _request(
    model: Autoencoder,
    direction: Direction,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    latents_per_pass: int,
    streaming: bool,
    device: torch.device,
    part: Part,
) -> PlanRequest:
    config, decodes = model.config, direction == "decode"
    with torch.inference_mode(False), torch.device("meta"):  # estimates leave that mode, but tensors would keep it
        twin = _meta_copy(model)
        x = torch.empty(shape, dtype=dtype)
    unit, out_frames = (1, config.temporal_compression) if decodes else (config.temporal_compression, 1)
    present = [*twin.parameters(), *twin.buffers(), x]
    run = decode_video if decodes else encode_moments

    @cache
    def peak(latents: int, tiling: Tiling | None) -> int:
        longest = 1 + _PASSES * latents * unit
        with MemoryEstimator(device, present) as estimator:
            if streaming:
                stream = open_stream(
                    twin,
                    direction,
                    moments=not decodes,
                    latents_per_pass=latents,
                    tiling=tiling,
                    neighbors=part.neighbors,
                )
                bounds = [(0, 1), *((at, at + latents * unit) for at in range(1, longest, latents * unit))]
                for start, stop in bounds:
                    result = stream.push(part.cut(x[:, :, start:stop]))
                    assert result is not None, "a chunk of whole latents gives a result"
                    part.joined(result)
                    del result
                return estimator.peak
            given = part.cut(x)
            # In whole pictures a clip passes like a stream: a longer one only has a longer result.
            result = run(twin, given if tiling is not None else given[:, :, :longest], latents, tiling, part.neighbors)
            frames = 1 + (x.shape[2] - 1) // unit * out_frames
            passing = estimator.peak
            if frames > result.shape[2]:
                passing += (frames - result.shape[2]) * result[:, :, 0].nbytes
                longer, result_dtype = (*result.shape[:2], frames, *result.shape[3:]), result.dtype
                del result
                result = given.new_empty(longer, dtype=result_dtype)
            part.joined(result)
        return max(passing, estimator.peak)

    half = twin.decoder if decodes else twin.encoder  # plans are kept, and must not keep the model
    side = 1 if decodes else config.spatial_compression
    small = x.new_empty((1, x.shape[1], 1 + _PASSES * unit, _COUNTING_SIDE * side, _COUNTING_SIDE * side))
    with MemoryEstimator(device, [*present, small]) as estimator:
        counter = _OperationCounter(estimator)
        if decodes:
            twin.pixels(small.to(model.decoder_dtype), counter)
        else:
            twin.moments(small.to(model.dtype), counter)
    height, width = (size // side for size in part.cut(x).shape[3:])
    return PlanRequest(
        direction=direction,
        stages=half.local_stages(),
        operations=counter.operations,
        height=height,
        width=width,
        beyond=part.beyond,
        latents_per_pass=latents_per_pass,
        streaming=streaming,
        peak=peak,
    )


def _meta_copy(model: Autoencoder) -> Autoencoder:
    """Return a copy on the meta device of any subclass, with whatever modules were put in or around its own."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        tensors = [*module._buffers.values(), *(value for value in vars(module).values() if isinstance(value, Tensor))]
        memo |= {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors if tensor is not None}
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        # Hooks of profilers and the like have no business in a dry run, but where there are any, memory is needed.
        has_hooks = bool(module._forward_hooks or module._forward_pre_hooks)
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
        if has_hooks:
            module.register_forward_hook(lambda *_: None)
    return twin


class _OperationCounter(Halo):
    """Counts the operations of each local stage.

    Attributes:
        operations: Per stage and pixel of its input.
    """

    def __init__(self, estimator: MemoryEstimator) -> None:
        super().__init__()
        self.operations: list[float] = []
        self._estimator = estimator

    def run_local(self, stages: Sequence[LocalStage], x: Tensor) -> Tensor:
        for stage in stages:
            before, pixels = self._estimator.operations, x.shape[3] * x.shape[4]
            x = stage.run(x, self)
            self.operations.append((self._estimator.operations - before) / pixels)
        return x
