"""The report: complete, self-contained, and readable by a real browser."""

import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from components.eval.report import ReportData, figures, render_html, write_report
from components.eval.videos import Video, write_gif
from gripline.config import PromoteConfig
from gripline.errors import UserError
from gripline.summary import RunFacts, Seconds, Summary, summarise
from gripline.types import EpisodeRecord, EpisodeSpec

TASKS = ("faucet-open", "faucet-close", "drawer-open")
ABLATIONS = ("no_image", "no_instruction", "swapped_instruction")


def evaluation(axes: dict[str, int], n: int = 20) -> list[EpisodeRecord]:
    """n episodes per task and axis; the number of successes per axis is given."""
    return [
        EpisodeRecord(
            spec=EpisodeSpec(
                suite="fake",
                task=task,
                instruction=axis,
                init_seed=seed,
                split="iid" if axis in ("iid", *ABLATIONS) else "ood",
                axis=axis,
            ),
            success=seed < successes,
            num_steps=9,
            num_chunks=3,
        )
        for axis, successes in axes.items()
        for task in TASKS
        for seed in range(n)
    ]


def summary_of(sft: dict[str, int], rl: dict[str, int]) -> Summary:
    facts = RunFacts(
        profile="laptop",
        seed=1,
        seconds=Seconds(demos=9.5, sft=20, rl=200, eval=40, total=3700),
        peak_memory_mb=4000,
        env_steps=1234567,
        mlflow_run_id="feed",
        split_hashes={"iid": "0123456789abcdef0123"},
    )
    return summarise(
        evaluation(sft),
        evaluation(rl),
        facts=facts,
        promote=PromoteConfig(),
        indifference_threshold=0.1,
        shared_scene_tasks=TASKS[:2],
    )


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "1-rl-iid-push-success.gif"
    write_gif(path, [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")], frame_s=0.1)
    blind = {"iid": 18, "camera": 9, "light": 17, "no_image": 17, "no_instruction": 9, "swapped_instruction": 0}
    return ReportData(
        run_name="laptop <1>",
        summary=summary_of({axis: 8 for axis in blind}, blind),
        success_means="the handle is near its open position",
        sft_curve=[{"step": step, "train/loss": 1 / (step + 1)} for step in range(9)]
        + [{"step": 9, "held_out/loss": 1}],
        rl_curve=[{"step": 0, "train/success": 0.4}, {"step": 1, "train/success": 0.6, "val/success": 0.7}],
        videos=[Video(path, "RL", "faucet-open", "iid", "open the faucet", True)],
        facts={"commit": "abc123"},
        config={"rl": {"lr": 0.0003}},
    )


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
    assert text.count("<svg") == 4


def test_the_page_says_what_matters(data):
    """Catches missing numbers, warnings and reasons, and names that are not escaped."""
    text = render_html(data, figures(data))
    seen = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", re.sub(r"<(style|svg).*?</\1>", "", text, flags=re.S)))
    for expected in (
        "RL succeeds on 90.0 % of 60 unseen initial states, SFT on 40.0 %",
        "+50.0 points on the same episodes: 95 % CI +37.7 to +62.3, exact McNemar p &lt; 0.0001",
        "✗ not promoted",
        "RL policy: keeps 94% of its success (0.85 of 0.90) with a black image: it hardly uses the camera",
        "✗ inputs: keeps 94% of its success",
        "the handle is near its open position.",
        "1 h 01 min",
        "these stages together",
        "1,234,567",
        "0123456789abcdef",
        "abc123",
        "gripline · laptop &lt;1&gt;",
    ):
        assert expected in seen
    assert all(f'<tr class="task"> <td>{task}</td>' in re.sub(r"\s+", " ", text) for task in TASKS)
    assert "nan" not in seen.lower()


def test_the_same_data_give_the_same_bytes(data):
    """Catches dates and random ids, which would make every rerun a new artifact."""
    assert render_html(data, figures(data)) == render_html(data, figures(data))


def test_a_run_without_shifts_curves_and_videos_still_has_a_report(data):
    """Catches a report that needs everything: --from skips SFT, a small profile may have no OOD list."""
    bare = ReportData(run_name="bare", summary=summary_of({"iid": 8}, {"iid": 18}), success_means="x")
    text = render_html(bare, figures(bare))
    assert Page(text).open == []
    assert not any(title in text for title in ("What it looks like", "Does it see and read?", "How it learned"))
    assert figures(bare).keys() == {"success", "tasks"}


def test_both_files_are_written_whole_or_not_at_all(data, tmp_path):
    """Catches a traceback on a full disk, and a half-written report."""
    html, markdown = tmp_path / "out" / "report.html", tmp_path / "out" / "report.md"
    write_report(data, html, markdown)
    assert html.read_text().startswith("<!doctype html>")
    assert "| **IID** | all tasks | 60 |" in markdown.read_text()
    assert sorted(path.name for path in html.parent.iterdir()) == ["report.html", "report.md"]
    (tmp_path / "blocked").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(data, tmp_path / "blocked" / "report.html", markdown)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_it(data, tmp_path):
    """Catches a page that is blank in a real browser: looks for the colours of both policies and of the banner."""
    page, shot = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(render_html(data, figures(data)), encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        flags += [f"--user-data-dir={profile}", f"--screenshot={shot}", "--window-size=1200,1400", page.as_uri()]
        subprocess.run(["chromium", *flags], check=True, timeout=60, capture_output=True)
    with Image.open(shot) as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
    for colour in ((217, 119, 6), (37, 99, 235), (185, 28, 28)):
        assert colours.get(colour, 0) > 200
    assert Path(shot).stat().st_size > 30_000
