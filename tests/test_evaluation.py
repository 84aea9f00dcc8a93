"""The measurements behind the model card, on models whose answers are known."""

import numpy as np
import pytest
import torch

from mistral_lab.loading import load
from mistral_lab.training import evaluation
from mistral_lab.training.corpus import Document
from mistral_lab.training.evaluation import Encoded


class Fixed:
    """Looks like a model; says for each token what `answer` says for the tokens so far."""

    def __init__(self, answer, vocab_size):
        self.answer, self.vocab_size = answer, vocab_size

    def __call__(self, input_ids):
        tokens = input_ids[0].tolist()
        chosen = torch.tensor([self.answer(tokens[: i + 1]) for i in range(len(tokens))])
        self.logits = torch.nn.functional.one_hot(chosen, self.vocab_size)[None] * 9.0
        return self


@pytest.fixture(scope="module")
def tokenizer():
    return load("tiny-mistral").tokenizer


def called(tokenizer, name, gaps):
    """A document that names someone, then again after so many tokens of filler."""
    words = f"Once there was a baker called {name}"
    for gap in gaps:
        words += "," * gap + f" called {name}"
    return Encoded(Document("english", words, name), tokenizer(words).input_ids)


def test_bootstrap_of_equal_values_has_no_width_and_of_others_covers_the_mean():
    assert evaluation.bootstrap(np.full(9, 2.0)) == evaluation.Interval(2.0, 2.0, 2.0)
    values = np.random.default_rng(1).normal(size=400)
    interval = evaluation.bootstrap(values)
    # The middle 95 % of a mean of 400 unit normals is 2 · 1.96 / 20 wide; the bootstrap finds that within a fifth.
    assert interval.low < values.mean() < interval.high
    assert interval.high - interval.low == pytest.approx(0.196, rel=0.2)


def test_bootstrap_weighs_documents():
    assert evaluation.bootstrap(np.array([0.0, 1.0]), np.array([3, 1])).mean == 0.25


def test_losses_are_those_of_transformers(tokenizer):
    model, text = load("tiny-mistral").model, called(tokenizer, "Ada Bell", [3])
    tokens = torch.tensor([text.tokens])
    with torch.inference_mode():
        expected = model(input_ids=tokens, labels=tokens).loss.item()
    # float32 means over a dozen tokens, added in another order.
    assert evaluation.losses(model, [text])[0].mean() == pytest.approx(expected, rel=1e-5)


def test_recall_of_a_perfect_and_of_a_deaf_model(tokenizer):
    ada, vera = called(tokenizer, "Ada Bell", [5, 90, 150]), called(tokenizer, "Vera Blum", [5, 90, 150])
    names = {
        text.document.name: tokenizer(" " + text.document.name, add_special_tokens=False).input_ids
        for text in (ada, vera)
    }

    def remembers(tokens):
        name = next(value for value in names.values() if value[0] in tokens or len(tokens) < 8)
        return name[1] if tokens[-1] == name[0] else name[0]

    def guesses(tokens):
        name = names["Ada Bell"]
        return name[1] if tokens[-1] == name[0] else name[0]

    for answer, expected in ((remembers, 1.0), (guesses, 0.5)):
        table = evaluation.recall(Fixed(answer, len(tokenizer)), tokenizer, [ada, vera])
        assert {label: (row.asked, row.right.mean) for label, row in table.items()} == {
            "1 to 63": (2, expected),
            "64 to 128": (2, expected),
            "129 to 252": (2, expected),
        }


def test_recall_counts_distance_from_the_predicting_token(tokenizer):
    """The token before the answer is what must see the name: 63 back is the window's last place, 64 is beyond it."""
    lead = len(tokenizer(" called", add_special_tokens=False).input_ids) + len(
        tokenizer(" Ada Bell", add_special_tokens=False).input_ids
    )
    for distance, label in ((63, "1 to 63"), (64, "64 to 128"), (128, "64 to 128"), (129, "129 to 252")):
        words = "Once there was a baker called Ada Bell" + " the" * (distance + 1 - lead) + " called Ada Bell"
        text = Encoded(Document("english", words, "Ada Bell"), tokenizer(words).input_ids)
        table = evaluation.recall(Fixed(lambda tokens: 0, len(tokenizer)), tokenizer, [text])
        assert list(table) == [label]


def test_recall_with_its_sight_cut_cannot_look_further_back(tokenizer):
    text = called(tokenizer, "Ada Bell", [90])
    longest = []

    def answer(tokens):
        longest.append(len(tokens))
        return 0

    evaluation.recall(Fixed(answer, len(tokenizer)), tokenizer, [text], context=64)
    assert max(longest) == 64 + 1  # and the name's first word, when its second is asked


def test_routing_differs_by_kind_only_where_it_does():
    generator = np.random.default_rng(0)
    alike = {kind: generator.dirichlet(np.ones(8), size=(20, 2)) for kind in "abc"}
    apart = {kind: values + 3 * np.eye(8)[i] for i, (kind, values) in enumerate(alike.items())}
    apart = {kind: values / values.sum(-1, keepdims=True) for kind, values in apart.items()}
    for table, differs in ((alike, False), (apart, True)):
        found, shuffled = evaluation.routing_difference(table), evaluation.shuffled_difference(table)
        assert shuffled.shape == (200, 2)
        assert ((found > shuffled.max(0)) == differs).all()


def test_loads_count_every_choice(tokenizer):
    model, text = load("tiny-mixtral").model, called(tokenizer, "Ada Bell", [3])
    table = evaluation.loads(model, [text])
    assert table["english"].shape == (1, model.config.num_hidden_layers, model.config.num_local_experts)
    np.testing.assert_allclose(table["english"].sum(-1), 1)
    for chosen, logits in evaluation.first_choices(model, text.tokens):
        assert (np.take_along_axis(logits, chosen, 1).min(1) >= np.sort(logits, 1)[:, -2]).all()
