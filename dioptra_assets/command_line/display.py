"""Progress of a launch: a live display in a terminal, plain lines elsewhere."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console, ConsoleRenderable, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dioptra_assets import progress
from dioptra_assets.runs.interrupts import closing

# Without a terminal, a line is printed at least this often.
LINE_SECONDS = 10.0


@contextmanager
def showing(console: Console) -> Iterator[None]:
    """Show the progress of whatever is launched in the `with` block, on the console's stream."""
    with ExitStack() as stack:
        stream = stack.enter_context(_own_stream(console))
        if console.is_terminal:
            stack.enter_context(_live(stream))
        else:
            stack.enter_context(_lines(stream))
        yield


def line(board: progress.Board) -> str:
    """One line: what is being computed, how much is done, and the time left."""
    cells = "1 cell" if board.of == 1 else f"{board.of:,} cells"
    if board.left == board.of and not board.within:
        return f"{board.asset}: computing {cells}; {_overall(board)}"
    where = f"{board.cell.removeprefix(board.asset + '/')} {board.within}, " if board.within else ""
    done = f"{board.of - board.left:,} of {cells}" if board.of > 1 else ""
    here = (where + done).rstrip(", ") or "1 cell"
    return f"{board.asset}: {here}; {_overall(board)}"


def _overall(board: progress.Board) -> str:
    return f"{board.computed:,} of {board.total:,} cells done in all, {progress.clock(board.seconds_left())}"


@contextmanager
def _own_stream(console: Console) -> Iterator[Console]:
    """A copy of the console's current stream: while a step runs, stdout goes to the log of its run."""
    try:
        number = os.dup(console.file.fileno())
    except (OSError, AttributeError):
        yield console  # in a test or a notebook
        return
    with os.fdopen(number, "w", buffering=1) as file:
        yield Console(file=file, force_terminal=console.is_terminal, width=console.width)


class _Picture:
    """The live display: a bar over all cells, and the asset being computed."""

    def __init__(self) -> None:
        self.board: progress.Board | None = None

    def __rich__(self) -> ConsoleRenderable:
        board = self.board
        if board is None or not board.asset:
            return Text("reading the experiments and the stored cells ...", style="dim")
        done = board.computed + board.share
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            ProgressBar(total=max(board.total, 1), completed=done, width=30),
            Text(_overall(board)),
        )
        cells_done = f"{board.of - board.left:,} of {board.of:,} cells" if board.of != 1 else "1 cell"
        now = f"{board.asset}: {cells_done}"
        if board.within:
            now += f" · {board.cell.removeprefix(board.asset + '/')} {board.within}"
        return Group(Text(now, no_wrap=True, overflow="ellipsis"), grid)


@contextmanager
def _live(console: Console) -> Iterator[None]:
    picture, ended = _Picture(), _Ended()
    live = Live(
        picture, console=console, transient=True, refresh_per_second=5, redirect_stdout=False, redirect_stderr=False
    )

    def listener(board: progress.Board, begins: bool) -> None:
        picture.board = board
        if begins and (line := ended.line(board)):
            console.print(line, highlight=False)

    with live, closing(live.stop), progress.listening(listener):
        yield
        if picture.board and (line := ended.line(picture.board)):
            console.print(line, highlight=False)


class _Ended:
    """Builds the line printed about an asset when the next one begins."""

    def __init__(self) -> None:
        self._asset, self._computed, self._since = "", 0, time.monotonic()

    def line(self, board: progress.Board) -> str:
        cells, seconds, asset = board.computed - self._computed, time.monotonic() - self._since, self._asset
        self._asset, self._computed, self._since = board.asset, board.computed, time.monotonic()
        if not cells:
            return ""
        return f"[green]done[/green] {escape(asset)}: {cells:,} {'cell' if cells == 1 else 'cells'} in {seconds:.1f} s"


@contextmanager
def _lines(console: Console) -> Iterator[None]:
    boards: list[progress.Board] = []
    last, over = time.monotonic(), threading.Event()

    def say(board: progress.Board) -> None:
        nonlocal last
        last = time.monotonic()
        console.print(line(board), soft_wrap=True, markup=False, highlight=False)

    def listener(board: progress.Board, begins: bool) -> None:
        boards[:] = [board]
        if begins and board.of:
            say(board)

    def keep_saying() -> None:
        while not over.wait(1.0):
            if boards and boards[0].left and time.monotonic() - last >= LINE_SECONDS:
                say(boards[0])

    thread = threading.Thread(target=keep_saying, daemon=True)
    with progress.listening(listener):
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(2.0)
