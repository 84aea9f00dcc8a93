"""Lesson 3, what a sliding window does: a name that gets lost, what layers see, keys in the wrong order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..cache import RollingCache
from ..loading.loaded import Loaded
from ..masks import receptive_field
from ..measure.progress import layer_progress, with_progress
from ..training import evaluation
from ..training.corpus import HELD_OUT, document
from ..training.scribe import Scribe
from ..training.windows import STORY
from .cutting import only_layers


@dataclass(frozen=True)
class Story:
    """A held-out text in which a name is told, and due again much later.

    Args:
        tokens: of the text up to the last token before the name is due again.
        words: the same tokens as text.
        name: the name.
        source: the position of its first token where it is told.
        size: tokens of the name.
        ends: positions of the tokens that end a sentence between the two mentions.
    """

    tokens: list[int]
    words: list[str]
    name: str
    source: int
    size: int
    ends: list[int]

    @property
    def distance(self) -> int:
        """How many tokens back from the last token the name begins."""
        return len(self.tokens) - 1 - self.source

    def doubled(self) -> "Story":
        """The same story with its middle, between the sentences of the two mentions, told twice."""
        begin, end = self.ends[0] + 1, self.ends[-1] + 1
        middle = end - begin
        return replace(
            self,
            tokens=self.tokens[:end] + self.tokens[begin:],
            words=self.words[:end] + self.words[begin:],
            ends=self.ends + [at + middle for at in self.ends[1:]],
        )


def read_story(tokenizer: PreTrainedTokenizerBase, number: int = STORY) -> Story:
    """Read a held-out document as a story: up to the place where its name is due for the second time.

    Raises:
        ValueError: the name of that document does not come back.
    """
    text = document(number, split=HELD_OUT)
    encoded = evaluation.Encoded(text, tokenizer(text.text).input_ids)
    mentions = evaluation.mentions(tokenizer, encoded)
    if len(mentions) < 2:
        raise ValueError(f"document {number} has {len(mentions)} mention of its name: expected two or more")
    (source, size), (target, _) = mentions[:2]
    tokens = encoded.tokens[:target]
    words = [tokenizer.decode([token]).strip() for token in tokens]
    ends = [at for at in range(source + size, target) if words[at].endswith((".", "”"))]
    return Story(tokens, words, text.name, source, size, ends)


def answer_story(loaded: Loaded, tokens: Sequence[int], *, size: int) -> str:
    """Let a model go on by `size` tokens, each time with the token that it finds most likely."""
    tokens = list(tokens)
    for _ in range(size):
        tokens.append(int(evaluation.next_token_logits(loaded.model, tokens)[-1].argmax()))
    return loaded.tokenizer.decode(tokens[-size:]).strip()


@dataclass(frozen=True)
class Recalled:
    """How many of the same names were said again, at each distance.

    Args:
        distances: tokens back to the name, ascending.
        given: names whose first word, the given name, was said.
        whole: names of which both words were said.
        asked: names at each distance.
    """

    distances: list[int]
    given: list[int]
    whole: list[int]
    asked: int


@torch.inference_mode()
def recall_by_distance(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, story: Story, *, names: int = 8
) -> Recalled:
    """Tell the story with other names, and take one sentence after another out of its middle: who is still recalled?

    Beginning, end and names stay the same, so that the distance alone changes. The names are pairs of words that never
    stood together in training. A word counts where it is the model's first choice; the second one is asked for after
    the true first one.

    Raises:
        ValueError: the story's name is not two tokens, or fewer than one name is asked for.
    """
    if story.size != 2 or names < 1:
        raise ValueError(f"the name has {story.size} tokens and names is {names}: expected 2, and at least 1")
    scribe = Scribe("recall by distance", HELD_OUT)
    people = [tokenizer(" " + scribe.name(), add_special_tokens=False).input_ids for _ in range(names)]
    words = torch.tensor(people, device=model.device)
    distances, given, whole = [], [], []
    for number in with_progress(len(story.ends), "Shortening the story"):
        last = story.ends[-1 - number]  # what follows this sentence stays, and the first one
        kept = [*story.tokens[: story.ends[0] + 1], *story.tokens[last + 1 :]]
        rows = torch.tensor(kept, device=model.device).repeat(names, 1)
        rows[:, story.source : story.source + 2] = words
        rows = torch.cat([rows, words[:, :1]], dim=1)
        chosen = model(rows, use_cache=False, logits_to_keep=2).logits.argmax(-1)
        distances.append(len(kept) - 1 - story.source)
        given.append(int((chosen[:, 0] == words[:, 0]).sum()))
        whole.append(int((chosen == words).all(1).sum()))
    return Recalled(distances, given, whole, names)


@contextmanager
def with_window(model: PreTrainedModel, window: int | None) -> Iterator[None]:
    """Give a model another window for as long as the block lasts; every layer must have the same."""
    own, model.config.sliding_window = model.config.sliding_window, window
    try:
        yield
    finally:
        model.config.sliding_window = own


@torch.inference_mode()
def reaction(loaded: Loaded, layer: int, *, back: int, tokens: int) -> float:
    """How much the last output of one layer changes where one input vector is turned around, `back` tokens before it.

    Args:
        loaded: what `load` returned.
        layer: the layer that is left alone in the model.
        back: how far back from the last token the changed vector stands.
        tokens: the length of the input, of random vectors.

    Returns:
        the largest change, relative to the largest value; exactly 0 where the layer does not see that token.
    """
    shape, generator = (1, tokens, loaded.model.config.hidden_size), torch.Generator().manual_seed(0)
    vectors = torch.randn(shape, dtype=loaded.model.dtype, generator=generator).to(loaded.model.device)
    changed = vectors.clone()
    changed[0, -1 - back] *= -1
    with only_layers(loaded.model, layer, layer + 1):
        before, after = (
            loaded.model.model(inputs_embeds=x, use_cache=False).last_hidden_state[0, -1].float()
            for _, x in zip(with_progress(2, f"Reading {tokens:,} vectors twice"), (vectors, changed), strict=True)
        )
    return float((after - before).abs().max() / before.abs().max())


@dataclass(frozen=True)
class Influence:
    """How strongly an output depends on each earlier token.

    Args:
        depths: after how many layers.
        fields: the receptive field of each depth, in tokens.
        reached: the furthest token whose gradient is not exactly 0, counted with the last one as 1.
        by_distance: (depths, tokens), the size of the gradient, the largest of each depth being 1.
    """

    depths: list[int]
    fields: list[int]
    reached: list[int]
    by_distance: torch.Tensor


def measure_influence(loaded: Loaded, text: str, *, window: int, beyond: int = 40) -> Influence:
    """Differentiate the last token's state after 1, 2, 3 and all layers by every input vector.

    Args:
        loaded: what `load` returned.
        text: long enough for the receptive field of all layers and `beyond` more tokens.
        window: that every layer gets.
        beyond: tokens outside of the receptive field, where the gradient must be exactly 0.

    Raises:
        ValueError: the text is too short.
    """
    layers = loaded.model.config.num_hidden_layers
    depths = sorted({1, min(2, layers), min(3, layers), layers})
    length = receptive_field(window, layers) + beyond
    sample = loaded.tokenizer(text, return_tensors="pt")["input_ids"][:, :length]
    if sample.shape[1] < length:
        raise ValueError(f"text has {sample.shape[1]} tokens: expected at least {length}")
    vectors = loaded.model.get_input_embeddings()(sample.to(loaded.model.device)).detach().requires_grad_()
    reached, lines = [], []
    with (
        with_window(loaded.model, window),
        layer_progress(loaded.model.model.layers, layers + sum(depths), "Differentiating"),
    ):
        output = loaded.model(inputs_embeds=vectors, use_cache=False, output_hidden_states=True)
        for depth in depths:
            state = output.logits[0, -1].max() if depth == layers else output.hidden_states[depth][0, -1].norm()
            (gradient,) = torch.autograd.grad(state, vectors, retain_graph=True)
            line = gradient[0].float().norm(dim=-1).flip(0).cpu()
            reached.append(int(line.nonzero().max()) + 1)
            lines.append(line / line.max())
    return Influence(depths, [receptive_field(window, depth) for depth in depths], reached, torch.stack(lines))


class SlotOrderCache(RollingCache):
    """A rolling cache that hands out a full window as the paper's buffer holds it: slot 0 first, whatever is in it."""

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Store a chunk as `RollingCache` does; where one token meets a full window, hand out keys in slot order."""
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        window, last = self.layers[layer_idx].window, self.get_seq_length(layer_idx) - 1
        if key_states.shape[-2] > 1 or keys.shape[-2] < window:
            return keys, values
        positions = torch.arange(last - window + 1, last + 1)
        order = (positions % window).argsort().to(keys.device)
        return keys[:, :, order], values[:, :, order]


@torch.inference_mode()
def generate_padded(loaded: Loaded, texts: Sequence[str], *, window: int) -> dict[str, torch.Tensor]:
    """Continue two prompts at once, one of which is shorter than the window and is padded on the left.

    Args:
        loaded: what `load` returned.
        texts: two, of which the first 5/2 W and 1/4 W tokens are the prompts.
        window: W, at least 4, which its model gets for the time being.

    Returns:
        the new tokens (2, W / 2) of "no cache", "position order" and "slot order".
    """
    prompts = torch.full((2, 5 * window // 2), loaded.tokenizer.pad_token_id)
    attended = torch.zeros_like(prompts)
    for row, (text, length) in enumerate(zip(texts, (prompts.shape[1], window // 4), strict=True)):
        prompts[row, -length:] = torch.tensor(loaded.tokenizer(text)["input_ids"][:length])
        attended[row, -length:] = 1
    model, new = loaded.model, window // 2
    request = {"input_ids": prompts.to(model.device), "attention_mask": attended.to(model.device), "do_sample": False}
    request |= {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": loaded.tokenizer.pad_token_id}
    layers = model.model.layers
    with with_window(model, window), layer_progress(layers, 3 * new * len(layers), "Continuing two prompts"):
        found = {
            "no cache": model.generate(**request, use_cache=False),
            "position order": model.generate(**request, past_key_values=RollingCache(model.config)),
            "slot order": model.generate(**request, past_key_values=SlotOrderCache(model.config)),
        }
    return {label: tokens[:, prompts.shape[1] :].cpu() for label, tokens in found.items()}
