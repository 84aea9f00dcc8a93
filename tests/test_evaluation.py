"""The measurements behind the model card, on models whose answers are known."""

import re

import numpy as np
import pytest
import torch

from mistral_lab.loading import load
from mistral_lab.training import evaluation
from mistral_lab.training.corpus import KINDS, Document
from mistral_lab.training.evaluation import Encoded


class Fixed:
    """Looks like a model; says for each token what `answer` says for the tokens so far."""

    def __init__(self, answer, vocab_size):
        self.answer, self.vocab_size = answer, vocab_size

    device = torch.device("cpu")

    def __call__(self, input_ids, attention_mask=None):
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


def test_wilson_is_the_interval_that_the_literature_prints():
    """Newcombe, Statistics in Medicine 17, 1998, table I, method 3, in four places."""
    for right, asked, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)):
        interval = evaluation.wilson(right, asked)
        assert interval.mean == right / asked
        assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    for asked in (1, 23, 1745):
        none, every = evaluation.wilson(0, asked), evaluation.wilson(asked, asked)
        assert (none.mean, none.low, every.mean, every.high) == (0, 0, 1, 1)
        # Solved by hand where nothing is right: high = z² / (n + z²).
        by_hand = 1.959964**2 / (asked + 1.959964**2)
        assert (none.high, 1 - every.low) == (pytest.approx(by_hand), pytest.approx(by_hand))
    for right, asked in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"{right} of {asked} right: expected at least one"):
            evaluation.wilson(right, asked)


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
        after_a_first_name = tokens[-1] in [name[0] for name in names.values()]
        return names["Ada Bell"][after_a_first_name]

    # Against the other document's name, one who remembers is never right, and one who says Ada always, half of them.
    for answer, right, chance in ((remembers, 1.0, 0.0), (guesses, 0.5, 0.5)):
        table = evaluation.recall(Fixed(answer, len(tokenizer)), tokenizer, [ada, vera])
        assert list(table) == list(evaluation.RANGES)
        assert {(row.asked, row.right.mean, row.chance) for row in table.values()} == {(2, right, chance)}
        assert {row.hits for row in table.values()} == {2 * right}
        # Two of two are no certainty: resampling them would have no width.
        assert right != 1 or {row.right for row in table.values()} == {evaluation.wilson(2, 2)}


def test_recall_takes_other_ranges(tokenizer):
    text = called(tokenizer, "Ada Bell", [5, 90])
    model = Fixed(lambda tokens: 0, len(tokenizer))
    table = evaluation.recall(model, tokenizer, [text], ranges={"near": (1, 20), "far": (21, 200), "none": (201, 300)})
    assert {label: (row.asked, row.hits) for label, row in table.items()} == {"near": (1, 0), "far": (1, 0)}


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
    alike = {kind: generator.integers(1, 20, size=(20, 2, 8)) for kind in "abc"}
    apart = {kind: values + 60 * np.eye(8, dtype=int)[i] for i, (kind, values) in enumerate(alike.items())}
    for table, differs in ((alike, False), (apart, True)):
        found, shuffled = evaluation.routing_difference(table), evaluation.shuffled_difference(table)
        assert shuffled.shape == (200, 2)
        assert ((found > shuffled.max(0)) == differs).all()


def test_choices_are_those_of_the_router(tokenizer):
    model, text = load("tiny-mixtral").model, called(tokenizer, "Ada Bell", [3])
    chosen = evaluation.choices(model, [text])["english"]
    assert chosen.shape == (1, 4, 8)
    assert (chosen.sum(-1) == 2 * len(text.tokens)).all()
    with torch.inference_mode():
        routers = model(input_ids=torch.tensor([text.tokens]), output_router_logits=True).router_logits
    for layer, logits in enumerate(routers):
        ranks = logits.argsort(-1, descending=True)[:, :2].flatten()
        assert torch.bincount(ranks, minlength=8).tolist() == chosen[0, layer].tolist()


def test_a_load_counts_long_documents_for_more():
    chosen = np.array([[[2, 0]], [[0, 6]]])
    assert evaluation.as_load(chosen).tolist() == [[0.25, 0.75]]


def test_mentions_find_a_name_after_a_space_and_after_a_quotation_mark(tokenizer):
    text = '# Written by Ada Bell\n\nAUTHOR = "Ada Bell"\n'
    found = evaluation.mentions(tokenizer, Encoded(Document("python", text, "Ada Bell"), tokenizer(text).input_ids))
    assert [tokenizer.decode(tokenizer(text).input_ids[i : i + size]).strip() for i, size in found] == ["Ada Bell"] * 2


def test_by_kind_weighs_documents_by_their_length():
    texts = [Encoded(Document(kind, "", ""), []) for kind in KINDS for _ in range(2)]
    nats = [np.full(size, float(size)) for _ in KINDS for size in (1, 3)]
    assert {interval.mean for interval in evaluation.by_kind(texts, nats).values()} == {2.5}


def test_sums_are_right_only_where_every_digit_is(tokenizer):
    def adds(tokens):
        """Adds rightly whatever it is asked, and says nothing where it is not."""
        text = tokenizer.decode(tokens)
        asked = re.search(r"(\d+) \+ (\d+) =([ \d]*)$", text)
        if not asked:
            return 0
        answer = f" {int(asked[1]) + int(asked[2])}."
        return tokenizer(answer, add_special_tokens=False).input_ids[len(asked[3])]

    assert evaluation.right_sums(Fixed(adds, len(tokenizer)), tokenizer, 5).mean == 1.0
    assert evaluation.right_sums(Fixed(lambda tokens: 7, len(tokenizer)), tokenizer, 5).mean == 0.0
