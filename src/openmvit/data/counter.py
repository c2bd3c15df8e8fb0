"""Random numbers as a function of where they are used: one generator per (seed, epoch, sample, copy)."""

from __future__ import annotations

import torch

_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """Hash of integers to 0..2**64 - 1; every value goes through the SplitMix64 finaliser, so neighbours part at once.

    The same in every process and Python version, unlike `hash`.
    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014.
    """
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def sample_generator(seed: int, epoch: int, index: int, copy: int = 0) -> torch.Generator:
    """The generator of one augmented copy of one sample; equal arguments give equal draws in any process and order.

    torch seeds its CPU generator with 32 of the 64 bits, so among billions of samples two may share their draws.
    """
    generator = torch.Generator()
    generator.manual_seed(mix(seed, epoch, index, copy))
    return generator
