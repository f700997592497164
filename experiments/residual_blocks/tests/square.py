"""A job that takes no time, in a module that a new process imports fast."""

import time

import torch

from experiments.residual_blocks.settings import Frozen

SLOW = 1000


class Squared(Frozen):
    value: int
    threads: int


class Square(Frozen):
    number: int

    @property
    def name(self) -> str:
        return "square"

    def run(self) -> Squared:
        if self.number == 3:
            raise KeyboardInterrupt
        if self.number == SLOW:
            time.sleep(600)
        return Squared(value=self.number**2, threads=torch.get_num_threads())
