"""The report and the comparison page in a real browser: all of it is there, fits, and comes from one file."""

from collections.abc import Callable

import pytest
import reports

from components.eval.comparison_report import write_comparison
from components.eval.report import write_report
from gripline.comparison import Evaluation, compare_runs

WIDTHS_PX = (1280, 400)
PAPER_PX = 700
"""What an A4 page has between its margins."""
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
FAINT = """() => {  // texts of the page and of its figures whose contrast (WCAG 2.2) to what is behind them is too low
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const luminance = colour => parts(colour).slice(0, 3)
        .map(part => part / 255).map(part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
        .reduce((sum, part, index) => sum + part * [.2126, .7152, .0722][index], 0);
    const behind = element => {
        const paper = getComputedStyle(element).backgroundColor;
        return parts(paper)[3] === 0 && element.parentElement ? behind(element.parentElement) : paper;
    };
    const contrast = (ink, paper) => {
        const [low, high] = [luminance(ink), luminance(paper)].sort((one, other) => one - other);
        return (high + .05) / (low + .05);
    };
    const texts = [...document.querySelectorAll('main *')].filter(element => !element.closest('svg, details pre')
        && [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()));
    const onCells = ['rgb(16, 16, 16)', 'rgb(254, 254, 254)'];  // chosen by the cell's own colour
    const drawn = [...document.querySelectorAll('.plot svg g[id^="text_"] > g')]
        .filter(group => !onCells.includes(getComputedStyle(group).fill));
    const isMark = element => element.textContent === '■';
    return [...texts.map(each => [each, getComputedStyle(each).color, isMark(each) ? 2 : 4.5]),
            ...drawn.map(each => [each, getComputedStyle(each).fill, 4.5])]
        .filter(([each, ink, least]) => contrast(ink, behind(each)) < least)
        .map(([each, ink]) => [ink, behind(each), each.tagName + each.className, each.textContent.trim().slice(0, 30)]);
}"""
STRIPS = """every => every.map(strip =>
    [strip.firstElementChild.offsetWidth, strip.clientWidth, strip.getAnimations({subtree: true}).length])"""
SHIFT = """(image, share) => {  // of a film strip at a share of its duration, in frames to the left
    const [film] = image.getAnimations();
    film.pause();
    film.currentTime = share * film.effect.getTiming().duration;
    return -new DOMMatrix(getComputedStyle(image).transform).m41 / image.parentElement.clientWidth;
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of a report with everything in it, of one as large as they get, and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    sft = reports.evaluation(dict.fromkeys(reports.BLIND, 8), types=True)
    rl = reports.evaluation(reports.BLIND, types=True, seed=1)
    addresses = {}
    for name, records in {"report": (sft, rl), "large": reports.many()}.items():
        write_report(reports.report_data(folder, *records), folder / f"{name}.html", folder / f"{name}.md")
        addresses[name] = (folder / f"{name}.html").as_uri()
    runs = [Evaluation(name=name, policy="rl", records=records) for name, records in (("old", sft), ("new", rl))]
    write_comparison(compare_runs(runs[0], runs[1:]), folder / "comparison.html")
    return addresses | {"comparison": (folder / "comparison.html").as_uri()}


@pytest.mark.parametrize("width_px", WIDTHS_PX)
@pytest.mark.parametrize(("name", "num_images"), [("report", 1 + 7), ("large", 1 + 7), ("comparison", 0)])
def test_a_page_is_whole_and_fits(
    visit: Callable, pages: dict[str, str], name: str, num_images: int, width_px: int
) -> None:
    """Catches a picture that does not load, a script or a font from elsewhere, a column that runs out of the window,
    and a figure that is shrunk until nobody can read it."""
    seen = visit(pages[name], width_px)
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [pages[name]]
    images = seen.page.evaluate(IMAGES)
    assert all(images) and len(images) == num_images
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width_px
    assert seen.page.evaluate(SPILLS) == []
    assert seen.page.evaluate(TINY_PICTURES) == []
    if width_px == max(WIDTHS_PX):
        assert seen.page.evaluate(CUT_OFF) == []


def test_a_reader_meets_the_answer_before_its_details(visit: Callable, pages: dict[str, str]) -> None:
    """Catches a section that is in the file but hidden, and one in another place than a reader looks for it."""
    page = visit(pages["report"]).page
    titles = page.locator("h2").all_inner_texts()
    assert [title.removeprefix("⚠ ").rstrip("?") for title in titles] == [
        "Read this first",
        "Did RL improve the policy",
        "What it looks like",
        "Which task, under which shift",
        "How does it fail",
        "How does it move",
        "Does it see and read",
        "How it learned",
        "All numbers",
        "Not promoted, because",
        "This run",
    ]
    heights = "every => every.map(each => each.checkVisibility() ? each.getBoundingClientRect().height : 0)"
    assert min(page.locator("h1, h2, .card, .plot, figcaption, tbody tr").evaluate_all(heights)) > 10
    assert page.locator("details pre").is_hidden()
    page.locator("summary").click()
    assert page.locator("details pre").is_visible()


@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize(("scheme", "media"), [("light", "screen"), ("dark", "screen"), ("dark", "print")])
def test_every_text_stands_out(visit: Callable, pages: dict[str, str], name: str, scheme: str, media: str) -> None:
    """Catches ink on its own colour: a figure's black text in a dark page, a white page with a dark page's text."""
    page = visit(pages[name], color_scheme=scheme).page
    page.emulate_media(color_scheme=scheme, media=media)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (media == "print")
    assert page.evaluate(FAINT) == []


@pytest.mark.parametrize("name", ["report", "large", "comparison"])
def test_nothing_is_cut_off_on_paper(visit: Callable, pages: dict[str, str], name: str) -> None:
    """Catches columns that a reader could scroll to on the screen, and film strips of which print shows one frame."""
    page = visit(pages[name], PAPER_PX).page
    page.emulate_media(media="print")
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate(SPILLS) == []
    for picture_px, strip_px, moving in page.locator(".strip").evaluate_all(STRIPS):
        assert (picture_px, moving) == (strip_px, 0)


def test_film_strips_show_one_frame_after_the_other(visit: Callable, pages: dict[str, str]) -> None:
    """Catches an animation that shows parts of two frames, leaves one out, or never rests on the last."""
    strip = visit(pages["report"]).page.locator(".strip").first
    box, film = strip.bounding_box(), strip.locator("img")
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert film.bounding_box()["width"] == pytest.approx(4 * box["width"], abs=2)
    shown = [film.evaluate(SHIFT, share) for share in (0, 0.2, 0.3, 0.6, 0.8, 0.99)]
    assert shown == pytest.approx([0, 0, 1, 2, 3, 3], abs=0.02)
