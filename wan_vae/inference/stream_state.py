"""The format of a stream's state, as tensors by name, and the checks that it belongs to a stream.

The entry "stream" is JSON in bytes, because safetensors files hold only tensors: the format's version, the direction,
the model's config, and the dtype and shape of every other entry. The entry "weights" holds checksums of the weights.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wan_vae.arguments import check_type, shown
from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.inference.passes import Direction
from wan_vae.validation import check_tensor

VERSION = 1

_CLASSES = {"encode": "EncodeStream", "decode": "DecodeStream"}
_SAMPLE = 1024
_MOST_BYTES = 2**24  # of the entry "stream"
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def identified_state(
    content: Mapping[str, Tensor], direction: Direction, config: VAEConfig, half: Iterable[nn.Module]
) -> dict[str, Tensor]:
    """Return `content` with entries that identify its stream.

    Args:
        content: The state, by name.
        direction: "encode" or "decode".
        config: The model's architecture.
        half: The modules whose weights the stream uses.
    """
    described = {
        "version": VERSION,
        "direction": direction,
        "config": config.to_dict(),
        "entries": {name: _described(tensor) for name, tensor in content.items()},
    }
    text = json.dumps(described).encode()
    stream = torch.tensor(list(text), dtype=torch.uint8, device="cpu")
    return {"stream": stream, "weights": _sums_of_weights(half), **content}


def checked_state(
    state: Mapping[str, Tensor], direction: Direction, config: VAEConfig, half: Iterable[nn.Module]
) -> dict[str, Tensor]:
    """Return the content of a state from `identified_state`, checked to be complete and of this stream and model.

    Raises:
        UserError: It is of the other direction, of another model, other weights or another dtype, or entries are
            missing, misshapen or in excess.
    """
    described = _description(state)
    if described["direction"] != direction:
        other = _CLASSES[described["direction"]]
        raise UserError(f"The state is of a stream that is to {described['direction']}; load it into a new {other}.")
    for name, value in config.to_dict().items():
        theirs = described["config"].get(name)
        if theirs != value:
            given = theirs if isinstance(theirs, str) else shown(theirs)
            raise UserError(f"The state is of a model whose {name} is {given} and not {value}; take that model.")
    weights, ours = _entry(state, "weights").cpu(), _sums_of_weights(half)
    if _described(weights) != _described(ours) or not torch.equal(weights, ours):
        raise UserError(
            "The state is of a model with the same config but other weights or another dtype; take the same checkpoint"
            " and dtype."
        )
    for name, expected in described["entries"].items():
        found = _described(_entry(state, name))
        if found != expected:
            text = expected if isinstance(expected, str) else shown(expected)
            raise UserError(f"The state's entry {name!r} is {found} and not {text}; take the state as it was.")
    content = {name: tensor for name, tensor in state.items() if name not in ("stream", "weights")}
    excess = content.keys() - described["entries"].keys()
    if excess:
        first = shown(min(excess, key=str))
        raise UserError(f"The state has an entry {first} that its stream did not have; take the state as it was.")
    # Before the first chunk there is no content.
    if content and _described(_entry(content, "position")) != _described(torch.tensor(0, device="cpu")):
        raise UserError("The state's entry 'position' is no whole number; take the state as it was.")
    if content:
        _entry(content, "waiting")
    return content


def _description(state: Mapping[str, Tensor]) -> dict[str, Any]:
    check_type("state", state, Mapping, "what a stream's state_dict() returned")
    stream = _entry(state, "stream")
    try:
        described: dict[str, Any] = json.loads(bytes(stream.tolist() if stream.numel() < _MOST_BYTES else ()))
        version = described["version"]
        known = version != VERSION or (
            described["direction"] in _CLASSES
            and isinstance(described["config"], dict)
            and isinstance(described["entries"], dict)
        )
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise UserError("The state's entry 'stream' is damaged; take the state as it was.") from error
    if version != VERSION:
        raise UserError(f"The state is of version {shown(version)}; this program reads version {VERSION}.")
    if not known:
        raise UserError("The state's entry 'stream' is damaged; take the state as it was.")
    return described


def _entry(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise UserError(f"The state has no entry {name!r}; take all that a stream's state_dict() returned.")
    check_tensor(state[name], f"The state's entry {name!r} is")
    if state[name].is_meta:
        raise UserError(f"The state's entry {name!r} is on the meta device, without values; take the state as it was.")
    return state[name]


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"


def _sums_of_weights(half: Iterable[nn.Module]) -> Tensor:
    """Return a checksum of every tensor of weights, as integers (n,): exact in any order and on any device.

    Large tensors are sampled: training changes them everywhere, and states may be saved often.
    """
    sums = []
    for module in half:
        for tensor in module.state_dict().values():
            sample = tensor.detach().flatten()[:: max(1, tensor.numel() // _SAMPLE)]
            sums.append(sample.view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64))
    return torch.stack(sums).cpu()
