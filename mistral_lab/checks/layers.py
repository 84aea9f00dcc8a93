"""Lesson 5: the norm, the feed-forward network with its first two matrices in one, and the order inside a layer."""

from collections.abc import Callable

import torch
from torch.nn.functional import silu

from ..moe import Expert, expert_forward
from .judging import Mistake, judge

# Wrong ways to combine gate and up in SwiGLU, with what to say; lesson 9 asks for the same network on several ranks.
WRONG_SWITCHES = (
    (lambda gate, up: silu(gate * up), "the switch goes on gate alone, before the product"),
    (lambda gate, up: gate * up, "the switch is missing: silu(gate) times up"),
    (lambda gate, up: silu(gate) + up, "silu(gate) and up are multiplied, not added"),
)


def rms_normed(function: Callable) -> Callable:
    """Check `function(x (T, d), weight (d,), eps) -> (T, d)`: RMSNorm.

    >>> my_answer = rms_normed(lambda x, weight, eps: NotImplemented)
    rms_normed: not tried yet; the lesson goes on with its own
    """

    def answer(x, weight, eps):
        return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64) * torch.tensor([[3.0], [1.0], [0.3], [0.1]]) + 0.2
    weight = torch.rand(6, generator=generator, dtype=torch.float64) + 0.5
    return judge(
        "rms_normed",
        function,
        answer=answer,
        cases=[(x, weight, 1e-5), (x, weight, 0.1), (x, weight.flip(0), 1e-5), (x.flip(1), weight, 0.1)],
        mistakes=[
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().mean(-1, keepdim=True).sqrt() + eps),
                "with eps = {eps:g} your values are off: is your epsilon inside the square root?",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().sum(-1, keepdim=True) + eps).sqrt(),
                "you divide by the length of the vector: the mean of the squares is meant, not their sum",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.norm(dim=-1, keepdim=True) + eps),
                "you divide by the length of the vector: the mean of the squares is meant, not their sum",
            ),
            Mistake(
                lambda x, weight, eps: answer(x - x.mean(-1, keepdim=True), weight, eps),
                "you subtract the mean first: that is LayerNorm; RMSNorm does not",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().mean(0, keepdim=True) + eps).sqrt(),
                "your mean runs over the tokens: each token is normalised by itself, over its own values",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().mean() + eps).sqrt(),
                "your mean runs over all tokens at once: each token is normalised by itself",
            ),
            Mistake(
                lambda x, weight, eps: weight * x / (x.square().mean(-1, keepdim=True) + eps),
                "is the square root missing?",
            ),
            Mistake(
                lambda x, weight, eps: answer(x, 1 + weight, eps),
                "you multiply by 1 + weight, as Gemma does: here the weight is the factor",
            ),
            Mistake(
                lambda x, weight, eps: answer(x, 1, eps) + weight,
                "you add the weight: each value is multiplied by it",
            ),
        ],
    )


def fused_feed_forward(function: Callable) -> Callable:
    """Check `function(x (T, d), gate_up (2h, d), down (d, h)) -> (T, d)`: SwiGLU, the rows of gate first.

    >>> my_answer = fused_feed_forward(lambda x, gate_up, down: NotImplemented)
    fused_feed_forward: not tried yet; the lesson goes on with its own
    """

    def answer(x, gate_up, down):
        return expert_forward(x, Expert(*gate_up.chunk(2), down))

    def with_switch(switch, rows=lambda gate_up: gate_up.chunk(2)):
        def wrong(x, gate_up, down):
            gate, up = (x @ part.T for part in rows(gate_up))
            return switch(gate, up) @ down.T

        return wrong

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    gate_up = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    down = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return judge(
        "fused_feed_forward",
        function,
        answer=answer,
        cases=[(x, gate_up, down), (2 * x, gate_up, down), (x, gate_up.flip(0), down), (x, gate_up, down.flip(1))],
        mistakes=[
            Mistake(
                with_switch(lambda gate, up: silu(up) * gate),
                "are gate and up swapped? The first h rows are gate, and the switch goes on gate",
            ),
            Mistake(
                with_switch(lambda gate, up: silu(gate) * up, rows=lambda gate_up: (gate_up[0::2], gate_up[1::2])),
                "you take every other row: all rows of gate come first, then all of up",
            ),
            Mistake(
                with_switch(lambda gate, up: silu(up) * gate, rows=lambda gate_up: (gate_up[0::2], gate_up[1::2])),
                "you take every other row: all rows of gate come first, then all of up",
            ),
            *(Mistake(with_switch(switch), hint) for switch, hint in WRONG_SWITCHES),
            Mistake(with_switch(lambda gate, up: silu(gate) * silu(up)), "the switch goes on gate alone, not on up"),
            Mistake(
                with_switch(lambda gate, up: gate.sigmoid() * up),
                "your switch is the sigmoid alone: silu(z) is z times sigmoid(z)",
            ),
        ],
    )


def layer_output(function: Callable) -> Callable:
    """Check `function(x, attention, feed_forward, first_norm, second_norm)`: a layer, built from its four parts.

    >>> my_answer = layer_output(lambda x, attention, feed_forward, first_norm, second_norm: NotImplemented)
    layer_output: not tried yet; the lesson goes on with its own
    """

    def answer(x, attention, feed_forward, first_norm, second_norm):
        x = x + attention(first_norm(x))
        return x + feed_forward(second_norm(x))

    def normed_copy(x, attention, feed_forward, first_norm, second_norm):
        x = first_norm(x)
        x = second_norm(x + attention(x))
        return x + feed_forward(x)

    def side_by_side(x, attention, feed_forward, first_norm, second_norm):
        return x + attention(first_norm(x)) + feed_forward(second_norm(x))

    def nothing_added(x, attention, feed_forward, first_norm, second_norm):
        return feed_forward(second_norm(attention(first_norm(x))))

    def start_added(x, attention, feed_forward, first_norm, second_norm):
        return x + feed_forward(second_norm(x + attention(first_norm(x))))

    def norm_after(x, attention, feed_forward, first_norm, second_norm):
        x = first_norm(x + attention(x))
        return second_norm(x + feed_forward(x))

    def no_norms(x, attention, feed_forward, first_norm, second_norm):
        x = x + attention(x)
        return x + feed_forward(x)

    def first_twice(x, attention, feed_forward, first_norm, second_norm):
        return answer(x, attention, feed_forward, first_norm, first_norm)

    def other_order(x, attention, feed_forward, first_norm, second_norm):
        return answer(x, feed_forward, attention, first_norm, second_norm)

    def looks_back(x):
        return x.cumsum(0) / 2

    def norm(scale):
        return lambda x: scale * x / x.square().mean(-1, keepdim=True).sqrt()

    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = looks_back, torch.tanh, norm(1.0), norm(0.5)
    others = (lambda x: looks_back(x.flip(1)), torch.sin, norm(2.0), norm(0.3))
    replaced = [parts[:place] + (other,) + parts[place + 1 :] for place, other in enumerate(others)]
    return judge(
        "layer_output",
        function,
        answer=answer,
        cases=[(x, *parts), (2 * x, *parts), *((x, *functions) for functions in replaced)],
        mistakes=[
            Mistake(
                normed_copy,
                "you add to the normed copy: attention and feed-forward read normed copies, but add to x itself",
            ),
            Mistake(
                side_by_side,
                "your feed-forward reads what attention read: it must read the stream after attention has added to it",
            ),
            Mistake(nothing_added, "your parts replace x: each must add its output to x"),
            Mistake(start_added, "attention's output is lost: the second sum must start from the result of the first"),
            Mistake(
                norm_after,
                "your norms come after the sums, as in the first transformers: here they come before attention and "
                "before feed-forward",
            ),
            Mistake(first_twice, "you use the first norm twice: feed-forward has its own"),
            Mistake(other_order, "attention comes first, then feed-forward"),
            Mistake(no_norms, "your parts read x itself: each must read a normed copy"),
        ],
    )
