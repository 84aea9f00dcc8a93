"""The explorer of routing: a text that the reader types, each token in the colour of its expert."""

from functools import lru_cache

import ipywidgets as widgets
import torch

from ..config import ModelConfig
from ..figures import WIDTH_IN, bare_figure, drawable, plot_coloured_tokens, plot_load_bars, token_places
from ..figures.tokens import LINE_POINTS
from ..moe import capture_routing, expert_load
from .base import FULL, Explorer, moving_slider

MOST_TOKENS, MOST_LINES = 160, 18
TEXTS_KEPT = 8
TEXT = "Once there was a baker called Nora, and she lived near the river.\ndef add(a, b):\n    return a + b\n3 + 4 = 7"
TEXT_IN, LOADS_IN = 5.6, 1.3  # widths of the two panels
TOP_IN, BOTTOM_IN, LEFT_IN, RIGHT_IN = 0.35, 0.6, 0.15, 0.25  # around them
LEAST_IN, BAR_IN = 1.5, 0.22  # of the panels: the least height, and the height per bar


def routed_text(model: torch.nn.Module, tokenizer) -> Explorer:
    """Type a text and see where each layer sends each of its tokens. The model runs once per text.

    A long text is cut to what fits into the picture. That changes nothing for the tokens that are left, because a
    causal model does not look ahead.

    Args:
        model: a mixture of experts of transformers or of this lab, as `moe.capture_routing` takes it.
        tokenizer: that of the model.

    Raises:
        ValueError: the model has no experts.
    """
    config = model.config if isinstance(model.config, ModelConfig) else ModelConfig.from_transformers(model.config)
    if not config.num_experts:
        raise ValueError(f"{type(model).__name__} has no experts: load a mixture, such as tiny-mixtral")
    E, A = config.num_experts, config.num_experts_per_tok

    @lru_cache(TEXTS_KEPT)
    def route(text: str):
        # Not verbose, or it would warn of a text that is longer than the model's context.
        numbers = tokenizer(text, verbose=False)["input_ids"]
        if not numbers:
            raise ValueError("there is no token, so type some text")
        pieces = [tokenizer.decode([number]) for number in numbers[:MOST_TOKENS]]
        places = token_places(pieces, experts=E, width_in=TEXT_IN)
        shown = int((places[:, 2] < MOST_LINES).sum())
        device = next(model.parameters()).device
        routings = capture_routing(model, torch.tensor([numbers[:shown]], device=device))
        choices = [routing.indices.cpu() for routing in routings]
        return pieces[:shown], places[:shown], choices, len(numbers)

    def view(text: str, layer: int):
        pieces, places, choices, total = route(text)
        load = expert_load(choices[layer], E).numpy()
        first = choices[layer][:, 0].tolist()
        panel_in = max(LEAST_IN, E * BAR_IN, (1 + places[:, 2].max()) * LINE_POINTS / 72)
        height = TOP_IN + panel_in + BOTTOM_IN
        figure, axes = bare_figure(1, 2, height_in=height)
        for ax, left, width in zip(
            axes[0], (LEFT_IN, WIDTH_IN - RIGHT_IN - LOADS_IN), (TEXT_IN, LOADS_IN), strict=True
        ):
            ax.set_position((left / WIDTH_IN, BOTTOM_IN / height, width / WIDTH_IN, panel_in / height))
        title = f"layer {layer}: each token in the colour and with the number of its first expert"
        plot_coloured_tokens(pieces, experts=first, places=places, title=title, ax=axes[0, 0])
        plot_load_bars(load, ax=axes[0, 1])
        cut = f"Only the first {len(pieces)} of {total:,} tokens are shown. " if len(pieces) < total else ""
        return figure, (
            f"{cut}Layer {layer} sends {len(pieces)} token{'s' * (len(pieces) > 1)} to {A} of {E} experts each. Of all "
            f"choices expert {load.argmax()} gets the most, {load.max():.0%}, expert {load.argmin()} the fewest, "
            f"{load.min():.0%}; even would be {1 / E:.1%}. The first token, “{drawable(pieces[0])}”, goes to expert "
            f"{first[0]} first."
        )

    words = {"continuous_update": False, "rows": 4, "style": FULL, "layout": {"width": "56em", "max_width": "100%"}}
    controls = {
        "text": widgets.Textarea(TEXT, description="text, routed when you leave the field", **words),
        "layer": moving_slider("layer", 0, 0, config.n_layers - 1, interval_ms=1500),
    }
    return Explorer(controls, view)
