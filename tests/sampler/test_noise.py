"""Noise is a pure function of its key, the same on every device, and Gumbel."""

from __future__ import annotations

import itertools

import torch

from services.sampler.engine import noise
from services.sampler.engine.noise import gumbel_from_, gumbel_noise, noise_key

CPU = torch.device("cpu")


def test_a_row_depends_on_its_key_alone() -> None:
    keys = [noise_key(seed, sample, 3) for seed in (-(2**63), -1, 0, 2**63 - 1) for sample in range(4)]
    together = gumbel_noise(keys, 1000, CPU)
    for key, row in zip(keys, together, strict=True):
        assert torch.equal(gumbel_noise([key], 1000, CPU)[0], row)


def test_seed_sample_and_position_each_change_the_key() -> None:
    words = itertools.product((-5, 0, 1, 2**40), (0, 1, 2), (0, 1, 2))
    keys = [noise_key(*triple) for triple in words]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


def test_device_arithmetic_gives_the_bits_of_the_host() -> None:
    keys = [noise_key(seed, 0, 0) for seed in range(-3, 4)]
    assert torch.equal(noise.uniform_on_device(keys, 5000, CPU), noise.uniform_on_host(keys, 5000))


def test_noise_is_gumbel() -> None:
    values = gumbel_noise([noise_key(7, 0, position) for position in range(200)], 5000, CPU).double().flatten()
    count = len(values)
    assert torch.isfinite(values).all()
    assert abs(values.mean() - 0.5772156649) < 5 * (torch.pi**2 / 6 / count) ** 0.5
    assert abs(values.var() - torch.pi**2 / 6) < 0.02
    # P(G > g) = 1 - exp(-exp(-g)): the upper tail decides which unlikely token wins.
    for threshold in (5.0, 10.0):
        expected = count * -torch.expm1(-torch.exp(torch.tensor(-threshold, dtype=torch.float64)))
        assert abs((values > threshold).sum() - expected) < 5 * expected**0.5 + 1


def test_the_ends_of_the_uniform_give_finite_noise_in_order() -> None:
    uniform = torch.tensor([1.0, 0.5, 2.0**-30, 2.0**-53, 0.0])
    values = gumbel_from_(uniform.clone()).double()
    assert torch.isfinite(values).all()
    assert (values.diff() > 0).all()
    expected = -(-(-uniform[1:4].double()).log1p()).log()
    torch.testing.assert_close(values[1:4], expected, rtol=1e-6, atol=1e-6)


def test_small_uniforms_are_fine_grained() -> None:
    uniform = noise.uniform_on_host([noise_key(0, 0, position) for position in range(400)], 20_000).flatten()
    small = uniform[uniform < 2.0**-16].double()
    assert len(small) > 50
    assert ((small * 2**32) % 1 != 0).sum() > len(small) * 0.9  # on no grid of 32 bits


def test_neighbouring_keys_are_uncorrelated() -> None:
    rows = gumbel_noise(
        [noise_key(seed, sample, position) for seed in range(3) for sample in range(3) for position in range(3)],
        20_000,
        CPU,
    )
    correlations = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlations.abs().max() < 5 / 20_000**0.5
