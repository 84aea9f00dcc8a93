"""Every explorer: one bundle for all readers, a picture that follows the controls, a sentence that says their state."""

import base64
import gc
import io
import json
import warnings
import weakref
from html import unescape
from importlib.resources import files

import explorer_makers
import IPython.display
import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import torch
from explorer_makers import MAKERS, STORY, loaded
from figure_checks import check_whole

from mistral_lab import PRESETS, explorers, figures, memory, moe, nf4
from mistral_lab.explorers import base
from mistral_lab.explorers.base import VIEW, Explorer
from mistral_lab.explorers.prediction import SHOWN
from mistral_lab.figures.tokens import font_letters


@pytest.fixture(scope="module")
def dense():
    return loaded("tiny-mistral")


@pytest.fixture(scope="module")
def mixture():
    return loaded("tiny-mixtral")


@pytest.fixture(scope="module")
def by_depth():
    return explorer_makers.by_depth()


@pytest.fixture(scope="module")
def record():
    return json.loads((files("mistral_lab") / "bundled" / "traces" / "ranks.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=MAKERS)
def untouched(request) -> Explorer:
    """One that no test may move."""
    return MAKERS[request.param]()


@pytest.fixture(params=MAKERS)
def explorer(request) -> Explorer:
    return MAKERS[request.param]()


def ends(control) -> list:
    """The first and the last value of a control; for a text, an empty and a long one."""
    if isinstance(control, widgets.Checkbox):
        return [False, True]
    if isinstance(control, widgets.Textarea):
        return ["", "word " * 2_000]
    if options := getattr(control, "options", None):
        return [options[0], options[-1]]
    return [control.min, control.max]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB"))


def drawn(explorer: Explorer):
    """The figure of the state as it is."""
    return explorer._drawn()[0]


def test_one_bundle_holds_the_live_view_a_picture_and_the_sentence(untouched):
    data, metadata = untouched._repr_mimebundle_()
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert data[VIEW]["model_id"] == untouched.widget.model_id
    assert metadata == {"image/png": {"width": 800, "alt": base.ALT}}
    assert data["text/plain"].endswith(".")
    assert len(data["text/plain"].split()) > 5
    assert pixels(data["image/png"]).shape[1] == 1600
    assert len(data["image/png"]) < 60_000  # a lesson with all of its pictures stays below a megabyte


def test_the_sentence_stands_below_the_picture_live_or_as_a_line_of_the_page(monkeypatch):
    def view(value: int):
        return number(value)[0], "The token “<s>” costs $2 * 3."

    sent = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw, metadata=None: sent.append((data, metadata)))
    explorer = Explorer({"value": base.count_slider("value", 1, 0, 3)}, view)
    explorer._ipython_display_()
    (picture, metadata), (sentence, _) = sent
    data, described = explorer._repr_mimebundle_()
    assert metadata == described
    assert picture.pop("image/png") == base64.b64encode(data.pop("image/png")).decode()
    assert picture == data
    assert set(sentence) == {VIEW, "text/markdown"}  # a live page shows the widget, another one the line
    assert sentence["text/markdown"] == "The token “&#60;s>” costs &#36;2 &#42; 3."
    live = {widget.model_id for widget in (explorer.widget, *explorer.widget.children)}
    assert sentence[VIEW]["model_id"] == explorer._text.model_id
    assert explorer._text.model_id not in live  # or it would stand there twice


def test_the_picture_that_is_kept_is_the_one_on_the_screen_unless_it_is_a_strip_of_moments(untouched):
    data = untouched._repr_mimebundle_()[0]
    if data["text/plain"] != untouched.sentence:
        assert data["text/plain"].startswith("Four moments")
        return
    kept, live = pixels(data["image/png"]), pixels(untouched.png)
    assert kept.shape == live.shape
    assert np.abs(kept.astype(int) - live).mean() < 1  # of 255: 256 colours are kept


def test_every_explorer_is_tested_and_timed():
    makers = set(explorers.__all__) - {"Explorer", "Guess", "moving_slider", "loop_picture"}
    assert set(MAKERS) == makers


def test_every_control_is_labelled_and_worked_by_keyboard(untouched):
    by_keyboard = (
        widgets.IntSlider,
        widgets.SelectionSlider,
        widgets.Dropdown,
        widgets.Checkbox,
        widgets.Textarea,
    )
    for control in untouched.controls.values():
        assert control.description
        assert control.style.description_width == "initial"
        assert isinstance(control, by_keyboard)
        row = untouched.widget.children[0].children
        assert control in row or any(control in getattr(box, "children", ()) for box in row)


def test_both_ends_of_every_control_can_be_drawn(explorer):
    for name, control in explorer.controls.items():
        start, states = control.value, []
        for value in ends(control):
            control.value = value
            assert "cannot be drawn" not in explorer.sentence, explorer.sentence
            assert explorer.sentence in unescape(explorer._text.value)
            check_whole(drawn(explorer))
            states.append((explorer.png, explorer.sentence))
        assert states[0] != states[1], f"{name} moves nothing"
        if not isinstance(control, widgets.SelectionSlider) or start in control.options:
            control.value = start


def test_moving_changes_neither_the_bundle_nor_pyplot_nor_the_readers_style(explorer):
    plt.close("all")
    bundle, settings = explorer._repr_mimebundle_(), dict(plt.rcParams)
    for control in explorer.controls.values():
        control.value = ends(control)[0]
    assert explorer._repr_mimebundle_() == bundle
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == settings


def test_the_same_state_gives_the_same_picture(explorer):
    name, control = list(explorer.controls.items())[-1]
    start, first = control.value, (explorer.png, explorer.sentence)
    control.value = ends(control)[1] if ends(control)[1] != start else ends(control)[0]
    assert (explorer.png, explorer.sentence) != first, name
    control.value = start
    assert (explorer.png, explorer.sentence) == first


# --- the wrapper


def number(value: int):
    figure, axes = figures.bare_figure(height_in=1.0)
    axes[0, 0].set_title(str(value))
    return figure, f"The number is {value}."


def test_a_lesson_and_an_explorer_keep_the_same_bytes_of_the_same_picture(monkeypatch):
    """Both go through one encoder. This picture has more colours than are kept, so another choice would show."""
    sent = []
    monkeypatch.setattr(IPython.display, "display", lambda image: sent.append(image.data))

    def view(value: int):
        figure, axes = figures.bare_figure(height_in=2.0)
        axes[0, 0].imshow(np.random.default_rng(value).random((8, 20, 3)), aspect="auto")
        axes[0, 0].set_position((0.1, 0.2, 0.8, 0.7))
        return figure, "These are random colours."

    explorer = Explorer({"value": base.count_slider("value", 1, 0, 3)}, view)
    figure = drawn(explorer)
    figures.show(figure, "The same random colours.", "Chance has no pattern.")
    assert sent[:1] == [explorer._repr_mimebundle_()[0]["image/png"]]

    exact = np.asarray(figures.render(figure)).astype(int)
    assert len(np.unique(exact.reshape(-1, 3), axis=0)) > 256
    kept = pixels(sent[0])
    assert np.abs(kept - exact).max() < 16  # the octree has boxes enough here, each 16 of 256 wide
    page = (exact == 255).all(axis=-1)
    assert page.mean() > 0.2
    assert (kept[page] == 255).all()


def test_a_fault_in_a_callback_becomes_a_sentence_and_the_picture_stays():
    def view(value: int):
        if value == 2:
            raise KeyError("no <b>two</b>\nhere")
        return number(value)

    explorer = Explorer({"value": base.count_slider("value", 1, 0, 3)}, view)
    before = explorer.png
    explorer.controls["value"].value = 2
    assert explorer.sentence.startswith("This cannot be drawn: ")
    assert "\n" not in explorer.sentence
    assert "<b>" not in explorer._text.value
    assert explorer.png == before
    explorer.controls["value"].value = 3
    assert explorer.sentence == "The number is 3."
    assert explorer.png != before


def test_the_first_state_must_be_drawable_and_each_control_described():
    with pytest.raises(ZeroDivisionError):
        Explorer({"value": base.count_slider("value", 0, 0, 3)}, lambda value: number(1 // value))
    with pytest.raises(ValueError, match="without a description: value"):
        Explorer({"value": widgets.IntSlider()}, number)


def test_a_still_stands_for_the_explorer_where_no_kernel_runs():
    def still():
        figure, axes = figures.bare_figure(1, 4, height_in=1.5)
        for moment, ax in enumerate(axes[0]):
            ax.set_title(str(moment))
        return figure, "The number at four moments."

    explorer = Explorer({"value": base.count_slider("value", 1, 0, 3)}, number, still)
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == "The number at four moments."
    assert pixels(data["image/png"]).shape == (300, 1600, 3)
    assert explorer.sentence == "The number is 1."
    assert pixels(explorer.png).shape == (200, 1600, 3)
    explorer.controls["value"].value = 2
    assert explorer._repr_mimebundle_() == (data, metadata)


def test_a_moving_slider_runs_with_its_play_button_and_stays_within_its_ends():
    slider = base.moving_slider("value", 1, 0, 3, interval_ms=400)
    explorer = Explorer({"value": slider}, number)
    (together,) = explorer.widget.children[0].children  # they stay side by side where a row is full
    assert list(together.children) == [slider, slider.play]
    assert slider.play.interval == 400
    slider.play.value = 2
    assert explorer.sentence == "The number is 2."
    slider.value = 3
    assert slider.play.value == 3
    slider.max = 2
    assert (slider.play.max, slider.play.value, explorer.sentence) == (2, 2, "The number is 2.")


def test_a_move_leaves_no_figure_to_the_collector_and_the_collector_as_it_was():
    made = []

    def view(value: int):
        figure, sentence = number(value)
        made.append(weakref.ref(figure))
        if value == 2:
            raise ValueError("no two")
        return figure, sentence

    explorer = Explorer({"value": base.count_slider("value", 1, 0, 3)}, view)
    made.clear()
    for collecting in (True, False):
        gc.enable() if collecting else gc.disable()
        try:
            for value in (0, 2, 3):
                explorer.controls["value"].value = value
            assert gc.isenabled() == collecting
        finally:
            gc.enable()
    assert [figure() for figure in made] == [None] * 6


def test_a_stage_is_laid_out_by_its_view_alone():
    def view(value: int):
        figure, panels = figures.new_stage(4, 1, columns=value, kept=False)
        figures.draw_query(panels[0], 1, 0.5)
        return figure, f"The number is {value}."

    explorer = Explorer({"value": base.count_slider("value", 1, 1, 3)}, view)
    explorer.controls["value"].value = 3
    assert explorer.sentence == "The number is 3."
    assert [ax.get_position().x0 for ax in drawn(explorer).axes] == pytest.approx([0, 1 / 3, 2 / 3])


def test_what_adapts_a_control_draws_once():
    calls = []

    def view(many: int, few: int):
        calls.append((many, few))
        return number(few)

    def adapt(controls):
        controls["few"].max = controls["many"].value

    controls = {"many": base.count_slider("many", 9, 1, 9), "few": base.count_slider("few", 9, 1, 9)}
    Explorer(controls, view, adapt=adapt)
    controls["many"].value = 4
    assert calls == [(9, 9), (4, 4)]


def test_offer_keeps_what_is_still_offered_and_else_takes_the_largest_below():
    control = base.choice_slider("K", 8, [1, 2, 4, 8])
    base.offer_choices(control, [1, 2, 4, 8, 16])
    assert control.value == 8
    base.offer_choices(control, [1, 2, 3, 6])
    assert control.value == 6
    base.offer_choices(control, [7])
    assert control.value == 7


def test_offer_takes_the_nearest_name_where_the_chosen_one_is_not_offered():
    order = ["a", "b", "c", "d"]
    control = base.choice_list("letter", "b", order)
    base.offer_names(control, ["a", "b"], order=order)
    assert control.value == "b"
    base.offer_names(control, ["c", "d"], order=order)
    assert control.value == "c"
    base.offer_names(control, ["a"], order=order)
    assert control.value == "a"


# --- what each of them says


def test_sampling_says_what_a_slow_count_says():
    scores = np.array([2.0, 1.0, 0.5, -1.0, -3.0])

    class Letters:
        def decode(self, numbers):
            return "abcde"[numbers[0]]

    explorer = explorers.next_token(torch.tensor(scores), Letters())
    for temperature, top_p in ((0.7, 0.9), (2.0, 0.5), (0.1, 1.0), (1.0, 1.0)):
        explorer.controls["temperature"].value, explorer.controls["top_p"].value = temperature, top_p
        weights = np.exp(scores / temperature)
        probabilities = weights / weights.sum()
        kept, together = [], 0.0
        for probability in probabilities:  # they fall
            if together < top_p or top_p == 1:
                kept.append(probability)
            together += probability
        assert (
            f"{len(kept)} of 5 tokens can be drawn, “a” with probability {kept[0] / sum(kept):.2f}" in explorer.sentence
        )
        entropy = -(probabilities * np.log2(probabilities)).sum()
        assert f"{entropy:.2f} after the temperature" in explorer.sentence
    explorer.controls["temperature"].value = 0.0
    assert "1 of 5 tokens can be drawn, “a” with probability 1.00" in explorer.sentence


@pytest.mark.parametrize("token", ["$x^$", "$$", "\\", "'\"", "未来" * 9])
def test_no_token_is_read_as_a_formula_or_too_long(token):
    class Same:
        def decode(self, numbers):
            return token

    check_whole(drawn(explorers.next_token(torch.tensor([2.0, 1.0]), Same())))
    check_whole(drawn(explorers.guesses_by_layer([99 * torch.eye(2)] * 3, [0, 1], Same())))
    figure, axes = figures.bare_figure()
    places = figures.token_places([token], experts=1, width_in=5.0)
    figures.plot_coloured_tokens([token], experts=[0], places=places, title="x", ax=axes[0, 0])
    figure.draw_without_rendering()  # a formula that is none would raise


def test_left_out_tokens_are_marked_and_get_no_probability(by_depth, dense):
    explorer = explorers.next_token(by_depth[0][-1][-1], dense.tokenizer)
    explorer.controls["top_p"].value = 0.5
    before, after = drawn(explorer).axes
    before, after = (sorted(ax.patches, key=lambda bar: bar.get_y())[:SHOWN] for ax in (before, after))
    hatched = [bool(bar.get_hatch()) for bar in before]  # below them is a bar for all other tokens
    widths = [bar.get_width() for bar in after]
    assert hatched == [width == 0 for width in widths]
    assert 0 < sum(hatched) < len(hatched)


def test_the_lens_names_the_guess_of_every_depth(by_depth, dense):
    logits, tokens = by_depth
    explorer = explorers.guesses_by_layer(logits, tokens, dense.tokenizer)
    explorer.controls["position"].value = 4
    for text, depth in zip(drawn(explorer).axes[0].texts, logits, strict=True):
        probability, guess = depth[4].double().softmax(dim=-1).max(dim=-1)
        assert text.get_text() == f"{figures.drawable(repr(dense.tokenizer.decode([int(guess)])))}  {probability:.2f}"


def test_only_divisors_are_offered_and_the_cache_is_that_of_the_formula():
    explorer = explorers.head_groups()
    for H in (12, 28, 1):
        explorer.controls["H"].value = H
        options = explorer.controls["K"].options
        assert list(options) == [K for K in range(1, H + 1) if H % K == 0]
        assert explorer.controls["K"].value in options
    explorer = explorers.head_groups()
    explorer.controls["context"].value = 8192
    assert 2 * 32 * 8 * 128 * 8192 * 2 == 2**30
    assert "takes 1 GiB at 16 bits" in explorer.sentence
    assert "4 times less" in explorer.sentence


RELAYS = [(12, 5, 3), (12, 4, 3), (12, 4, 4), (7, 1, 2), (1, 3, 2), (0, 5, 1)]


@pytest.mark.parametrize(("token", "window", "layers"), RELAYS)
def test_the_relay_says_what_a_walk_from_key_to_key_finds(token, window, layers):
    explorer = explorers.relay()
    for name, value in {"token": token, "window": window, "layers": layers}.items():
        explorer.controls[name].value = value
    back, hops = token - 1, 0
    reached = {token}
    while 1 not in reached and hops < layers:  # the name is token 1
        reached |= {key for query in reached for key in range(query + 1) if query - key < window}
        hops += 1
    if back < 0:
        assert "not been told yet" in explorer.sentence
    elif 1 in reached:
        assert f"is {back} back, {'still' if back < window else 'no longer'} among the keys" in explorer.sentence
        assert explorer.sentence.endswith(f"hears of it after layer {hops}." if hops else "is the name itself.")
    else:
        assert "it is lost for" in explorer.sentence
    [ax] = drawn(explorer).axes
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("Lena") == (token >= 1) + (token == 12 and 1 in reached)
    assert ("?" in texts) == (token == 12 and 1 not in reached)


@pytest.mark.parametrize("window", [1, 3, 8])
def test_the_ring_shows_what_a_list_of_the_last_positions_holds(window):
    explorer = explorers.ring_cache()
    explorer.controls["window"].value = window
    last = explorer.controls["token"].max
    for token in (0, window - 1, window, last):
        explorer.controls["token"].value = token
        kept = [position for position in range(last + 1) if 0 <= token - position < window]
        ring, text = drawn(explorer).axes
        slots = [label.get_text().split("\n")[1] for label in ring.texts if "\n" in label.get_text()]
        assert {int(slot) for slot in slots if slot.isdigit()} == set(kept)
        assert len(text.lines) == token + 1 - len(kept)  # each lost token is struck out
        assert f"goes to slot {token} mod {window} = {token % window}" in explorer.sentence
        assert ("overwrites" in explorer.sentence) == (token >= window)


def test_the_play_button_moves_the_token():
    explorer = explorers.ring_cache()
    play, before = explorer.controls["token"].play, explorer.png
    play.value += 1
    assert explorer.controls["token"].value == play.value
    assert explorer.png != before
    explorer.controls["token"].value = 0
    assert play.value == 0


def test_four_bits_says_the_error_and_the_bits_of_the_reference():
    explorer = explorers.four_bits()
    for block, outlier, double in ((64, 10, False), (32, 60, False), (4096, 60, True), (32, 0, True)):
        for name, value in {"block_size": block, "outlier": outlier, "double": double}.items():
            explorer.controls[name].value = value
        w = torch.randn(2**14, generator=torch.Generator().manual_seed(0))
        if outlier:
            w[5] = outlier
        back = nf4.dequantize(nf4.quantize(w, block_size=block, double=double)).numpy()
        others = np.delete(np.arange(block), 5)
        error = np.sqrt(np.mean((back - w.numpy())[others] ** 2))
        assert f"the error is {error:.0%} of" in explorer.sentence
        scales = 8 / block + 32 * -(-(2**14 // block) // 256) / 2**14 if double else 32 / block
        assert f"take {4 + scales:.3f} bits each" in explorer.sentence


def test_the_planner_repeats_the_plan_and_offers_no_longer_text_than_the_model_takes():
    explorer = explorers.memory_plan()
    explorer.controls["card"].value, explorer.controls["precision"].value = "T4", "bfloat16"
    asked = {"precision": "bfloat16", "context": 4096, "device_bytes": memory.DEVICES["T4"]}
    assert str(memory.plan(PRESETS["mixtral-8x7b-v0.1"], **asked)) in explorer.sentence
    explorer.controls["context"].value = 32_768
    explorer.controls["model"].value = "llama-2-7b"
    assert max(explorer.controls["context"].options) == 4096 == explorer.controls["context"].value
    assert "fits" in explorer.sentence


def test_the_planner_says_what_runs_with_experts_outside_a_card_that_is_too_small():
    explorer = explorers.memory_plan()
    explorer.controls["card"].value = "RTX 3070"
    asked = {"precision": "nf4-double", "context": 4096, "device_bytes": memory.DEVICES["RTX 3070"]}
    machine = {"host_bytes": 64 * 2**30, "speeds": memory.SPEEDS["RTX 3070"]}
    outside = memory.plan_outside(PRESETS["mixtral-8x7b-v0.1"], **asked, **machine)
    assert explorer.sentence.endswith(f" With its experts in the computer's memory: {outside}.")
    assert "6 of 8 experts per layer outside" in explorer.sentence
    explorer.controls["model"].value = "llama-2-70b"
    assert "experts" not in explorer.sentence


# --- routing


class Counted(torch.nn.Module):
    """A mixture that counts its runs."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.runs = model, model.config, 0

    def forward(self, *inputs):
        self.runs += 1
        return self.model(*inputs)


def test_the_model_runs_once_a_text_and_the_layer_only_indexes(mixture):
    model = Counted(mixture.model)
    explorer = explorers.routed_text(model, mixture.tokenizer)
    assert model.runs == 1
    for layer in range(4):
        explorer.controls["layer"].value = layer
    assert model.runs == 1
    start = explorer.controls["text"].value
    explorer.controls["text"].value = "another text"
    assert model.runs == 2
    explorer.controls["text"].value = start  # kept
    assert model.runs == 2


def test_tokens_have_the_colour_and_the_number_of_their_first_expert(mixture):
    explorer = explorers.routed_text(mixture.model, mixture.tokenizer)
    explorer.controls["text"].value, explorer.controls["layer"].value = STORY, 2
    numbers = mixture.tokenizer(STORY)["input_ids"]
    indices = moe.capture_routing(mixture.model, torch.tensor([numbers]))[2].indices
    words, loads = drawn(explorer).axes
    for text, box, number, expert in zip(words.texts, words.patches, numbers, indices[:, 0].tolist(), strict=True):
        assert text.get_text() == mixture.tokenizer.decode([number]) + "₀₁₂₃₄₅₆₇"[expert]
        assert box.get_facecolor() == loads.patches[expert].get_facecolor()
    shares = np.bincount(indices.flatten(), minlength=8) / indices.numel()
    np.testing.assert_allclose([bar.get_width() / 100 for bar in loads.patches], shares, rtol=1e-6)  # float32


def test_the_labs_own_transformer_is_routed_alike(mixture):
    from mistral_lab.transformer import Transformer

    explorer = explorers.routed_text(mixture.model, mixture.tokenizer)
    own = explorers.routed_text(Transformer.from_pretrained("tiny-mixtral"), mixture.tokenizer)
    assert own.sentence == explorer.sentence


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n\n",
        "🦙😀👩‍👩‍👧",
        "مرحبا بالعالم שלום",
        "你好 AI的未来是",
        "$x_1$ $$ \\frac{a}{b} \\n",
        "a\tb\r\nc",
        "\u202eabc\x00\ufeff",
    ],
)
def test_any_text_is_drawn_without_a_missing_glyph(text, mixture):
    explorer = explorers.routed_text(mixture.model, mixture.tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explorer.controls["text"].value = text
        assert explorer.sentence.startswith("Layer 0 sends")
        check_whole(drawn(explorer))
    glyphs = font_letters()
    assert all(ord(letter) in glyphs for label in drawn(explorer).axes[0].texts for letter in label.get_text())


def test_a_long_text_is_cut_and_says_so(mixture):
    explorer = explorers.routed_text(mixture.model, mixture.tokenizer)
    explorer.controls["text"].value = "word " * 2_000
    assert explorer.sentence.startswith("Only the first 160 of 6,002 tokens are shown. Layer 0 sends 160 tokens")
    check_whole(drawn(explorer))
    explorer.controls["text"].value = "\n" * 10_000
    assert explorer.sentence.startswith("Only the first ")
    check_whole(drawn(explorer))


def test_what_the_tokenizer_refuses_becomes_a_sentence(mixture):
    explorer = explorers.routed_text(mixture.model, mixture.tokenizer)
    explorer.controls["text"].value = "\ud83d alone"  # half of an emoji
    assert explorer.sentence.startswith(("This cannot be drawn: ", "Layer 0 sends"))
    explorer.controls["text"].value = "and on"
    assert explorer.sentence.startswith("Layer 0 sends")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda dense, mixture: explorers.routed_text(dense.model, dense.tokenizer), "has no experts"),
        (lambda dense, mixture: explorers.next_token(torch.zeros(2, 3), dense.tokenizer), r"\(2, 3\)"),
        (lambda dense, mixture: explorers.next_token(torch.tensor([0.0, np.nan]), dense.tokenizer), "finite"),
        (lambda dense, mixture: explorers.guesses_by_layer([torch.zeros(2, 9)], [1], dense.tokenizer), "1 tokens"),
        (lambda dense, mixture: explorers.guesses_by_layer([], [], dense.tokenizer), "expected"),
    ],
)
def test_bad_arguments_are_one_clear_line(call, message, dense, mixture):
    with pytest.raises(ValueError, match=message) as raised:
        call(dense, mixture)
    assert "\n" not in str(raised.value)


# --- what only the explorers draw


def a_panel():
    return figures.bare_figure()[1][0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.plot_code_shares(-np.ones(16), title="x", ax=a_panel()), "0 or more"),
        (lambda: figures.plot_load_bars(np.array([np.nan]), ax=a_panel()), "NaN"),
        (
            lambda: figures.plot_guesses(
                np.ones(2), guesses=["a"], names=["b", "c"], same=np.ones(2, bool), ax=a_panel()
            ),
            "1 guesses",
        ),
        (
            lambda: figures.plot_coloured_tokens(
                ["a"], experts=[0, 1], places=np.zeros((1, 3)), title="x", ax=a_panel()
            ),
            "2 experts",
        ),
    ],
)
def test_bad_arrays_raise_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_numbers_in_bars_cover_lines_and_leave_out_what_has_no_room():
    ax = a_panel()
    figures.plot_budget(
        np.array([[6.0, 0.5], [0.0, 6.5]]),
        names=["a", "b"],
        parts=["weights", "cache"],
        limits={"e": 9.0},
        unit="",
        ax=ax,
    )
    figures.keep_numbers_readable(ax, narrow=0.1)
    assert [text.get_text() for text in ax.texts] == ["6", "", "", "6.5"]
    for text, bar in ((ax.texts[0], ax.containers[0][0]), (ax.texts[3], ax.containers[1][1])):
        assert text.get_bbox_patch().get_facecolor() == bar.get_facecolor()
        assert text.get_zorder() > ax.lines[0].get_zorder()


def test_a_bare_figure_is_as_wide_as_the_page_and_unknown_to_pyplot():
    plt.close("all")
    figure, axes = figures.bare_figure(2, 3, height_in=2.0)
    assert tuple(figure.get_size_inches()) == (figures.WIDTH_IN, 2.0)
    assert axes.shape == (2, 3)
    assert plt.get_fignums() == []


def test_tokens_are_laid_out_in_lines_that_hold_them():
    tokens = ["one", " two", "\n", "three", " four"] * 9
    places = figures.token_places(tokens, experts=8, width_in=2.0)
    lefts, widths, lines = places.T
    assert (lefts + widths <= 2.0 * 72).all()
    assert lefts[0] == lines[0] == 0
    for before, token, after in zip(places[:-1], tokens, places[1:], strict=False):
        if "\n" in token or after[2] > before[2]:
            assert (after[0], after[2]) == (0, before[2] + 1)
        else:
            assert after[0] >= before[0] + before[1]


def test_a_long_token_is_cut_and_strange_letters_are_escaped():
    assert figures.drawable("x" * 99) == "x" * 23 + "…"
    assert figures.drawable("a\tb 你") == "a\\tb \\u4f60"
    assert len(figures.drawable("你" * 99)) == 24
