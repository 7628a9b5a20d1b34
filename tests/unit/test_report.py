"""The report's files: complete, self-contained, the same each time. What a browser makes of them: tests/browser."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from reports import BLIND, TASKS, evaluation, many, report_data, summary_of

from components.eval import plots
from components.eval.report import EMBEDDED_BYTES, ReportData, figures, render_html, write_report
from components.eval.videos import Video
from gripline.errors import UserError
from gripline.failures import FAILURES, MEANINGS


@pytest.fixture
def data(tmp_path):
    return report_data(tmp_path, evaluation(dict.fromkeys(BLIND, 8)), evaluation(BLIND))


@pytest.fixture
def typed(tmp_path):
    """With failure types and conduct."""
    sft = evaluation(dict.fromkeys(BLIND, 8), types=True)
    return report_data(tmp_path, sft, evaluation(BLIND, types=True, seed=1))


def seen_text(page: str) -> str:
    """What a reader sees of a page, outside of its figures."""
    outside = re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.S)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", outside)))


class Page(HTMLParser):
    """Collects what a browser would fetch, and whether every element is closed."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "rect", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(data):
    """Catches a report that is empty behind a firewall, and a tag that swallows the rest of the page."""
    text = render_html(data, figures(data))
    page = Page(text)
    assert page.open == []
    assert all(re.match(r"(data:image/gif;base64,|#)", link) for link in page.fetched)
    assert sum(link.startswith("data:") for link in page.fetched) == 1
    assert not re.search(r"url\(['\"]?(?!#)|@import|<script", text)
    assert text.count("<svg") == len(figures(data)) == 6


def test_the_page_says_what_matters(data):
    """Catches missing numbers, warnings and reasons, and names that are not escaped."""
    text = render_html(data, figures(data))
    seen = seen_text(text)
    for expected in (
        "RL succeeds on 90.0 % of 60 unseen initial states, SFT on 40.0 %",
        "+50.0 points on the same episodes: 95 % CI +37.7 to +62.3, exact McNemar p < 0.0001",
        "✗ not promoted",
        "RL policy: keeps 94% of its success (0.85 of 0.90) with a black image: it hardly uses the camera",
        "✗ inputs: keeps 94% of its success",
        "the handle is near its open position.",
        "1 h 01 min",
        "these stages together",
        "1,234,567",
        "0123456789abcdef",
        "abc123",
        "gripline · laptop <1>",
    ):
        assert expected in seen
    assert all(f'<tr class="task"> <td>{task}</td>' in re.sub(r"\s+", " ", text) for task in TASKS)
    assert "<1>" not in text
    assert "nan" not in seen.lower()


def test_numbers_stand_out_in_the_heat_map(data):
    """Catches white on light blue: of black and white, the one with more contrast to its cell is taken."""

    def luminance(colour):
        red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in colour[:3])
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shades = {value: luminance(colormaps["Blues"](value / 100)) for value in range(0, 101, 5)}
    axes = ["iid", *(f"axis-{value}" for value in shades)]
    successes = {"iid": 10} | dict(zip(axes[1:], [value // 5 for value in shades], strict=True))
    panel = plots.heat_map(summary_of(evaluation(successes), evaluation(successes))).axes[0]
    seen = {int(text.get_text()): luminance(to_rgb(text.get_color())) for text in panel.texts}
    assert seen.keys() == shades.keys()
    for value, ink in seen.items():
        assert (max(ink, shades[value]) + 0.05) / (min(ink, shades[value]) + 0.05) > 4.3


def test_the_same_data_give_the_same_bytes(data):
    """Catches dates and random ids, which would make every rerun a new artifact."""
    assert render_html(data, figures(data)) == render_html(data, figures(data))


def test_a_run_without_shifts_curves_and_videos_still_has_a_report(data):
    """Catches a report that needs everything: --from skips SFT, a small profile may have no OOD list."""
    summary = summary_of(evaluation({"iid": 8}), evaluation({"iid": 18}))
    bare = ReportData(run_name="bare", summary=summary, success_means="x")
    text = render_html(bare, figures(bare))
    assert Page(text).open == []
    absent = ("What it looks like", "Does it see and read?", "How it learned", "How does it fail?", "How does it move?")
    assert not any(title in text for title in absent)
    assert figures(bare).keys() == {"success", "slopes", "tasks"}


def test_failures_and_conduct_are_told_where_records_have_them(typed):
    """Catches types without their meaning, counts of the wrong policy, and a verdict on what was not measured."""
    seen = seen_text(render_html(typed, figures(typed)))
    assert figures(typed).keys() >= {"failures", "conduct", "guard"}
    found = {
        name: [
            sum(each.failure == name for each in own if each.spec.axis in ("iid", "camera", "light"))
            for own in (typed.sft_records, typed.rl_records)
        ]
        for name in FAILURES
    }
    for name, (sft, rl) in found.items():
        if sft or rl:
            told = f"{name.replace('_', ' ')}: SFT {sft} of 180, RL {rl} of 180 episodes {MEANINGS[name]}"
            assert told in seen
    assert "smallest distance to a joint limit % of the joint's range" in seen
    assert "steps to success control steps" in seen
    assert "contact force" not in seen.replace("with haste, force or jerks", "")


def test_a_report_of_many_tasks_and_axes_stays_small(tmp_path):
    """Catches a figure that draws every episode, and videos that make a page nobody can mail."""
    large = report_data(tmp_path, *many())
    path = tmp_path / "2-sft-iid-push-failure.gif"
    path.write_bytes(large.videos[0].path.read_bytes() + bytes(EMBEDDED_BYTES))
    heavy = replace(large, videos=[Video(path, "SFT", "push", "iid", "push", False), *large.videos])
    write_report(heavy, tmp_path / "report.html", tmp_path / "report.md")
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    text = (tmp_path / "report.html").read_text()
    assert "Too large for this page, in the run's folder <code>videos</code>: 2-sft-iid-push-failure.gif." in text
    assert text.count("data:image/gif;base64,") == 1
    assert text.count("data:image/jpeg;base64,") == len(large.strips) == len(FAILURES)


def test_both_files_are_written_whole_or_not_at_all(data, tmp_path):
    """Catches a traceback on a full disk, and a half-written report."""
    page, markdown = tmp_path / "out" / "report.html", tmp_path / "out" / "report.md"
    write_report(data, page, markdown)
    assert page.read_text().startswith("<!doctype html>")
    assert "| **IID** | all tasks | 60 |" in markdown.read_text()
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.md"]
    (tmp_path / "blocked").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(data, tmp_path / "blocked" / "report.html", markdown)
