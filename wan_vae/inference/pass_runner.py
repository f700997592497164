"""The passes of one clip with the caches between them: as CUDA graphs, and smaller where memory runs out."""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from itertools import chain

import torch
from torch import Tensor

from wan_vae.inference.chunk_size import ChunkSize
from wan_vae.inference.input_history import InputHistory
from wan_vae.inference.tiling import TiledHalo
from wan_vae.model.autoencoder import Autoencoder
from wan_vae.model.halo import CachedHalo, Halo, Neighbors, NoNeighbors
from wan_vae.model.layers import is_altered
from wan_vae.ops import needs_plain_ops
from wan_vae.ops.cuda_graph import CapturedPass, CudaGraph, borrow, can_capture, drop_idle, give_back, give_up

Network = Callable[[Tensor, Halo], Tensor]

# The first pass after the clip's first frame fills caches, the second one reads them all; later ones are alike.
_RUNS_BEFORE_CAPTURE = 2
_ONE_FRAME = 1  # bytes of tensors that stages split by frames, of which they take one at least


class PassRunner:
    """Runs the passes of a clip: its first frame alone, then several frames at a time.

    Args:
        model: The model, which must not change during the clip.
        network: Computes a pass from (B, C, n, H, W) and a halo.
        constants: The tensors that it reads besides the weights.
        kind: Tells functions and modes of one model apart.
        chunk_size: How the clip is cut into passes.
        in_frames: Frames of the input per latent after the first one.
        history: Keeps the inputs that a pass may have to be repeated from.
        neighbors: The holders of the pixels around the clip; None for none.
        device: Where the clip is.

    Attributes:
        halo: The caches.
    """

    def __init__(
        self,
        model: Autoencoder,
        network: Network,
        constants: object,
        *,
        kind: Hashable,
        chunk_size: ChunkSize,
        in_frames: int,
        history: InputHistory,
        neighbors: Neighbors | None,
        device: torch.device,
    ) -> None:
        graphs = chunk_size.launch_bound and can_capture(device) and not needs_plain_ops() and _is_plain(model)
        self._model = model
        self._network = network
        self._constants = constants
        self._kind = kind
        self._chunk_size = chunk_size._replace(launch_bound=graphs)
        self._in_frames = in_frames
        self._history = history
        self._neighbors = neighbors
        self._has_run_out = False
        self._captured: CapturedPass | None = None
        self._addresses: tuple[int, ...] = ()  # of the weights that the graph reads
        self._runs: Counter[int] = Counter()
        self.halo = self._new_halo()

    def next_pass(self, frames: int) -> int:
        """Return how many of the next frames the next pass takes; 0 if they make up no latent."""
        if self.halo.at_start:
            return min(frames, 1)
        return min(frames // self._in_frames * self._in_frames, self._chunk_size.frames)

    def run(self, x: Tensor, passed: int, recent: int) -> Tensor | None:
        """Compute a pass; where memory runs out and smaller ones may fit, drop the caches and return None.

        `recompute_caches` must follow then.

        Args:
            x: The input, as many frames as `next_pass` says.
            passed: Frames that passed in earlier pushes, of which the history keeps the last.
            recent: Frames that passed since, which `recompute_caches` will be given.

        Raises:
            torch.cuda.OutOfMemoryError: No smaller pass may fit, or too few inputs are known.
        """
        try:
            result = self._network(x, self.halo) if not self._chunk_size.launch_bound else self._run_on_gpu(x)
        except torch.cuda.OutOfMemoryError:
            if not self._history.covers(passed, recent) or not self._shrink():
                raise
        else:
            self.halo.advance()
            return result
        # Here the error is gone, whose traceback referred to the tensors of the pass.
        self._captured = None
        self._runs.clear()
        self.halo = self._new_halo()
        drop_idle()
        torch.cuda.empty_cache()
        return None

    def recompute_caches(self, passed: int, recent: Tensor) -> None:
        """Fill the empty caches by passes over inputs whose results are known; the last of them are `recent`."""
        inputs, start = self._history.last(recent), 0
        while start < inputs.shape[2]:
            count = self.next_pass(inputs.shape[2] - start)
            done = self.run(inputs[:, :, start : start + count].to(recent.device), passed, recent.shape[2])
            start = 0 if done is None else start + count

    def check_weights(self) -> None:
        """Drop a graph that reads weights which were replaced since."""
        if self._captured is not None and self._addresses != self._weight_addresses():
            self._captured = None

    def close(self, *, interrupted: bool) -> None:
        """Leave the graph to other streams, unless a pass was interrupted."""
        if self._captured is not None and not interrupted and type(self.halo) is CachedHalo:
            give_back(self._model, self._captured)
        self._captured = None

    def _new_halo(self) -> CachedHalo:
        tiling = self._chunk_size.tiling
        halo = CachedHalo(self._neighbors) if tiling is None else TiledHalo(tiling, self._neighbors, streaming=True)
        halo.tensor_bytes = self._chunk_size.tensor_bytes
        return halo

    def _shrink(self) -> bool:
        """Make passes smaller if that is possible: by latents, then by the frames that levels take at a time."""
        latents, tensor_bytes = self._chunk_size.frames // self._in_frames, self._chunk_size.tensor_bytes
        # Other ranks would have to do so at the same pass, and random dropout would not repeat itself.
        if not isinstance(self.halo.neighbors, NoNeighbors) or self._model.training:
            return False
        if not self._has_run_out:
            # Without the caches and the gaps between them, a pass of the same size may fit.
            self._has_run_out = True
            logging.getLogger("wan_vae").warning(
                f"Memory ran out with latents_per_pass={latents}; the pass is repeated, in smaller ones if it must be,"
                " and the result stays the same."
            )
            return True
        if latents > 1:
            tensor_bytes = None if tensor_bytes is None else tensor_bytes // 2
        elif self._chunk_size.tiling is None and tensor_bytes != _ONE_FRAME:
            tensor_bytes = _ONE_FRAME
        else:
            return False
        frames = max(1, latents // 2) * self._in_frames
        self._chunk_size = self._chunk_size._replace(frames=frames, tensor_bytes=tensor_bytes, launch_bound=False)
        return True

    def _run_on_gpu(self, x: Tensor) -> Tensor:
        """Compute a pass that is launch bound, as a CUDA graph if an earlier stream left one, or from the third on."""
        if self._captured is None and not self.halo.at_start:
            key = self._capture_key(x)
            captured = borrow(self._model, key)
            if captured is not None and captured.state.adopt(self.halo):
                self._captured, self.halo = captured, captured.state
                self._addresses = self._weight_addresses()
            elif captured is not None:  # some caches are filled by the second pass only
                give_back(self._model, captured)
            elif self._runs[x.shape[2]] == _RUNS_BEFORE_CAPTURE:
                self._capture(x, key)
            else:
                self._runs[x.shape[2]] += 1
        if self._captured is not None and self._captured.graph.supports(x):
            return self._captured.graph(x)
        return self._network(x, self.halo)

    def _capture(self, x: Tensor, key: Hashable) -> None:
        network, halo = self._network, self.halo  # not this object: a reference cycle would keep it alive
        try:
            graph = CudaGraph(lambda chunk: network(chunk, halo), x)
        except torch.cuda.OutOfMemoryError:
            raise
        # Drivers and libraries raise errors of many classes; one kernel after another computes the same.
        except Exception as error:
            give_up(x.device, error)
            self._chunk_size = self._chunk_size._replace(launch_bound=False)
            return
        self._captured = CapturedPass(key, graph, halo, self._constants, graph.nbytes + halo.cached_bytes + x.nbytes)
        self._addresses = self._weight_addresses()

    def _capture_key(self, x: Tensor) -> Hashable:
        """Return what a captured pass depends on. Work on another CUDA stream would not be ordered after it."""
        stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
        modules = tuple(map(id, self._model.modules()))
        fixed = self._kind, self._chunk_size.tensor_bytes, self._chunk_size.tiling, stream, _switches()
        return x.shape, x.dtype, x.device, *fixed, modules, self._weight_addresses()

    def _weight_addresses(self) -> tuple[int, ...]:
        return tuple(weight.data_ptr() for weight in chain(self._model.parameters(), self._model.buffers()))


def _is_plain(model: Autoencoder) -> bool:
    """Whether a graph computes what the modules do: it calls no hooks, and keeps numbers of Python as they were.

    Modules of other packages, such as adapters, may compute with such numbers.
    """
    return all(
        not is_altered(module) and (module is model or type(module).__module__.startswith(("wan_vae.", "torch.nn.")))
        for module in model.modules()
    )


def _switches() -> tuple[object, ...]:
    """Return PyTorch's switches by which it chooses kernels, which a graph keeps as they were."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        *(cudnn.enabled, cudnn.deterministic, cudnn.benchmark),
        *(torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        *(matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction),
    )
