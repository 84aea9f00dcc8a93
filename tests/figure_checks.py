"""What holds for every picture, whatever it shows."""

import matplotlib.pyplot as plt

from mistral_lab import figures


def check_drawn_in_place(plot) -> None:
    """`plot(ax)` draws on the Axes that it is given, and nowhere else."""
    figure, axes = figures.new_figure(1, 2)
    assert plot(axes[0, 1]) is axes[0, 1]
    assert not axes[0, 0].has_data()
    assert plt.get_fignums() == [figure.number]


def check_whole(ax, texts) -> None:
    """None of the texts is under 9 points, and nothing that is drawn lies beyond the edge of the picture."""
    figure = ax.figure
    figure.canvas.draw()
    assert min(text.get_fontsize() for text in texts(ax)) >= 9
    drawn = figure.get_tightbbox()  # in inches, of all that is drawn
    assert min(drawn.x0, drawn.y0) >= 0
    assert drawn.x1 <= figure.get_figwidth()
    assert drawn.y1 <= figure.get_figheight()


def check_apart(texts) -> None:
    """No text covers another; the figure has been drawn."""
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
