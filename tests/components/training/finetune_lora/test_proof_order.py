"""Rows of like length share a step, every row comes once, and the order depends on seed and epoch alone."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_finetune.components.training.finetune_lora.order import EpochLengthSampler


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=300), batch=st.integers(1, 9), epoch=st.integers(0, 3)
)
def test_every_row_comes_once_and_the_longest_at_once(lengths, batch, epoch):
    sampler = EpochLengthSampler(batch, lengths, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert list(sampler) == order
    whole = len(lengths) // batch * batch
    if whole:
        assert max(lengths[row] for row in order[:batch]) == max(lengths[row] for row in order[:whole])


def test_a_step_is_little_padded_and_short_and_long_steps_alternate():
    generator = random.Random(0)
    lengths = [min(max(round(generator.lognormvariate(4.36, 0.75)), 24), 1024) for _ in range(48)]
    order = list(EpochLengthSampler(8, lengths, seed=42))
    steps = [[lengths[row] for row in order[i : i + 8]] for i in range(0, 48, 8)]
    assert sum(lengths) / sum(8 * max(step) for step in steps) > 0.75  # in random order less than half
    longest = [max(step) for step in steps]
    assert longest != sorted(longest, reverse=True)


def test_epochs_and_seeds_differ():
    lengths = [1 + row % 37 for row in range(100)]
    orders = set()
    for seed in (1, 7):
        sampler = EpochLengthSampler(4, lengths, seed)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 4
