"""`make picture`: draw docs/parameters.png for the README, which shows where the parameters of both models are."""

import notebook_files
from mistral_lab import PRESETS, figures, memory

MODELS = {"Mistral 7B": "mistral-7b-v0.1", "Mixtral 8x7B": "mixtral-8x7b-v0.1"}
PARTS = ("attention", "feed-forward networks, in Mixtral experts", "the rest")


def main() -> None:
    """Count the parameters, draw the picture, save it."""
    counts = [memory.parameter_counts(PRESETS[name]) for name in MODELS.values()]
    amounts = [(c.attention, c.feed_forward, c.total - c.attention - c.feed_forward) for c in counts]
    ax = figures.plot_parameters(
        [[amount / 1e9 for amount in model] for model in amounts],
        models=[f"{name}\n{c.total / 1e9:.2f} billion" for name, c in zip(MODELS, counts, strict=True)],
        parts=PARTS,
        unit="billion parameters",
    )
    ax.figure.savefig(notebook_files.ROOT / "docs" / "parameters.png", dpi=200)


if __name__ == "__main__":
    main()
