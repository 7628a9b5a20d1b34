"""An evaluation in shards: parts of one list that run in different processes, then one file as if they had not.

Shard I of N takes every N-th episode, beginning with the I-th, so that each has its share of every task and axis. It is
kept in `{stage}-shards/{I}-of-{N}/` of a run's folder, in the same form as a whole evaluation: `inputs.sha256`,
`results.jsonl`, `stage.json`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gripline.errors import UserError
from gripline.results import read_results
from gripline.store import INPUTS_FILE, RunStore, StageResult
from gripline.types import EpisodeRecord, EpisodeSpec

RESULTS_FILE = "results.jsonl"
MARK = "stage.json"


@dataclass(frozen=True, order=True)
class Shard:
    """Shard `index` of `count`, counted from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """'2/3'. Raises UserError."""
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
        if match is None or int(match[1]) > int(match[2]):
            raise UserError(text, "--shard", "is no shard", "write I/N with 1 ≤ I ≤ N, such as 2/3")
        return cls(int(match[1]), int(match[2]))

    @property
    def all(self) -> "list[Shard]":
        """Every shard of this cut."""
        return [Shard(index, self.count) for index in range(1, self.count + 1)]

    def of(self, specs: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
        """The episodes of this shard, in the list's order."""
        return list(specs[self.index - 1 :: self.count])

    def folder(self, stage: str) -> str:
        """Where the run's folder keeps it."""
        return f"{_folder(stage)}/{self.index}-of-{self.count}"


@dataclass(frozen=True)
class Part:
    """A shard as it lies in a folder."""

    shard: Shard
    store: RunStore
    finished: bool

    def where(self, stage: str) -> str:
        """As the user knows it."""
        return f"{self.store.uri}/{self.shard.folder(stage)}"


def found(store: RunStore, stage: str) -> list[Part]:
    """The shards of a stage's evaluation in a run's folder, begun or finished."""
    pattern = re.compile(rf"{re.escape(_folder(stage))}/([1-9]\d*)-of-([1-9]\d*)/({re.escape(INPUTS_FILE)}|{MARK})")
    files: dict[Shard, set[str]] = {}
    for name in store.files(_folder(stage)):
        match = pattern.fullmatch(name)
        if match is not None:
            files.setdefault(Shard(int(match[1]), int(match[2])), set()).add(match[3])
    return [Part(shard, store, MARK in names) for shard, names in sorted(files.items())]


def merge(parts: Sequence[Part], stage: str, specs: Sequence[EpisodeSpec]) -> tuple[StageResult, list[EpisodeRecord]]:
    """The whole evaluation from its shards: what it is to be marked with, and the records in the list's order.

    Sums are over the shards, seconds too. Raises UserError where shards are missing, unfinished, there twice, of
    another evaluation or damaged; nothing is changed.
    """
    _check_complete(parts, stage)
    records: dict[str, EpisodeRecord] = {}
    totals: Counter[str] = Counter()
    results = []
    for part in parts:
        folder = part.store.pull(part.shard.folder(stage))
        results.append(StageResult.model_validate_json((folder / MARK).read_text(encoding="utf-8")))
        if results[-1].fingerprint != results[0].fingerprint:
            problem = f"is of another evaluation than {parts[0].where(stage)}"
            raise UserError(part.where(stage), "", problem, "merge shards of one checkpoint, profile and list")
        own = read_results(folder / RESULTS_FILE, part.shard.of(specs))
        records |= {record.spec.key: record for record in own}
        totals += Counter(
            episodes=len(own),
            errors=sum(bool(record.error) for record in own),
            env_steps=sum(record.num_steps for record in own),
        )
    seconds = sum(float(result.outputs["seconds"]) for result in results)
    names = ("episodes", "errors", "env_steps")
    outputs = {name: totals[name] for name in names} | {"seconds": seconds}
    return StageResult(fingerprint=results[0].fingerprint, outputs=outputs), [records[spec.key] for spec in specs]


def _check_complete(parts: Sequence[Part], stage: str) -> None:
    counts = Counter(part.shard.count for part in parts)
    if len(counts) > 1:
        shown = " and ".join(f"{number} of …/{count}" for count, number in sorted(counts.items()))
        raise UserError(parts[0].store.uri, "", f"holds shards of several cuts: {shown}", "merge those of one N")
    first: dict[Shard, Part] = {}
    for part in parts:
        earlier = first.setdefault(part.shard, part)
        if earlier is not part:
            problem = f"shard {part.shard} is there twice: also {earlier.where(stage)}"
            raise UserError(part.where(stage), "", problem, "name each shard's folder once")
    every = parts[0].shard.all
    missing = [str(shard) for shard in every if shard not in first]
    if missing:
        problem = f"{len(missing)} of {len(every)} shards are missing: {', '.join(missing[:5])}"
        raise UserError(parts[0].store.uri, "", problem, "run them, or name their folders too")
    unfinished = [part for part in parts if not part.finished]
    if unfinished:
        next_step = f"give its command again, with --shard {unfinished[0].shard}"
        raise UserError(unfinished[0].where(stage), "", "is not finished", next_step)


def _folder(stage: str) -> str:
    return f"{stage}-shards"
