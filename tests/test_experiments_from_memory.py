"""Keys and values come from memory, and one speed of memory is found."""

import itertools

import torch

from mistral_lab.experiments import from_memory


def test_the_speed_of_memory_is_found_once_and_no_processor_keeps_what_is_read():
    assert from_memory.memory_speed(2) == from_memory.memory_speed(2) > 0
    ring = from_memory.Ring(torch.bfloat16, 32, 4096)
    places = [ring.layer(8)[0].data_ptr() for _ in range(40)]
    [distance] = {b - a for a, b in itertools.pairwise(i for i, place in enumerate(places) if place == places[0])}
    assert distance * 2 * 8 * 4096 * 128 * 2 >= 2**28  # read in between, in bytes: 8 times a cache of 32 MiB
