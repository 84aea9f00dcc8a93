"""`make picture`: draw the pictures in docs, which show where the parameters are, and the signs of all lessons."""

from collections.abc import Callable

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

import notebook_files
from mistral_lab import PRESETS, figures, memory
from mistral_lab.figures.language import QUIET, STATES
from mistral_lab.figures.style import STYLE

DOCS = notebook_files.ROOT / "docs"
MODELS = {"Mistral 7B": "mistral-7b-v0.1", "Mixtral 8x7B": "mixtral-8x7b-v0.1"}
PARTS = ("attention", "feed-forward networks, in Mixtral experts", "the rest")
WIDE, HIGH = 3.0, 1.75  # a sign's place on the page, in units of the stage


def main() -> None:
    """Draw both pictures and save them."""
    for name, ax in (("parameters", parameters()), ("visual-language", signs())):
        ax.figure.savefig(DOCS / f"{name}.png", dpi=200)
        plt.close(ax.figure)


def parameters() -> Axes:
    """Draw where the parameters of both models are."""
    counts = [memory.parameter_counts(PRESETS[name]) for name in MODELS.values()]
    amounts = [(c.attention, c.feed_forward, c.total - c.attention - c.feed_forward) for c in counts]
    return figures.plot_parameters(
        [[amount / 1e9 for amount in model] for model in amounts],
        models=[f"{name}\n{c.total / 1e9:.2f} billion" for name, c in zip(MODELS, counts, strict=True)],
        parts=PARTS,
        unit="billion parameters",
    )


@mpl.rc_context(STYLE)
def signs() -> Axes:
    """Draw each sign of the visual language once, in a small example, with its name."""
    rows = (
        (("token", token), ("query", query), ("key and value", key_and_value), ("expert", expert)),
        (("link", link), ("bytes of a cache", cache), ("bytes of weights", weights), ("now, past, idle", states)),
        (("measured", measured), ("predicted", predicted), ("floor", floor), ("guess", guess)),
    )
    _, [stage] = figures.new_stage(4 * WIDE, len(rows) * HIGH)
    for row, named in enumerate(rows):
        for column, (name, draw) in enumerate(named):
            left, below = column * WIDE + 0.2, (len(rows) - 1 - row) * HIGH
            figures.write(stage, left, below + HIGH - 0.3, name, fontsize=10, weight="bold", ha="left")
            draw(stage, left, below)
    return stage


def token(ax: Axes, x: float, y: float) -> None:
    """Two that were read, and the newest."""
    for place, (text, state) in enumerate((("My", "past"), ("favour", "past"), ("ite", "now"))):
        figures.draw_token(ax, x + 0.4 + 0.85 * place, y + 0.7, text, width=0.8, height=0.5, state=state)


def query(ax: Axes, x: float, y: float) -> None:
    """The four heads of a token."""
    for head in range(4):
        figures.draw_query(ax, x + 0.3 + 0.62 * head, y + 0.7, f"q{head}", size=0.52)


def key_and_value(ax: Axes, x: float, y: float) -> None:
    """Those of three tokens, the newest full."""
    for place, state in enumerate(("past", "past", "now")):
        left = x + 0.25 + 0.85 * place
        figures.draw_key(ax, left, y + 0.75, state=state)
        figures.draw_value(ax, left + 0.4, y + 0.75, state=state)
    figures.write(ax, x + 1.95, y + 0.3, "k", colour=QUIET)
    figures.write(ax, x + 2.35, y + 0.3, "v", colour=QUIET)


def expert(ax: Axes, x: float, y: float) -> None:
    """All eight of a layer."""
    for number in range(8):
        figures.draw_expert(ax, x + 0.15 + 0.33 * number, y + 0.7, number, width=0.28, height=0.7)


def link(ax: Axes, x: float, y: float) -> None:
    """A query that reads one key and not the other, and a token on its way to an expert."""
    for place, state in ((0.2, "now"), (1.0, "idle")):
        figures.draw_link(ax, (x + 0.6, y + 0.86), (x + place, y + 0.5), width=2.5, state=state)
        figures.draw_key(ax, x + place, y + 0.3, state="now" if state == "now" else "past")
    figures.draw_query(ax, x + 0.6, y + 1.05, size=0.42)
    figures.draw_link(ax, (x + 1.6, y + 0.9), (x + 2.4, y + 0.55), colour=figures.EXPERTS[3], width=3, curved=True)
    figures.draw_token(ax, x + 1.6, y + 1.05, "he", width=0.6, height=0.34)
    figures.draw_expert(ax, x + 2.4, y + 0.3, 3, width=0.4, height=0.5)


def cache(ax: Axes, x: float, y: float) -> None:
    """A bar on the track of what there is, with a mark to compare with."""
    figures.draw_bytes(ax, x, y + 0.85, 2, scale=0.65, text="2 KiB kept  | 3 KiB before", most=4, mark=3)


def weights(ax: Axes, x: float, y: float) -> None:
    """A bar."""
    figures.draw_bytes(ax, x, y + 0.85, 4, scale=0.6, text="14.5 GB", colour=figures.WEIGHTS)


def states(ax: Axes, x: float, y: float) -> None:
    """One sign in each state."""
    for place, state in enumerate(STATES):
        figures.draw_value(ax, x + 0.35 + 0.85 * place, y + 0.8, size=0.5, state=state)
        figures.write(ax, x + 0.35 + 0.85 * place, y + 0.32, state, colour=QUIET)


def chart(draw: Callable[[Axes], None]) -> Callable[[Axes, float, float], None]:
    """A small chart at a place of the stage, with milliseconds on its only axis, for `draw` to draw on."""

    def at(stage: Axes, x: float, y: float) -> None:
        ax = stage.inset_axes((x + 0.05, y + 0.5, 2.45, 0.7), transform=stage.transData)
        ax.set(
            xlim=(0, 10), ylim=(0, 1), yticks=[], xticks=[0, 5, 10], xticklabels=["0", "5 ms", "10"], facecolor="none"
        )
        ax.spines["left"].set_visible(False)
        draw(ax)

    return at


measured = chart(lambda ax: figures.draw_measured(ax, [5.7, 6.0, 6.6], [0.35, 0.35, 0.35]))
predicted = chart(lambda ax: figures.draw_predicted(ax, 4.2, 0.35))
floor = chart(lambda ax: figures.draw_floor(ax, 2.5))
guess = chart(lambda ax: figures.draw_guess(ax, 4, 0.05, label="your guess"))


if __name__ == "__main__":
    main()
