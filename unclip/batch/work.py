"""One worker of a batch: it reads rows, claims blocks that nobody has drawn, draws, writes and lists them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Unpack

from PIL import Image

from ..options import Asked
from ..pipeline.checks import integer
from ..pipeline.pipeline import Pipeline
from .album import LEASES, Album
from .draw import BLOCK, Block, Cell, How, blocks, digest_of, how_of
from .leases import EXPIRES, Leases
from .reading import Row, Source
from .sinks import SINKS, Add, Sheeted, Sink

NOTES = 20  # of what is cut off that are told
PAUSE = 0.2  # seconds between looks at what others do

Drawn = Sequence[tuple[Cell, Image.Image]]


@dataclass
class Report:
    """What a worker has done, and what there is in all when it ends."""

    made: int = 0  # pictures that it has drawn
    there: int = 0  # pictures that were there, or that others drew
    bad: int = 0  # rows that cannot be drawn
    elsewhere: int = 0  # blocks that others still work at
    notes: list[str] = field(default_factory=list)  # what is cut off, a row each

    @property
    def whole(self) -> bool:
        """Whether every row has its pictures."""
        return self.bad == 0 and self.elsewhere == 0


@dataclass
class Worker:
    """Draws the rows of a source into an album.

    rows:    of a block. expires: see ``Leases``. wait: for blocks that others work at, in case they die.
    verify:  read what is there, and not only look for it.
    told:    called with the report and the source whenever pictures were written.
    """

    pipeline: Pipeline
    source: Source
    album: Album
    sink: Sink
    how: How
    rows: int
    expires: float = EXPIRES
    wait: bool = True
    verify: bool = False
    told: Callable[[Report, Source], None] = lambda *_: None

    def work(self) -> Report:
        """Draw all that nobody else draws; ``OSError`` where it cannot be written, and what is done stays."""
        self.report = Report()
        try:
            with Leases(self.album.folder / LEASES, self.expires) as self.leases:
                with ThreadPoolExecutor(1, thread_name_prefix="writing") as self.writer:
                    self._rounds()
        finally:
            self.album.gather()
        return self.report

    def _rounds(self) -> None:
        """Go through the rows until no block is left; others' blocks are looked at again."""
        left: set[int] | None = None  # None: all
        last = 0
        while True:
            busy: set[int] = set()
            for number, rows in enumerate(blocks(self.source, self.rows)):
                last = max(last, number)
                if (left is None or number in left) and not self._block(number, rows, self.source.once):
                    busy.add(number)
            if not busy or not self.wait:
                self.report.elsewhere = len(busy)
                return
            left = busy
            time.sleep(PAUSE)

    def _block(self, number: int, rows: Sequence[Row], patient: bool) -> bool:
        """Draw a block, unless that is done; False if another worker has it.

        patient: wait for that worker, since the rows cannot be read again.
        """
        digest = digest_of(rows, self.how.n)
        for _ in count():
            if self._done(number, digest):
                self._count(number, digest)
                return True
            if self.leases.claim(number):
                break
            if not (patient and self.wait):
                return False
            time.sleep(PAUSE)
        try:
            if self._done(number, digest):  # just before the claim
                self._count(number, digest)
            else:
                self._draw(number, digest, Block(self.pipeline, rows, self.how))
        finally:
            self.leases.release()
        return True

    def _done(self, number: int, digest: str) -> bool:
        """Whether a block is complete, and all its files are there."""
        if not self.album.complete(number, digest):
            return False
        rows = self.album.lines_of(self.album.path(number, digest))
        return all("error" in row or self.album.is_whole(row, self.verify) for row in rows)

    def _count(self, number: int, digest: str) -> None:
        pictures, bad = self.album.counts(number, digest)
        self.report.there, self.report.bad = self.report.there + pictures, self.report.bad + bad
        self.told(self.report, self.source)

    def _draw(self, number: int, digest: str, block: Block) -> None:
        """Draw what a block lacks, while the writer writes what was drawn before, and list it."""
        self.album.tidy(number, [entry.line for entry in block.entries])
        listed = self._listed(number, digest, block)
        writing: Future[None] | None = None
        with self.sink.of(number) as add:
            for cells in block.batches:
                lacking = [(row, k) for row, k in cells if (block.entries[row].line, k) not in listed]
                self.report.there += len(cells) - len(lacking)
                if not lacking:
                    continue
                cells = lacking
                drawn = block.draw(cells)
                if writing is not None:
                    writing.result()
                writing = self.writer.submit(self._write, number, digest, block, drawn, add, listed)
            if writing is not None:
                writing.result()
        lines = [listed[key] for key in sorted(listed)]
        for line in lines if not self.sink.keeps else ():
            line["bytes"] = (self.album.folder / line["file"]).stat().st_size
        for entry in block.entries:
            if entry.reason is not None:
                lines.append({"line": entry.line, "error": entry.reason})
                self.report.bad += 1
            if len(self.report.notes) < NOTES:
                self.report.notes += [f"line {entry.line} {note}" for note in entry.notes]
        if self.leases.mine():  # else somebody else has it, and lists the same
            self.album.publish(number, digest, lines)
        self.told(self.report, self.source)

    def _write(
        self,
        number: int,
        digest: str,
        block: Block,
        drawn: Drawn,
        add: Add,
        listed: dict[tuple[int, int], dict[str, Any]],
    ) -> None:
        rows = []
        for (row, k), picture in drawn:
            entry = block.entries[row]
            assert entry.ask is not None
            told = _told(entry.line, k, entry.seed, entry.ask)
            file = add(told | {"named": entry.ask.named}, picture)
            rows.append({"file": file, **told})
        if self.sink.keeps:
            for line in rows:
                line["bytes"] = (self.album.folder / line["file"]).stat().st_size
            self.album.note(number, digest, rows)
        listed.update({(row["line"], row["k"]): row for row in rows})
        self.report.made += len(rows)
        self.told(self.report, self.source)

    def _listed(self, number: int, digest: str, block: Block) -> dict[tuple[int, int], dict[str, Any]]:
        """The pictures of a block that are there already; those of a batch that was half done count as none.

        ``ValueError`` for a line that says something else now, unless that is to be overwritten.
        """
        before = self.album.before(number, digest)
        asked = {entry.line: entry for entry in block.entries}
        if not self.album.overwrite:
            for row in before:
                entry = asked.get(row["line"])
                if "error" not in row and (
                    entry is None or entry.ask is None or entry.ask.digest != row.get("row")
                ):
                    now = (
                        "is gone"
                        if entry is None
                        else f"is {entry.ask.named if entry.ask else entry.reason!r}"
                    )
                    raise ValueError(
                        f"{self.album.folder} holds pictures of other prompts: line {row['line']} was "
                        f"{row.get('prompt')!r} and {now}. Name another folder, or give --overwrite to have "
                        "them replaced"
                    )
        if not self.sink.keeps:
            return {}
        listed: dict[tuple[int, int], dict[str, Any]] = {}
        complete = list(self.album.lines_of(self.album.path(number, digest)))
        for row in [*before, *complete, *self.album.begun(number, digest)]:
            entry = asked.get(row["line"])
            fits = entry is not None and entry.ask is not None and entry.ask.digest == row.get("row")
            if fits and self.album.is_whole(row, self.verify):
                listed[row["line"], row["k"]] = row
        if before or complete:
            return listed
        whole = [
            cells
            for cells in block.batches
            if all((block.entries[row].line, k) in listed for row, k in cells)
        ]
        keys = [(block.entries[row].line, k) for cells in whole for row, k in cells]
        return {key: listed[key] for key in keys}


def _told(line: int, k: int, seed: int, ask: Any) -> dict[str, Any]:
    """A picture's line in the index."""
    told: dict[str, Any] = {"line": line, "k": k, "seed": seed, "prompt": ask.prompt, "id": ask.id}
    told |= {"verb": None if ask.verb == "generate" else ask.verb, "row": ask.digest}
    return {name: value for name, value in told.items() if value is not None}


def run(
    pipeline: Pipeline,
    source: Source,
    folder: str | Path,
    *,
    n: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    usual: int = 16,
    block: int | None = None,
    form: str = "pictures",
    sheet: bool = False,
    metadata: bool = True,
    overwrite: bool = False,
    verify: bool = False,
    expires: float = EXPIRES,
    wait: bool = True,
    told: Callable[[Report, Source], None] = lambda *_: None,
    **options: Unpack[Asked],
) -> Report:
    """Draw what ``folder`` lacks of a source's rows, as one of any number of workers.

    n, seed:    of a row that has none of its own. options: likewise, the fields of ``Options``.
    batch_size: pictures drawn at a time; None = as the first worker did, who takes ``usual``.
    block:      rows that are claimed at once; None = as the first worker did, who takes ``BLOCK``.
    form:       one of ``SINKS``. sheet: and a contact sheet a block.
    metadata:   whether pictures say how they were made. overwrite: see ``Album``; the rest, ``Worker``.

    Raises ``ValueError`` for what no row could be drawn with, and as ``Album`` does.
    """
    how = how_of(pipeline, n, seed, batch_size or usual, source.folder, options)
    settings = {
        "model": f"{pipeline.name} {pipeline.digest()}",
        "seed": seed,
        **how.options,
        "output": form,
        "sheet": sheet,
        "metadata": metadata,
        "batch_size": batch_size or usual,
        "rows": block or BLOCK,
    }
    album = Album(folder, settings, overwrite)
    how = replace(how, batch_size=batch_size or integer("batch_size", album.settings.get("batch_size"), 1))
    sink = SINKS[form](album.folder, metadata)
    sink = Sheeted(sink, album.folder) if sheet else sink
    rows = integer("rows", album.settings.get("rows"), 1)
    return Worker(pipeline, source, album, sink, how, rows, expires, wait, verify, told).work()
