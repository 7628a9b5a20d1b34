"""Is evaluating cheap, and may its intervals be believed?

    python benchmarks/evaluation.py --json FILE [--part NAME …] [--experiments N]

loading   seconds that a fresh process takes for results files of 10,000 episodes: read and counted, or compared
coverage  the share of experiments with a known truth in which the 95 % intervals hold it, and how often the paired test
          sees a difference where there is none
overhead  how much longer the evaluation stage takes than the bare rollouts of the same episodes on the same engine

Printed and written: every figure, and for each target whether it was reached, with the worst that was measured.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import interval_coverage as coverage
import numpy as np
from rich.console import Console
from rich.table import Table
from verdicts import Verdict, at_least, at_most, machine, show_verdicts

from gripline import profiles
from gripline.atomic import write_whole
from gripline.results import write_results
from gripline.splits import ABLATIONS, OOD_AXES
from gripline.types import EpisodeRecord, EpisodeSpec

EPISODES = 10_000
EXPERIMENTS = 2_000
REPEATS = 3
OVERHEAD_PROFILE, OVERHEAD_REPEATS = "laptop", 5
OVERHEAD_SETTINGS: tuple[str, ...] = ()
"""Such as "splits.iid_per_task=4"."""
NUM_TASKS, LONGEST_CHUNKS, ACTION_DIM = 10, 40, 4
COUNT = """
from gripline.results import read_results
from gripline.summary import summarise_policy
from gripline.tables import policy_metrics
policy_metrics(summarise_policy(read_results("{rl}")))
"""
REPORT = """
from components.eval.report import ReportData, write_report
from gripline.config import PromoteConfig
from gripline.results import read_results
from gripline.summary import RunFacts, Seconds, summarise
seconds = Seconds(demos=1, sft=1, rl=1, eval=1, total=4)
facts = RunFacts(
    profile="made-up", seed=1, seconds=seconds, peak_memory_mb=1, env_steps=1, mlflow_run_id="", split_hashes={{}}
)
sft, rl = read_results("{sft}"), read_results("{rl}")
summary = summarise(sft, rl, facts=facts, promote=PromoteConfig(), indifference_threshold=0.1)
data = ReportData("made up", summary, "the handle moved", sft_records=sft, rl_records=rl)
write_report(data, "{folder}/report.html", "{folder}/report.md")
"""
COMPARE = """
from pipelines.cli import main
main(["compare", "{folder}/sft", "{folder}/rl", "--out", "{folder}/compare.html", "--json", "{folder}/compare.json"])
"""
WORK = {
    "one file: read and counted": COUNT,
    "two files: read, compared, reported in HTML and Markdown": REPORT,
    "two files: gripline compare with page and JSON": COMPARE,
}


@dataclass(frozen=True)
class Part:
    """What one part of the benchmark found."""

    figures: dict[str, dict[str, float]]
    """Group -> what was measured -> value."""
    verdicts: list[Verdict]


def loading(experiments: int) -> Part:
    """Each as often as `REPEATS`, in processes of their own; the median counts."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {"folder": scratch}
        for name, seed, rate in (("sft", 1, 0.6), ("rl", 2, 0.8)):
            path = Path(scratch, name, "eval-rl", "results.jsonl")
            write_results(path, made_up_episodes(EPISODES, seed, rate))
            files[name] = str(path)
        seconds = {name: statistics.median(_timed(code.format(**files))) for name, code in WORK.items()}
    return Part({"seconds": seconds}, [at_most(f"results of {EPISODES:,} episodes, s", 5, seconds)])


def made_up_episodes(count: int, seed: int, success: float) -> list[EpisodeRecord]:
    """Episodes of several tasks, with actions of usual length, for IID, every OOD axis and every ablation in turn."""
    rng = np.random.default_rng(seed)
    axes = ("iid", *OOD_AXES, *ABLATIONS)
    records = []
    for number in range(count):
        place, task = divmod(number, NUM_TASKS)
        init, axis = divmod(place, len(axes))
        num_chunks = int(rng.integers(5, LONGEST_CHUNKS + 1))
        actions_TKA = rng.random((num_chunks, 1, ACTION_DIM), dtype=np.float32).astype(float).tolist()
        spec = EpisodeSpec(
            suite="made-up",
            task=f"task-{task}",
            instruction=f"do what task {task} asks",
            init_seed=init,
            split="ood" if axes[axis] in OOD_AXES else "iid",
            axis=axes[axis],
        )
        records.append(
            EpisodeRecord(
                spec=spec,
                success=bool(rng.random() < success),
                num_steps=8 * num_chunks,
                num_chunks=num_chunks,
                actions_TKA=actions_TKA,
            )
        )
    return records


def _timed(code: str) -> list[float]:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return seconds


def covering(experiments: int) -> Part:
    """Coverage over all truths together, and at the worst of them."""
    methods = {
        "Wilson, success rate": coverage.wilson,
        "score interval, paired difference": coverage.score,
        "bootstrap, paired difference": coverage.bootstrap,
        "bootstrap, interquartile mean over seeds": coverage.seeds,
    }
    shares = {method: measure(experiments) for method, measure in methods.items()}
    verdicts = [verdict for method, found in shares.items() for verdict in judge_coverage(method, found)]
    wrong = coverage.false_positives(experiments)
    verdicts.append(at_most("exact McNemar at 5 %, worst truth: false positives", 0.05, wrong))
    figures = {f"coverage of {method}": found for method, found in shares.items()}
    return Part(figures | {"false positives of exact McNemar": wrong}, verdicts)


def judge_coverage(method: str, shares: dict[str, float]) -> list[Verdict]:
    """shares: of intervals that hold the truth, for each truth and n."""
    together = {f"all {len(shares)} truths and n together": statistics.mean(shares.values())}
    return [
        judge(f"{method}{which}: coverage", limit, found)
        for which, found in (("", together), (", worst truth", shares))
        for judge, limit in ((at_least, 0.93), (at_most, 0.97))
    ]


def overhead(experiments: int) -> Part:
    """Of an untrained policy on the lists of a shipped profile, in this process."""
    import evaluation_overhead

    profile = profiles.load(OVERHEAD_PROFILE, OVERHEAD_SETTINGS)
    found = evaluation_overhead.measure(profile, OVERHEAD_REPEATS)
    where = f"{found['episodes']:.0f} episodes of profile {OVERHEAD_PROFILE}"
    share = {where: found[evaluation_overhead.OVERHEAD]}
    return Part({where: found}, [at_most("evaluation stage over bare rollouts, %", 5, share)])


PARTS: dict[str, Callable[[int], Part]] = {"loading": loading, "coverage": covering, "overhead": overhead}
"""Each takes the number of simulated experiments."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--part", action="append", choices=tuple(PARTS), help="repeatable; default: all")
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS, help="at each truth; default: 2,000")
    options = parser.parse_args(arguments)
    parts = {name: PARTS[name](options.experiments) for name in options.part or PARTS}
    verdicts = [verdict for part in parts.values() for verdict in part.verdicts]
    result = {
        "machine": machine(),
        "experiments": options.experiments,
        "targets": [asdict(verdict) for verdict in verdicts],
        "figures": {name: part.figures for name, part in parts.items()},
    }
    write_whole(options.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    console = Console()
    for part in parts.values():
        for group, values in part.figures.items():
            table = Table(title=group, title_justify="left")
            table.add_column("where")
            table.add_column("measured", justify="right")
            for where, value in values.items():
                table.add_row(where, f"{value:.3f}")
            console.print(table)
    show_verdicts(console, verdicts)


if __name__ == "__main__":
    main()
