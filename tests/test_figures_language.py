"""The signs of the visual language: each has its shape, its colour and its three states, and lands where it is told."""

import re

import nbformat
import numpy as np
import pytest
from figure_checks import check_whole, no_figure_left_open  # noqa: F401
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Rectangle

import notebook_files
from mistral_lab import figures
from mistral_lab.figures import language


@pytest.fixture
def stage():
    return figures.new_stage(8, 4)[1][0]


def face(patch) -> str:
    return to_hex(patch.get_facecolor())


def test_a_unit_of_a_stage_is_as_wide_as_it_is_high_on_every_panel():
    figure, panels = figures.new_stage(5, 3, columns=2)
    figure.draw_without_rendering()
    for column, ax in enumerate(panels):
        (x0, y0), (x1, y1) = ax.transData.transform([(0, 0), (1, 1)])
        assert x1 - x0 == pytest.approx(y1 - y0)
        assert x0 == pytest.approx(column * figure.bbox.width / 2)
    assert figure.get_size_inches() == pytest.approx((figures.WIDTH_IN, figures.WIDTH_IN * 3 / 10))


def test_each_sign_has_its_own_shape_and_colour(stage):
    figures.draw_query(stage, 1, 2, size=0.6)
    figures.draw_key(stage, 2, 2, size=0.4)
    figures.draw_value(stage, 3, 2, size=0.4)
    figures.draw_token(stage, 5, 2, "favour", width=1.2, state="now")
    query, key, value, token = stage.patches
    assert isinstance(query, Circle)
    assert (query.center, query.radius) == ((1, 2), 0.3)
    for square, x, colour in ((key, 2, figures.KEY), (value, 3, figures.VALUE)):
        assert isinstance(square, Rectangle)
        assert square.get_bbox().bounds == pytest.approx((x - 0.2, 1.8, 0.4, 0.4))
        assert face(square) == colour
    assert isinstance(token, FancyBboxPatch)
    assert to_hex(token.get_edgecolor()) == figures.QUERY
    assert [text.get_text() for text in stage.texts] == ["favour"]


def draw_link_up(ax, x, y, *, state):
    figures.draw_link(ax, (x, y), (x, y + 1), state=state)


@pytest.mark.parametrize("draw", [figures.draw_key, figures.draw_value, figures.draw_query, draw_link_up])
def test_the_past_is_paler_and_the_idle_is_grey(draw, stage):
    for x, state in enumerate(language.STATES):
        draw(stage, x + 1, 1, state=state)
    lines = (Circle, PathPatch)
    shown = [patch.get_edgecolor() if isinstance(patch, lines) else patch.get_facecolor() for patch in stage.patches]
    now, past, idle = (np.array(colour[:3]) for colour in shown)
    assert past.min() > now.min()
    assert np.ptp(idle) < 0.1 < np.ptp(past)  # hardly any hue


def test_the_newest_token_is_framed_a_past_one_in_grey_and_an_idle_one_not_at_all(stage):
    for x, state in enumerate(language.STATES):
        figures.draw_token(stage, 1 + 2 * x, 1, "word", state=state)
    now, past, idle = stage.patches
    assert to_hex(now.get_edgecolor()) == figures.QUERY
    assert to_hex(past.get_edgecolor()) == language.IDLE_EDGE
    assert to_hex(idle.get_edgecolor()) == face(idle) == figures.IDLE


def test_a_link_lies_below_the_signs_that_it_joins(stage):
    figures.draw_key(stage, 1, 1)
    figures.draw_link(stage, (1, 1), (3, 1))
    key, link = stage.patches
    assert link.get_zorder() < key.get_zorder()


def test_an_unknown_state_is_refused_by_name(stage):
    for draw in (figures.draw_key, lambda *place, state: figures.draw_token(*place, "word", state=state)):
        with pytest.raises(ValueError, match="state is 'old': expected one of now, past, idle"):
            draw(stage, 1, 1, state="old")


@pytest.mark.parametrize("ground", ["#ffffff", figures.IDLE])
def test_small_text_stands_out_by_4_5_to_1(ground):
    def luminance(colour):  # sRGB, Web Content Accessibility Guidelines 2.2
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return np.dot((0.2126, 0.7152, 0.0722), linear)

    for text in (language.QUIET, language.INK):
        assert (luminance(ground) + 0.05) / (luminance(text) + 0.05) > 4.5


def test_eight_experts_have_eight_hues_and_their_numbers(stage):
    for number in range(8):
        figures.draw_expert(stage, number + 0.5, 2, number)
    assert len({face(patch) for patch in stage.patches}) == 8
    assert [text.get_text() for text in stage.texts] == [*"01234567"]


def test_a_bar_is_as_wide_as_its_bytes_beside_its_track_and_its_mark(stage):
    figures.draw_bytes(stage, 1, 2, 2048, scale=1 / 1024, most=4096, mark=3072, text="2 KiB kept")
    track, bar = (patch.get_bbox().bounds for patch in stage.patches)
    assert (track[0], track[2]) == (1, 4)
    assert (bar[0], bar[2]) == (1, 2)
    (mark,) = stage.lines
    assert set(mark.get_xdata()) == {4}


@pytest.mark.parametrize("curved", [False, True])
def test_a_link_leads_from_one_sign_to_the_other(curved, stage):
    figures.draw_link(stage, (1, 3), (4, 1), curved=curved)
    vertices = stage.patches[0].get_path().vertices
    assert vertices[[0, -1]].tolist() == [[1, 3], [4, 1]]


def test_measured_is_solid_and_predicted_is_hollow_in_one_colour():
    ax = figures.new_figure()[1][0, 0]
    figures.draw_measured(ax, 1, 1)
    figures.draw_predicted(ax, 2, 1)
    measured, predicted = ax.lines
    assert measured.get_markerfacecolor() == predicted.get_markeredgecolor()
    assert predicted.get_markerfacecolor() == "white"


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_floor_and_guess_stand_at_their_number(scale):
    figure, axes = figures.new_figure()
    ax = axes[0, 0]
    ax.set(xlim=(1, 100), ylim=(0, 4), xscale=scale, yticks=[])
    figures.draw_floor(ax, 10)
    figures.draw_guess(ax, 40, 1, label="your guess")
    check_whole(figure)
    assert [text.get_text() for text in ax.texts] == ["at least", "", "your guess"]
    assert set(ax.lines[0].get_xdata()) == {10}
    flag = ax.patches[0].get_window_extent()
    assert flag.x0 == pytest.approx(ax.transData.transform((40, 1))[0], abs=0.5)  # half a pixel


def test_a_dollar_sign_is_text(stage):
    figures.draw_token(stage, 1, 1, "$x_1$")
    stage.figure.draw_without_rendering()
    assert not stage.texts[0].get_parse_math()


def test_pale_mixes_with_white():
    assert figures.pale("#000000", 0.5) == "#808080"
    assert figures.pale("#123456", 0) == "#123456"
    assert figures.pale("#123456", 1) == "#ffffff"


def test_every_public_name_stands_on_the_page_of_the_language():
    page = (notebook_files.ROOT / "docs" / "visual-language.md").read_text(encoding="utf-8")
    own = {name for name, made in vars(language).items() if getattr(made, "__module__", None) == language.__name__}
    names = {name for name in own | {name for name in vars(language) if name.isupper()} if not name.startswith("_")}
    names -= {"INK", "STYLE", "WIDTH_IN"}  # of every picture, not of this language
    assert len(names) > 20
    assert [name for name in sorted(names) if f"`{name}`" not in page and f"`{name}(" not in page] == []


COLOUR_LITERAL = re.compile(r"#[0-9a-fA-F]{6}\b|\btab:\w+|\bC\d\b|petroff|viridis|\bcividis\b|\bplasma\b|\bPuOr\w*")
# Files that may still name colours of their own, and why; the list may only become shorter.
OWN_COLOURS = {
    "loop.py": "the beam of a token on its way, paler than what is past and bluer than what is idle",
}


def test_colours_are_named_in_two_files_alone():
    """A colour written elsewhere, or one of a cycle, would have no meaning that the page of the language explains."""
    package = notebook_files.ROOT / "mistral_lab"
    found = {}
    for path in [*package.glob("figures/*.py"), *package.glob("explorers/*.py"), *package.glob("experiments/*.py")]:
        words = path.read_text(encoding="utf-8")
        if COLOUR_LITERAL.search(words) or re.search(r"import [^\n]*\bCOLOURS\b|^    COLOURS,$", words, re.MULTILINE):
            found[path.name] = True
    assert found.keys() - {"language.py", "style.py"} == OWN_COLOURS.keys()
    for lesson in notebook_files.lessons():
        code = [cell.source for cell in nbformat.read(lesson, 4).cells if cell.cell_type == "code"]
        assert not COLOUR_LITERAL.search("\n".join(code)), lesson.name
