"""Draws follow the exact distribution (temperature, then top_k, then top_p) and report tempered log-probabilities."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch

from services.sampler.engine.draw import Draw, draw_tokens, keep_likeliest

PLAIN = Draw(temperature=1.0, top_k=-1, top_p=1.0, seed=11, sample=0, position=0)
COUNT = 20_000


def exact(logits: npt.NDArray[np.float64], draw: Draw) -> npt.NDArray[np.float64]:
    """The distribution by its definition, token after token."""
    weights = np.exp((logits - logits.max()) / draw.temperature)
    order = np.argsort(-weights, kind="stable")
    kept = order[: draw.top_k] if draw.top_k > 0 else order
    share = weights[kept] / weights[kept].sum()
    reached, last = 0.0, 0
    for last, part in enumerate(share):  # noqa: B007
        reached += part
        if reached >= draw.top_p:
            break
    probabilities = np.zeros_like(weights)
    probabilities[kept[: last + 1]] = weights[kept[: last + 1]]
    return probabilities / probabilities.sum()


def chi_square_limit(freedom: int, deviations: float = 4.75) -> float:
    """Upper quantile of chi-square (Wilson and Hilferty's approximation); 4.75 deviations are one in a million."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + deviations * part**0.5) ** 3


def assert_follows(tokens: torch.Tensor, probabilities: npt.NDArray[np.float64]) -> None:
    counts = np.bincount(tokens.numpy(), minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * len(tokens)
    rare = expected < 5  # chi-square wants no tiny cells: they become one
    cells = [*zip(counts[~rare], expected[~rare], strict=True), (counts[rare].sum(), expected[rare].sum())]
    cells = [(count, mean) for count, mean in cells if mean > 0]
    if len(cells) > 1:
        statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
        assert statistic < chi_square_limit(len(cells) - 1)


def many(logits: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """COUNT draws of one row, at positions 0, 1, 2, ..."""
    results = []
    for start in range(0, COUNT, 1000):
        draws = [dataclasses.replace(draw, position=start + offset) for offset in range(1000)]
        results.append(draw_tokens(logits.expand(1000, -1), draws))
    return torch.cat([tokens for tokens, _ in results]), torch.cat([logprobs for _, logprobs in results])


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 7},
        {"top_k": 1},
        {"top_p": 0.8},
        {"top_p": 0.01},
        {"top_k": 10, "top_p": 0.7},
        {"temperature": 1.7, "top_k": 20, "top_p": 0.9},
        {"temperature": 0.3, "top_p": 0.95},
        {"seed": -9, "top_k": 60, "top_p": 0.999},
    ],
    ids=str,
)
@pytest.mark.parametrize("candidates", [8, 1024], ids=["sorted whole", "candidates"])
def test_draws_follow_the_exact_distribution(
    change: dict[str, float], candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.sampler.engine.draw._CANDIDATES", candidates)
    logits = torch.randn(60, generator=torch.Generator().manual_seed(1)) * 2
    draw = dataclasses.replace(PLAIN, **change)
    tokens, logprobs = many(logits, draw)
    assert_follows(tokens, exact(logits.double().numpy(), draw))
    tempered = (logits.double() / draw.temperature).log_softmax(-1)
    torch.testing.assert_close(logprobs.double(), tempered[tokens], atol=1e-5, rtol=0)


def test_the_test_of_the_distribution_notices_a_small_bias() -> None:
    logits = torch.randn(60, generator=torch.Generator().manual_seed(1)) * 2
    tokens, _ = many(logits, dataclasses.replace(PLAIN, temperature=1.1))
    with pytest.raises(AssertionError):
        assert_follows(tokens, exact(logits.double().numpy(), PLAIN))


def test_samples_of_one_seed_are_independent_draws() -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(2))
    draws = [dataclasses.replace(PLAIN, sample=sample) for sample in range(20_000)]
    tokens, _ = draw_tokens(logits.expand(len(draws), -1), draws)
    assert_follows(tokens, exact(logits.double().numpy(), PLAIN))


@pytest.mark.long
def test_unlikely_tokens_come_as_often_as_they_should() -> None:
    """30,000 tokens of probability 1e-7 each beside one likely token: together 3 in 1000, not more."""
    vocab_size = 30_001
    logits = torch.full((vocab_size,), 0.0)
    logits[0] = float(np.log((1 - 3e-3) / 1e-7))
    draws = [dataclasses.replace(PLAIN, position=position) for position in range(2000)]
    unlikely = 0
    for start in range(0, len(draws), 250):
        tokens, _ = draw_tokens(logits.expand(250, -1), draws[start : start + 250])
        unlikely += int((tokens != 0).sum())
    assert abs(unlikely - 6) < 5 * 6**0.5


def test_temperature_zero_takes_the_likeliest_and_reports_temperature_one() -> None:
    logits = torch.randn(5, 60, generator=torch.Generator().manual_seed(3))
    tokens, logprobs = draw_tokens(logits, [dataclasses.replace(PLAIN, temperature=0.0, top_k=3, top_p=0.5)] * 5)
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-6])
def test_tiny_temperatures_end_at_the_likeliest_without_overflow(temperature: float) -> None:
    logits = torch.randn(60, generator=torch.Generator().manual_seed(4)) * 30
    tokens, logprobs = draw_tokens(logits[None], [dataclasses.replace(PLAIN, temperature=temperature)])
    assert tokens.item() == logits.argmax()
    assert logprobs.item() == 0


def test_a_huge_temperature_is_uniform() -> None:
    logits = torch.randn(60, generator=torch.Generator().manual_seed(4)) * 30
    draw = dataclasses.replace(PLAIN, temperature=1e300)
    tokens, _ = many(logits, draw)
    assert_follows(tokens, np.full(60, 1 / 60))


def test_a_row_is_drawn_the_same_alone_and_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(24, 300, generator=generator)
    draws = [
        Draw(temperature, top_k, top_p, seed=seed, sample=seed % 3, position=seed)
        for seed, (temperature, top_k, top_p) in enumerate(
            [(1.0, -1, 1.0), (0.0, -1, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.9), (0.9, 40, 0.5), (1.0, 299, 0.999)] * 4
        )
    ]
    together, reported = draw_tokens(logits, draws)
    for row, draw in enumerate(draws):
        alone, alone_reported = draw_tokens(logits[row : row + 1], [draw])
        assert alone.item() == together[row]
        torch.testing.assert_close(alone_reported[0], reported[row])


def test_equally_likely_tokens_at_the_border_stay_by_lower_id() -> None:
    values = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, -1.0], [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]])
    kept = keep_likeliest(values, torch.tensor([3, 2]), torch.tensor([float("inf")] * 2, dtype=torch.float64))
    assert kept.tolist() == [[True, True, False, True, False, False], [True, True, False, False, False, False]]
    half = keep_likeliest(values[1:], torch.tensor([6]), torch.tensor([0.45], dtype=torch.float64))
    assert half.tolist() == [[True, True, True, False, False, False]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_reports_nan_and_leaves_the_others(bad: float) -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(6))
    draws = [
        dataclasses.replace(PLAIN, top_k=5),
        dataclasses.replace(PLAIN, top_p=0.5),
        dataclasses.replace(PLAIN, seed=2),
    ]
    clean_tokens, clean_logprobs = draw_tokens(logits, draws)
    logits[1, 7] = bad
    tokens, logprobs = draw_tokens(logits, draws)
    assert torch.isnan(logprobs[1])
    assert torch.equal(tokens[[0, 2]], clean_tokens[[0, 2]])
    assert torch.equal(logprobs[[0, 2]], clean_logprobs[[0, 2]])
