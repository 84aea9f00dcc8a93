"""The baselines that the bundled models must beat, against sums done by hand and against the laws of probability."""

from fractions import Fraction

import numpy as np
import pytest

from mistral_lab.training.ngram import NGram


def fitted(order, vocab_size, documents, wanted):
    model = NGram(order, vocab_size=vocab_size, wanted=wanted)
    model.count(documents)
    return model


def by_definition(order, vocab_size, documents, tokens, i):
    """Witten-Bell in exact fractions, by searching the documents anew for every history."""
    probability = Fraction(1, vocab_size)
    for n in range(min(order - 1, i) + 1):
        history = tokens[i - n : i]
        after = [d[j] for d in documents for j in range(n, len(d)) if d[j - n : j] == history]
        if not after:
            break
        kinds = len(set(after))
        probability = (after.count(tokens[i]) + kinds * probability) / (len(after) + kinds)
    return probability


@pytest.mark.parametrize("order", [1, 2, 5])
def test_equals_the_definition(order):
    generator = np.random.default_rng(order)
    documents = [generator.integers(4, size=40).tolist() for _ in range(5)]
    tokens = generator.integers(4, size=30).tolist()
    expected = [-np.log(float(by_definition(order, 4, documents, tokens, i))) for i in range(len(tokens))]
    # Both are float64 after exact counting; a few roundings apart.
    np.testing.assert_allclose(fitted(order, 4, documents, [tokens]).nats(tokens), expected, rtol=1e-12)


def test_probabilities_of_all_continuations_sum_to_one():
    documents = [[0, 1, 2, 1, 0, 1, 2, 3]]
    histories = [[0, 1, 2, token] for token in range(5)]
    model = fitted(5, 5, documents, histories)
    assert sum(np.exp(-model.nats(history)[-1]) for history in histories) == pytest.approx(1.0, rel=1e-12)


def test_a_longer_reach_predicts_a_repeating_text_better():
    text = [1, 2, 1, 3] * 30
    losses = [fitted(order, 4, [text], [text]).nats(text).mean() for order in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]


def test_a_lower_order_is_a_model_of_that_order():
    """One count serves all baselines of the card."""
    generator = np.random.default_rng(0)
    documents, tokens = generator.integers(4, size=(5, 40)).tolist(), generator.integers(4, size=30).tolist()
    for order in (1, 2, 5):
        lower = fitted(5, 4, documents, [tokens]).nats(tokens, order=order)
        np.testing.assert_array_equal(lower, fitted(order, 4, documents, [tokens]).nats(tokens))


def test_nothing_counted_is_a_uniform_guess():
    model = NGram(3, vocab_size=8, wanted=[[1, 2, 3]])
    np.testing.assert_allclose(model.nats([1, 2, 3]), np.log(8))
