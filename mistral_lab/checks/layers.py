"""Lesson 5: the feed-forward network with its first two matrices in one, and the order inside a layer."""

from collections.abc import Callable

import torch
from torch.nn.functional import gelu, silu

from ..moe import Expert, expert_forward
from .judging import Mistake, judge

# Wrong ways to combine gate and up in SwiGLU, with what to say; lesson 9 asks for the same network on several ranks.
WRONG_SWITCHES = (
    (lambda gate, up: silu(gate * up), "the switch goes on gate alone, before the product"),
    (lambda gate, up: gate * up, "the switch is missing: silu(gate) times up"),
    (lambda gate, up: silu(gate) + up, "silu(gate) and up are multiplied, not added"),
    (lambda gate, up: gelu(gate) * up, "your switch is GELU: it must be SiLU, z times sigmoid(z)"),
    (lambda gate, up: gelu(gate, approximate="tanh") * up, "your switch is GELU: it must be SiLU, z times sigmoid(z)"),
    (lambda gate, up: gate.relu() * up, "your switch is ReLU: it must be SiLU, z times sigmoid(z)"),
)


def fused_feed_forward(function: Callable) -> Callable:
    """Check `function(x (T, d), gate_up (2f, d), down (d, f)) -> (T, d)`: SwiGLU, the rows of gate first.

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

    def example(T, d, f):
        return tuple(torch.randn(shape, generator=generator) for shape in ((T, d), (2 * f, d), (d, f)))

    whole, other = example(4, 3, 5), example(4, 3, 5)
    swapped = [whole[:place] + (other[place],) + whole[place + 1 :] for place in range(3)]
    return judge(
        "fused_feed_forward",
        function,
        answer=answer,
        cases=[whole, *swapped, example(1, 4, 2), example(3, 2, 6), example(5, 5, 5)],
        mistakes=[
            Mistake(
                with_switch(lambda gate, up: silu(up) * gate),
                "are gate and up swapped? The first f rows are gate, and the switch goes on gate",
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
            Mistake(with_switch(lambda gate, up: silu(gate)), "up is missing: silu(gate) is multiplied by it"),
            Mistake(
                with_switch(lambda gate, up: silu(up)), "gate is missing: the switch goes on gate, and up is a factor"
            ),
            Mistake(
                lambda x, gate_up, down: silu(answer(x, gate_up, down)),
                "the switch goes on gate alone, and you put another on the result",
            ),
            Mistake(
                lambda x, gate_up, down: x + answer(x, gate_up, down),
                "you add x: the network returns its own output alone, and the layer adds",
            ),
            Mistake(
                lambda x, gate_up, down: answer(x, gate_up, down).relu(),
                "you put a ReLU on the result: down comes last",
            ),
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

    def first_lost(x, attention, feed_forward, first_norm, second_norm):
        x = attention(first_norm(x))
        return x + feed_forward(second_norm(x))

    def second_lost(x, attention, feed_forward, first_norm, second_norm):
        return feed_forward(second_norm(x + attention(first_norm(x))))

    def second_normed_copy(x, attention, feed_forward, first_norm, second_norm):
        x = second_norm(x + attention(first_norm(x)))
        return x + feed_forward(x)

    def first_normed_copy(x, attention, feed_forward, first_norm, second_norm):
        x = first_norm(x)
        x = x + attention(x)
        return x + feed_forward(second_norm(x))

    def on_outputs(x, attention, feed_forward, first_norm, second_norm):
        x = x + first_norm(attention(x))
        return x + second_norm(feed_forward(x))

    def first_unread(x, attention, feed_forward, first_norm, second_norm):
        x = x + attention(x)
        return x + feed_forward(second_norm(x))

    def second_unread(x, attention, feed_forward, first_norm, second_norm):
        x = x + attention(first_norm(x))
        return x + feed_forward(x)

    def feed_forward_alone(x, attention, feed_forward, first_norm, second_norm):
        return x + feed_forward(second_norm(x))

    def attention_alone(x, attention, feed_forward, first_norm, second_norm):
        return x + attention(first_norm(x))

    def reads_attention(x, attention, feed_forward, first_norm, second_norm):
        read = attention(first_norm(x))
        return x + read + feed_forward(second_norm(read))

    def swapped_norms(x, attention, feed_forward, first_norm, second_norm):
        return answer(x, attention, feed_forward, second_norm, first_norm)

    def second_twice(x, attention, feed_forward, first_norm, second_norm):
        return answer(x, attention, feed_forward, second_norm, second_norm)

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

    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 4, 3, generator=generator)
    alone = torch.randn(1, 5, generator=generator)
    parts = looks_back, torch.tanh, norm(1.0), norm(0.5)
    others = (lambda x: looks_back(x.flip(1)), torch.sin, norm(2.0), norm(0.3))
    replaced = [parts[:place] + (other,) + parts[place + 1 :] for place, other in enumerate(others)]
    return judge(
        "layer_output",
        function,
        answer=answer,
        cases=[(x, *parts), (other, *parts), *((x, *functions) for functions in replaced), (alone, *parts)],
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
            Mistake(
                first_lost,
                "your first sum is lost: attention's output is added to x, and you replace x by it",
            ),
            Mistake(
                second_lost,
                "your second sum is lost: feed-forward's output is added to the stream, and you return it alone",
            ),
            Mistake(swapped_norms, "your norms are swapped: the first is attention's, the second feed-forward's"),
            Mistake(first_normed_copy, "your first sum starts from the normed copy: add to x itself"),
            Mistake(
                second_normed_copy,
                "your second sum starts from the normed copy: add to what came out of the first sum",
            ),
            Mistake(on_outputs, "you norm what the parts return: norm what they read"),
            Mistake(first_unread, "your attention reads x itself: it must read a normed copy"),
            Mistake(second_unread, "your feed-forward reads the stream itself: it must read a normed copy"),
            Mistake(feed_forward_alone, "attention is missing"),
            Mistake(attention_alone, "feed-forward is missing"),
            Mistake(
                reads_attention,
                "your feed-forward reads attention's output alone: it must read the sum of that and x",
            ),
            Mistake(start_added, "attention's output is lost: the second sum must start from the result of the first"),
            Mistake(
                norm_after,
                "your norms come after the sums, as in the first transformers: here they come before attention and "
                "before feed-forward",
            ),
            Mistake(first_twice, "you use the first norm twice: feed-forward has its own"),
            Mistake(second_twice, "you use the second norm twice: attention has its own"),
            Mistake(other_order, "attention comes first, then feed-forward"),
            Mistake(no_norms, "your parts read x itself: each must read a normed copy"),
        ],
    )
