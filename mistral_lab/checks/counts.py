"""Lesson 1: the parameters of a model, and the least time in which memory delivers them."""

from collections.abc import Callable
from dataclasses import replace

from ..config import PRESETS, ModelConfig
from ..memory import parameter_counts
from .judging import Mistake, judge


def parameter_count(function: Callable) -> Callable:
    """Check `function(config)`: the parameters of a dense model whose input and output tables are two.

    >>> my_answer = parameter_count(lambda config: NotImplemented)
    parameter_count: not tried yet; the lesson goes on with its own
    """

    def answer(config):
        return parameter_counts(config).total

    def counted(*, tables=2, matrices=3, norms=2, last=1, wide=None, kv=lambda config: 2 * config.n_kv_heads, each=1):
        def wrong(config):
            queries = config.n_heads * config.head_dim if wide is None else wide(config)
            layer = (2 * queries + kv(config) * config.head_dim + matrices * config.hidden_dim + norms) * config.dim
            outside = tables * config.vocab_size * config.dim + last * config.dim
            return each * (outside + config.n_layers * layer)

        return wrong

    def summed(layers_of_attention, layers_of_feed_forward, numbers_of_norms):
        def wrong(config):
            c = config
            attention = 2 * c.dim * c.head_dim * (c.n_heads + c.n_kv_heads) * layers_of_attention(c)
            feed_forward = 3 * c.dim * c.hidden_dim * layers_of_feed_forward(c)
            return attention + feed_forward + numbers_of_norms(c) + 2 * c.vocab_size * c.dim

        return wrong

    def every(config):
        return config.n_layers

    def once(config):
        return 1

    def none(config):
        return 0

    def norms(config):
        return (2 * config.n_layers + 1) * config.dim

    sizes = {"dim": 12, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "head_dim": 4, "hidden_dim": 20}
    config = ModelConfig(vocab_size=50, **sizes, norm_eps=1e-5, rope_theta=1e4, max_positions=64)
    others = {"vocab_size": 70, "dim": 16, "n_layers": 5, "n_heads": 8, "n_kv_heads": 1, "head_dim": 6}
    return judge(
        "parameter_count",
        function,
        answer=answer,
        cases=[(PRESETS["mistral-7b-v0.1"],), (config,)]
        + [(replace(config, **{name: size}),) for name, size in {**others, "hidden_dim": 28}.items()],
        mistakes=[
            Mistake(
                counted(kv=lambda config: 2 * config.n_heads),
                "you get {got}: keys and values have {config.n_kv_heads} heads, not {config.n_heads} as queries have",
            ),
            Mistake(
                counted(wide=lambda config: config.dim, kv=lambda config: 2 * config.dim / config.head_dim),
                "you get {got}: attention is not four matrices of one size; keys and values have "
                "{config.n_kv_heads} heads, not {config.n_heads}",
            ),
            Mistake(
                counted(kv=lambda config: config.n_kv_heads),
                "you get {got}: keys and values have a matrix each, and you count one for both",
            ),
            Mistake(
                counted(wide=lambda config: config.n_heads * config.head_dim / 2),
                "you get {got}: attention has two matrices of {config.n_heads} heads, that of the queries and that of "
                "the output; one is missing",
            ),
            Mistake(
                counted(wide=lambda config: config.n_heads * config.head_dim, kv=lambda config: 0),
                "you get {got}: the matrices of keys and of values are missing",
            ),
            Mistake(
                counted(kv=lambda config: 2),
                "you get {got}: keys and values have {config.n_kv_heads} heads, and you count one",
            ),
            Mistake(
                lambda config: answer(replace(config, head_dim=config.dim // config.n_heads)),
                "you get {got} for dim {config.dim}, n_heads {config.n_heads} and head_dim {config.head_dim}: a head "
                "is head_dim wide, which need not be dim / n_heads",
            ),
            Mistake(
                summed(once, once, norms),
                "you get {got}: attention and feed-forward stand in each of the {config.n_layers} layers, and you "
                "count one layer",
            ),
            Mistake(
                summed(every, once, norms),
                "you get {got}: the feed-forward network stands in each of the {config.n_layers} layers, not once",
            ),
            Mistake(
                summed(once, every, norms),
                "you get {got}: attention stands in each of the {config.n_layers} layers, not once",
            ),
            Mistake(summed(every, none, norms), "you get {got}: the feed-forward networks are missing"),
            Mistake(summed(none, every, norms), "you get {got}: attention is missing"),
            Mistake(
                summed(every, every, lambda config: config.n_layers * norms(config)),
                "you get {got}: 2 L + 1 norms are all norms of the model, not those of one layer",
            ),
            Mistake(
                lambda config: config.n_layers * summed(once, once, norms)(config),
                "you get {got}: the tables and the last norm stand once, not in each of the {config.n_layers} layers; "
                "2 L + 1 norms are all norms of the model",
            ),
            Mistake(
                lambda config: config.n_layers * summed(once, once, none)(config) + norms(config),
                "you get {got}: the tables stand once, not in each of the {config.n_layers} layers",
            ),
            Mistake(
                summed(every, every, lambda config: 2 * config.n_layers + 1),
                "you get {got}: each norm has dim numbers, and you count one for each norm",
            ),
            Mistake(counted(tables=1), "you get {got}: a table is missing; the input and the output have one each"),
            Mistake(counted(tables=0), "you get {got}: the tables are missing, at the input and at the output"),
            Mistake(counted(matrices=2), "you get {got}: the feed-forward network has three matrices, not two"),
            Mistake(counted(matrices=1), "you get {got}: the feed-forward network has three matrices, not one"),
            Mistake(
                lambda config: counted()(replace(config, n_layers=1)),
                "you get {got}, with one layer: there are {config.n_layers}",
            ),
            Mistake(
                lambda config: config.n_layers * counted()(replace(config, n_layers=1)),
                "you get {got}: the tables and the last norm stand once, not in each of the {config.n_layers} layers",
            ),
            Mistake(
                counted(norms=0, last=0),
                "you get {got}: the norms are missing, two in each layer and one at the end, of dim numbers each",
            ),
            Mistake(counted(last=0), "you get {got}: the last norm is missing, the one after all layers"),
            Mistake(counted(norms=1), "you get {got}: each layer has two norms, and you count one"),
            Mistake(counted(norms=3, last=0), "you get {got}: the last norm stands once, not in each layer"),
            Mistake(counted(norms=0), "you get {got}: each layer has two norms, and you count the last one alone"),
            Mistake(
                counted(wide=lambda config: config.dim),
                "you get {got} for dim {config.dim}, n_heads {config.n_heads} and head_dim {config.head_dim}: the "
                "query heads are together n_heads times head_dim wide, which need not be dim",
            ),
            Mistake(counted(each=2), "you get {got}, twice too much: is that bytes? Parameters are asked for"),
            Mistake(counted(each=4), "you get {got}, four times too much: is that bytes? Parameters are asked for"),
        ],
    )


def least_time(function: Callable) -> Callable:
    """Check `function(parameters, bits, bytes_per_s)`: the least seconds in which memory delivers the weights.

    >>> my_answer = least_time(lambda parameters, bits, bytes_per_s: NotImplemented)
    least_time: not tried yet; the lesson goes on with its own
    """

    def answer(parameters, bits, bytes_per_s):
        return parameters * bits / 8 / bytes_per_s

    def times(factor):
        return lambda parameters, bits, bytes_per_s: factor * answer(parameters, bits, bytes_per_s)

    return judge(
        "least_time",
        function,
        answer=answer,
        cases=[(8e9, 16, 1e11), (8e9, 4, 1e11), (2e9, 16, 1e11), (8e9, 16, 5e10), (7.2e9, 32, 2.5e10), (5e6, 8, 3e10)],
        mistakes=[
            Mistake(times(8), "your time is 8 times too long: are those bits where bytes are meant?"),
            Mistake(times(64), "your time is 64 times too long: bits are divided by 8 to get bytes, not multiplied"),
            Mistake(times(2), "your time is twice too long: a pass reads each weight once, and a byte has 8 bits"),
            Mistake(
                lambda parameters, bits, bytes_per_s: parameters * max(1, bits // 8) / bytes_per_s,
                "with {bits} bits a weight is less than a byte, and you count a whole one",
            ),
            Mistake(times(1e3), "you return {got}, which is milliseconds: seconds are asked for"),
            Mistake(times(1e6), "you return {got}, which is microseconds: seconds are asked for"),
            Mistake(times(1e9), "you return {got}, 10^9 times too much: bytes_per_s is in bytes, not in GB"),
            Mistake(times(1e-9), "you return {got}, 10^9 times too little: parameters are counted in ones"),
            Mistake(
                lambda parameters, bits, bytes_per_s: parameters * bits / 8 // bytes_per_s,
                "you return {got}: `//` drops the fraction, as rounding does, and the time is less than a second",
            ),
            Mistake(
                lambda parameters, bits, bytes_per_s: parameters * 4 / bytes_per_s,
                "you count 4 bytes for every weight, which is float32: here a weight has {bits} bits",
            ),
            Mistake(
                lambda parameters, bits, bytes_per_s: parameters * 2 / bytes_per_s,
                "you count 2 bytes for every weight, which is 16 bits: here a weight has {bits} bits",
            ),
            Mistake(
                lambda parameters, bits, bytes_per_s: parameters / bytes_per_s,
                "you count a byte for every weight: here a weight has {bits} bits",
            ),
            Mistake(
                lambda parameters, bits, bytes_per_s: bytes_per_s / (parameters * bits / 8),
                "you return tokens per second: the question is how many seconds one takes",
            ),
            Mistake(
                lambda parameters, bits, bytes_per_s: parameters * bits / 8 * bytes_per_s,
                "you multiply bytes and bytes per second: what gives seconds is a division",
            ),
            Mistake(
                lambda parameters, bits, bytes_per_s: parameters * bits / 8,
                "you return {got}, which is the bytes: divide by the bytes per second",
            ),
        ],
    )
