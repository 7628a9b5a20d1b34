"""The report in a real browser: all of it is there, fits, and comes from one file."""

from collections.abc import Callable

import pytest
import reports

from components.eval.report import write_report

WIDTHS_PX = (1280, 400)
SPILLS = """() => {
    const inside = element => element.closest('.plot, .wide, pre, .strip, svg');  // these scroll, or cut on purpose
    return [...document.querySelectorAll('main *')]
        .filter(element => !inside(element) || element.matches('.plot, .wide, pre, .strip'))
        .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
        .map(element => element.tagName + '.' + element.className);
}"""
CUT_OFF = """() => [...document.querySelectorAll('.plot, .wide, section, .card')]
    .filter(element => element.scrollWidth > element.clientWidth + 1)
    .map(element => element.className + ': ' + element.textContent.trim().slice(0, 40))"""
IMAGES = "() => [...document.images].map(image => image.complete && image.naturalWidth)"
TINY_PICTURES = """() => [...document.querySelectorAll('.plot svg')]
    .map(svg => [svg.getBoundingClientRect().width, svg.querySelectorAll('path').length])
    .filter(([width, paths]) => width < 600 || paths < 10)"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a report with everything in it."""
    folder = tmp_path_factory.mktemp("pages")
    sft = reports.evaluation(dict.fromkeys(reports.BLIND, 8), types=True)
    rl = reports.evaluation(reports.BLIND, types=True, seed=1)
    write_report(reports.report_data(folder, sft, rl), folder / "report.html", folder / "report.md")
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_the_report_is_whole_and_fits(visit: Callable, address: str, width_px: int) -> None:
    """Catches a picture that does not load, a script or a font from elsewhere, a column that runs out of the window,
    and a figure that is shrunk until nobody can read it."""
    seen = visit(address, width_px)
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [address]
    images = seen.page.evaluate(IMAGES)
    assert all(images) and len(images) == 1 + 7
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width_px
    assert seen.page.evaluate(SPILLS) == []
    assert seen.page.evaluate(TINY_PICTURES) == []
    if width_px == max(WIDTHS_PX):
        assert seen.page.evaluate(CUT_OFF) == []
