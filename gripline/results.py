"""Evaluation results on disk: one JSON line per episode, in the order of the episode list.

While an evaluation runs, finished episodes are appended to `<name>.partial` in whatever order they come. `finish`
writes the ordered file whole, so that the same episodes give the same bytes whatever the number of workers, and the
name without `.partial` only ever belongs to complete results.
"""

import gc
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from gripline.atomic import disk_errors, write_whole
from gripline.errors import UserError
from gripline.types import EpisodeRecord, EpisodeSpec

_RERUN = "run the evaluation again to make the missing episodes"


class ResultsWriter:
    """Collects the records of one evaluation; picks up what an interrupted one left behind.

    Example: `writer = ResultsWriter(path)`; run the specs with `writer.missing(specs)`, `writer.append(record)` for
    each; `records = writer.finish(specs)`.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._partial = self._path.with_name(f"{self._path.name}.partial")
        self._sink: TextIO | None = None
        self._records: dict[str, EpisodeRecord] = {}
        if self._path.exists():
            self._take(read_results(self._path))
        if self._partial.exists():
            _drop_torn_line(self._partial)
            self._take(_parse(self._partial))

    def missing(self, specs: Iterable[EpisodeSpec]) -> list[EpisodeSpec]:
        """Those of `specs`, in order, that have no record yet or only one of an infra error."""
        return [spec for spec in specs if not self._has_outcome(spec.key)]

    def error_of(self, spec: EpisodeSpec) -> str:
        """What the simulator failed with in this episode; empty if it did not."""
        return self._records[spec.key].error

    def append(self, record: EpisodeRecord) -> None:
        """Add a finished episode; it outlives this process. Raises UserError when the disk does not take it."""
        if self._has_outcome(record.spec.key):
            raise ValueError(f"episode {record.spec.key} has a result already: each spec runs exactly once")
        with disk_errors(self._partial):
            if self._sink is None:
                self._partial.parent.mkdir(parents=True, exist_ok=True)
                self._sink = open(self._partial, "a", encoding="utf-8")  # noqa: SIM115  closed by finish and close
            self._sink.write(_line(record))
            self._sink.flush()
        self._take([record])

    def finish(self, specs: Sequence[EpisodeSpec]) -> list[EpisodeRecord]:
        """Write the final file in the order of `specs` and return its records.

        Raises UserError when a record is missing, or when results of other episodes lie in the same place.
        """
        keys = [spec.key for spec in specs]
        _check_same_episodes(list(self._records), keys, str(self._path))
        records = [self._records[key] for key in keys]
        self.close()
        if self._partial.exists() or not self._path.exists():
            write_results(self._path, records)
            self._partial.unlink(missing_ok=True)
        return records

    def close(self) -> None:
        """Let go of the partial file; idempotent."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def _take(self, records: Iterable[EpisodeRecord]) -> None:
        """A later record of the same episode counts: it is the retry after an infra error."""
        self._records.update((record.spec.key, record) for record in records)

    def _has_outcome(self, key: str) -> bool:
        return key in self._records and not self._records[key].error


def write_results(path: str | Path, records: Sequence[EpisodeRecord]) -> None:
    """Write all records in the order given, whole or not at all. Raises UserError when the disk does not take them."""
    write_whole(Path(path), "".join(_line(record) for record in records))


def read_results(path: str | Path, specs: Sequence[EpisodeSpec] | None = None) -> list[EpisodeRecord]:
    """Read and verify a results file; with `specs`, also that it holds exactly these episodes in this order.

    Raises UserError, naming the line, when the file is missing, damaged, holds an episode twice or other episodes.
    """
    source = Path(path)
    if not source.exists():
        raise UserError(str(source), "", "no such results file", "run the evaluation first, or check the path")
    first_line: dict[str, int] = {}
    records = _parse(source)
    for number, record in enumerate(records, start=1):
        earlier = first_line.setdefault(record.spec.key, number)
        if earlier != number:
            raise UserError(
                str(source), f"line {number}", f"the same episode as line {earlier}", f"delete one, or {_RERUN}"
            )
    if specs is not None:
        expected = [spec.key for spec in specs]
        _check_same_episodes(list(first_line), expected, str(source))
        if list(first_line) != expected:
            raise UserError(
                str(source), "", "the episodes are not in the order of their list", "run the evaluation again"
            )
    return records


def _line(record: EpisodeRecord) -> str:
    return record.model_dump_json() + "\n"


def _parse(path: Path) -> list[EpisodeRecord]:
    records = []
    collects = gc.isenabled()
    gc.disable()  # it would walk all that was read again and again, for half of the time
    try:
        with open(path, encoding="utf-8") as source:
            for number, line in enumerate(source, start=1):
                try:
                    records.append(EpisodeRecord.model_validate_json(line))
                except ValidationError as error:
                    raise _damaged(path, number, error) from error
        gc.freeze()  # nor ever again: what was read is freed when nobody needs it, and holds no cycles
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"line {len(records) + 1}", f"unreadable: {error}", _RERUN) from error
    finally:
        if collects:
            gc.enable()
    return records


def _damaged(path: Path, number: int, error: ValidationError) -> UserError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    problem = f"damaged: {field}: {first['msg']}" if field else f"damaged: {first['msg']}"
    return UserError(str(path), f"line {number}", problem, f"delete this line, then {_RERUN}")


def _drop_torn_line(path: Path) -> None:
    """Cut a last line without its end: the writer was killed in the middle of it."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _check_same_episodes(found: Sequence[str], expected: Sequence[str], where: str) -> None:
    present = set(found)
    missing = [index for index, key in enumerate(expected) if key not in present]
    strangers = present.difference(expected)
    if strangers:
        problem = f"holds {len(strangers)} of {len(found)} episodes that are not in the list"
        raise UserError(where, "", problem, "it belongs to another evaluation: choose another output directory")
    if missing:
        problem = f"{len(missing)} of {len(expected)} episodes are missing, the first is number {missing[0] + 1}"
        raise UserError(where, "", problem, _RERUN)
