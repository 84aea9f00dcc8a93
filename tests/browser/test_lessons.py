"""Every lesson in JupyterLab: its pictures before it runs, its run, its guesses and its explorers by keyboard alone.

`make test-browser` runs this, not `make test`: it needs Chromium, and runs every lesson once more. The screenshots in
build/screens are for looking at.
"""

import re

import nbformat
import pytest
from conftest import SCREENS
from playwright.sync_api import TimeoutError

import notebook_files

RUN_S = 240
# A run that stands still is begun again: about one in ten did so here, each lesson ran when asked again, and the cause
# is not known. A cell that fails is never tried again.
FURTHER_TRIES = 3
EXPLORER, GUESS = ".mistral-lab-explorer", ".mistral-lab-guess"
WIDTHS = (1280, 800)  # of the screenshots
CODE = ".jp-Notebook .jp-CodeCell"
# From the top of the lesson to the end of its last cell; the panel itself goes on, so that one can scroll past it.
LESSON_END = """panel => [...panel.querySelectorAll(".jp-Cell")].at(-1).getBoundingClientRect().bottom
    - panel.getBoundingClientRect().top + panel.scrollTop"""


@pytest.fixture(scope="session", autouse=True)
def screens():
    """The folder for screenshots."""
    SCREENS.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("path", notebook_files.lessons(), ids=lambda path: path.stem)
def test_a_lesson_in_the_browser(path, lab, page, stop_kernels):
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    open_lesson(page, lab(path.stem), len(code))
    see_pictures(page, count_pictures(code))
    unfinished = run_all(page, len(code))
    for _ in range(FURTHER_TRIES):
        if unfinished:
            stop_kernels()
            open_lesson(page, lab(path.stem), len(code))
            unfinished = run_all(page, len(code))
    assert not unfinished, f"not finished in {RUN_S} s, several times; the prompts of the cells: {unfinished}"
    see_no_error(page)
    enter_guesses(page)
    explorers = move_explorers(page)
    see_pictures(page, count_pictures(code) - explorers)  # an explorer's picture is live now, and no output of its own
    for width in WIDTHS:
        screenshot(page, f"{path.stem}_{width}", width)


def open_lesson(page, address: str, cells: int) -> None:
    """Open a lesson and wait until all of its cells are there."""
    page.goto(address)
    page.locator(CODE).nth(cells - 1).wait_for(state="attached")


def count_pictures(code) -> int:
    """Pictures that the file keeps."""
    return sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


def see_pictures(page, expected: int) -> None:
    """As many pictures as expected are in the outputs, each of them drawn."""
    pictures = page.locator(".jp-OutputArea-output.jp-RenderedImage img")
    page.wait_for_function(
        "n => document.querySelectorAll('.jp-OutputArea-output.jp-RenderedImage img').length >= n", arg=expected
    )
    assert pictures.count() == expected
    assert all(width > 0 for width in pictures.evaluate_all("all => all.map(image => image.naturalWidth)"))


def run_all(page, cells: int) -> list[str]:
    """Run every cell through the menu and wait until the last has its number; otherwise return the cells' prompts."""
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(state="attached")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    finished = """n => {
        const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent);
        return prompts.length === n && prompts[n - 1].includes(`[${n}]`)
            || document.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
    }"""
    try:
        page.wait_for_function(finished, arg=cells, timeout=RUN_S * 1000)
    except TimeoutError:
        return page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
    return []


def see_no_error(page) -> None:
    """No cell ended in an error, no widget failed to show."""
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
    assert not errors, errors[0]
    body = page.locator(".jp-Notebook").inner_text()
    assert not re.search(r"Error displaying widget|Error creating widget|Loading widget\.\.\.", body)
    assert not page.locator(".jupyter-widgets-error-widget").count()


def enter_guesses(page) -> None:
    """Move the slider of every guess by an arrow key and press its button with Enter; its line follows both."""
    for guess in page.locator(GUESS).all():
        guess.scroll_into_view_if_needed()
        line = guess.locator('[role="status"]')
        assert line.inner_text().startswith("A guess to compare with is")
        guess.locator(".noUi-handle").focus()
        for key in ("ArrowLeft", "ArrowRight"):  # whichever way is not its end
            page.keyboard.press(key)
            page.wait_for_timeout(600)
            if line.inner_text().startswith("Your guess is"):
                break
        assert "when you are sure" in line.inner_text()
        guess.locator("button").focus()
        page.keyboard.press("Enter")
        page.wait_for_timeout(600)
        assert "The cells below now draw it" in line.inner_text()


def move_explorers(page) -> int:
    """Move one control of every explorer by keyboard; each redraws. Returns how many there are."""
    explorers = page.locator(EXPLORER)
    for number in range(explorers.count()):
        explorer = explorers.nth(number)
        explorer.scroll_into_view_if_needed()
        picture = explorer.locator("img")
        before = picture.get_attribute("src")
        sliders = explorer.locator(".noUi-handle")
        handle = sliders.first if sliders.count() else explorer.locator("select").first
        handle.focus()
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):  # whichever way is not its end
            page.keyboard.press(key)
            page.wait_for_timeout(600)
            if picture.get_attribute("src") != before:
                break
        assert picture.get_attribute("src") != before, f"explorer {number + 1} shows the same picture"
    return explorers.count()


def screenshot(page, name: str, width: int) -> None:
    """The whole lesson in a window of this width, in pictures of at most 16,000 pixels: Chromium draws no more at once.

    In a narrow window the list of files beside the lesson is closed, as a reader would do.
    """
    page.set_viewport_size({"width": width, "height": 1200})
    if width < WIDTHS[0] and page.locator(".jp-FileBrowser").is_visible():
        page.keyboard.press("Control+b")
    page.wait_for_timeout(1500)
    panel = page.locator(".jp-WindowedPanel-outer").last
    top, part = 0, 1
    while (left := panel.evaluate(LESSON_END) - top) > 0:
        page.set_viewport_size({"width": width, "height": min(16_000, int(left) + 200)})
        panel.evaluate("(panel, top) => panel.scrollTo(0, top)", top)
        page.wait_for_timeout(1500)  # cells are drawn when they come into view, and only then have their true height
        page.screenshot(path=SCREENS / (f"{name}.png" if part == 1 else f"{name}_{part}.png"))
        top, part = top + panel.evaluate("panel => panel.clientHeight"), part + 1
