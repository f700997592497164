"""Compiles the kernels that a function launches for a GPU that need not be there."""

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class Compiled(NamedTuple):
    shared_memory: int  # bytes a program needs
    registers: int  # a thread
    instructions: list[str]  # of the GPU itself, such as "0a30 HGMMA.64x128x16.F32 R24, gdesc[UR8]"

    def loop_around(self, instruction: str) -> list[str]:
        """Return the shortest loop that contains an instruction."""
        places = [int(line.split()[0], 16) for line in self.instructions]
        loops = []
        for end, line in enumerate(self.instructions):
            jump = re.search(r"\bBRA\b.* 0x([0-9a-f]+)", line)
            if jump is not None and int(jump[1], 16) < places[end]:
                body = self.instructions[places.index(int(jump[1], 16)) : end + 1]
                if any(instruction in each for each in body):
                    loops.append(body)
        return min(loops, key=len)


def compile_launches(module: ModuleType, kernel_name: str, launch: Callable[[], object]) -> list[Compiled]:
    """Run `launch` on tensors of the CPU, and compile what it would have run of `module`'s kernel instead."""
    kernel = getattr(module, kernel_name)
    launches: list[Compiled] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert 0 < grid[0] < 2**31
            return lambda *values, **named: launches.append(_compile(kernel, values, named))

    with mock.patch.object(module, kernel_name, Recorder()):
        launch()
    return launches


def _compile(kernel: Any, values: tuple[Any, ...], named: dict[str, Any]) -> Compiled:
    arguments = {**dict(zip(kernel.arg_names, values, strict=False)), **named}
    options = {name: arguments.pop(name) for name in list(arguments) if name not in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}
    for parameter in kernel.params:
        value = arguments[parameter.name]
        aligned = False
        if isinstance(value, torch.Tensor):
            kind = f"*{TYPES[value.dtype]}"
            aligned = value.data_ptr() % 16 == 0
        elif isinstance(value, TensorDescriptor):
            kind = f"tensordesc<{TYPES[value.base.dtype]}{value.block_shape}>".replace(" ", "")
        elif value is None or parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
            kind = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, float):
            kind = "fp32"
        else:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0 and not parameter.do_not_specialize
        signature[parameter.name] = kind
        if aligned:
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=HOPPER, options=options)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(compiled.asm["cubin"])
        usage, code = (
            subprocess.run([knobs.nvidia.cuobjdump.path, question, binary], capture_output=True, text=True, check=True)
            for question in ("-res-usage", "-sass")
        )
    registers = re.search(r"REG:(\d+)", usage.stdout + usage.stderr)
    assert registers is not None, usage
    instructions = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?)\s*;", code.stdout)
    return Compiled(compiled.metadata.shared, int(registers[1]), [" ".join(each) for each in instructions])
