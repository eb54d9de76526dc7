"""Pictures of images, curves and matrices, as PNG bytes.

Pixel values are shown as they are: 0 is black, 1 is white, nothing is stretched to its own range and nothing is
smoothed. Every function draws into a figure of its own in one fixed style, so the same input gives the same bytes
whatever the user's matplotlib settings are, and no pyplot state is touched.
"""

import functools
import io
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import pandas as pd
from cachetools import LRUCache, cached

from dioptra_assets.robustness.image_set import to_uint8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

DPI = 200
INK, MUTED, GRID = "#1f2933", "#6b7785", "#e3e8ee"
# Okabe and Ito's colours, told apart in every common colour blindness; their yellow is too pale for lines on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SHADES = ("#f4f8fb", "#c9dfef", "#86b9dc", "#3a86bd", "#0f5a92", "#08325a")

# Of larger matrices the numbers, of more curves than this the less telling ones are left out: nobody could read them.
NUMBERED, SMALLER_ABOVE = 20, 12
MAX_CURVES, MAX_WHITE_BOX = 64, 12
MAX_MARKERS = 25

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # class and model names are text, not formulas, also when they hold a dollar sign
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b6c0cb",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "savefig.facecolor": "white",
}
_STYLE_LOCK = threading.Lock()
# Pictures of tables that the report shows again after the asset that they belong to.
_DRAWN: LRUCache[tuple[object, ...], bytes] = LRUCache(32)
_DRAWN_LOCK = threading.Lock()
Draw = TypeVar("Draw", bound=Callable[..., bytes])


def _drawn_once(draw: Draw) -> Draw:
    """A picture of a table, drawn once by a process: the same table gives the same bytes."""

    def key(table: pd.DataFrame, **options: object) -> tuple[object, ...]:
        return draw.__name__, table.to_csv(), *sorted(options.items())

    return cast(Draw, functools.wraps(draw)(cached(_DRAWN, key, _DRAWN_LOCK)(draw)))


def image_grid(images: np.ndarray, titles: Sequence[str] | None = None, columns: int = 10) -> bytes:
    """Images in rows, unscaled.

    Args:
        images: float [n, height, width, 1 or 3] in [0, 1], n at least 1.
        titles: one text above each image, or None for no text.
        columns: images in a row.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: on another shape, on pixels that are not finite, and when titles and images differ in number.
    """
    pixels = _checked(images, "images")
    if titles is not None and len(titles) != len(pixels):
        raise ValueError(f"{len(pixels)} images but {len(titles)} titles")
    starts = range(0, len(pixels), columns)
    rows = [to_uint8(pixels[start : start + columns]) for start in starts]
    texts = [list(titles[start : start + columns]) if titles is not None else [] for start in starts]
    return _picture_rows(rows, texts, [])


def comparison_grid(clean: np.ndarray, adversarial: np.ndarray, titles: Sequence[str]) -> bytes:
    """Clean images, adversarial images and their difference, one image a column.

    The difference d is drawn as 0.5 + d / 2, so that -1..1 becomes 0..1: unchanged pixels are mid grey, and a small
    perturbation looks as small as it is.

    Args:
        clean: float [n, height, width, 1 or 3] in [0, 1]; about ten images read well.
        adversarial: the same images after the attack, same shape.
        titles: one text above each column, such as `label -> prediction (confidence)`.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: when the two arrays or the titles do not fit together, or pixels are not finite.
    """
    before, after = _checked(clean, "clean"), _checked(adversarial, "adversarial")
    if before.shape != after.shape:
        raise ValueError(f"clean images have shape {before.shape} but adversarial images {after.shape}")
    if len(titles) != len(before):
        raise ValueError(f"{len(before)} images but {len(titles)} titles")
    rows = [to_uint8(before), to_uint8(after), to_uint8(0.5 + (after - before) / 2)]
    return _picture_rows(rows, [list(titles), [], []], ["clean", "adversarial", "difference\n(grey: unchanged)"])


@_drawn_once
def loss_curves(history: pd.DataFrame) -> bytes:
    """Loss and accuracy against the epoch, training and validation.

    Args:
        history: one row an epoch: `epoch` (may be fractional), `loss`, `accuracy` in [0, 1], and `val_loss`,
            `val_accuracy` where a validation split was held out.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: when a column is missing or there is no row.
    """
    from matplotlib.ticker import MaxNLocator

    _need(history, ["epoch", "loss", "accuracy"], "history")
    whole = bool(np.all(history["epoch"].to_numpy(float) % 1 == 0))
    with _style():
        figure = _figure(7.6, 3.0)
        for axes, column, title in zip(figure.subplots(1, 2), ["loss", "accuracy"], ["Loss", "Accuracy"], strict=True):
            for name, label, colour, line in [
                (column, "training", PALETTE[0], "-"),
                (f"val_{column}", "validation", PALETTE[1], "--"),
            ]:
                if name in history:
                    axes.plot(history["epoch"], history[name], line, color=colour, marker="o", label=label)
            axes.set(title=title, xlabel="epoch")
            axes.margins(x=0.06, y=0.12)
            axes.legend()
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=whole, min_n_ticks=1))
        _percent_axis(figure.axes[1])
        return _png(figure)


@_drawn_once
def transfer_heat_map(matrix: pd.DataFrame, *, title: str, value_label: str = "robust accuracy") -> bytes:
    """Every model (column) on the images that were made on every model (row).

    Cells on the diagonal, where source and target are one model, are framed; a cell without a value is hatched. Above
    20 models the numbers are left out, as they could not be read.

    Args:
        matrix: rates in [0, 1], NaN where a cell is missing; rows are sources, columns are targets.
        title: stands above the matrix.
        value_label: what the numbers are, beside the colour bar.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: when the matrix is empty.
    """
    from matplotlib.patches import Rectangle

    if matrix.empty:
        raise ValueError("the transfer matrix has no cell to draw")
    values = matrix.to_numpy(float)
    rows, columns = values.shape
    sources = [_short(name, 26) for name in matrix.index]
    targets = [_short(name, 26) for name in matrix.columns]
    numbered = max(rows, columns) <= NUMBERED
    # A picture of many cells takes seconds, one of smaller cells half of them.
    size = 1.0 if max(rows, columns) <= SMALLER_ABOVE else 0.6
    tilted = max(map(len, targets)) > 11 * size or not numbered
    down, across = (0.62 * size * rows, 0.92 * size * columns) if numbered else (9.0, 9.0)
    with _style():
        height = 1.35 + down + (0.055 * max(map(len, targets)) if tilted else 0)
        figure = _figure(max(4.4, 2.3 + 0.07 * max(map(len, sources)) + across), height)
        axes = figure.add_subplot()
        image = axes.imshow(np.ma.masked_invalid(values), cmap=_shades(), vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(rows, columns):
            value = values[row, column]
            corner = (column - 0.5, row - 0.5)
            if np.isnan(value):
                axes.add_patch(Rectangle(corner, 1, 1, facecolor="#f3f3f3", edgecolor="#c4c9cf", hatch="///", lw=0))
            elif matrix.index[row] == matrix.columns[column]:
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, lw=1.6, zorder=3, clip_on=False))
            if not numbered:
                continue
            text = "missing" if np.isnan(value) else f"{value:.1%}".replace("%", " %")
            colour = "white" if value > 0.5 else INK
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8.5 if size == 1 else 6.5)
        named = [range(0, count, 1 if numbered else -(-count // 40)) for count in (columns, rows)]
        rotation = (35 if numbered else 90) if tilted else 0
        ends = "right" if tilted and numbered else "center"
        axes.set_xticks(named[0], [targets[i] for i in named[0]], rotation=rotation, ha=ends)
        axes.set_yticks(named[1], [sources[i] for i in named[1]])
        axes.set(xlabel="evaluated on (target)", ylabel="made on (source)")
        axes.set_title(_short(title, 60), loc="left")
        _bare_cells(axes, rows, columns)
        bar = figure.colorbar(image, ax=axes, label=value_label, fraction=0.08, pad=0.03)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
        return _png(figure)


@_drawn_once
def security_curves(curve: pd.DataFrame, *, class_count: int) -> bytes:
    """Accuracy against eps with 95 % intervals: one panel a family, one colour a target, one marker a source.

    White-box curves, whose source is the target, are solid; transferred ones are dashed. A dotted line stands at the
    accuracy of guessing. Of more than 64 curves the white-box ones alone are drawn, and of those the 12 that fall
    lowest; the picture says so.

    Args:
        curve: one row a point: `source`, `target`, `family`, `eps`, and `robust_accuracy`, `low`, `high` in [0, 1].
            Rows of eps 0 are the clean accuracy, one for each curve that should start there.
        class_count: classes of the data; guessing is right once in so many.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: when a column is missing or there is no row.
    """
    _need(curve, ["source", "target", "family", "eps", "robust_accuracy", "low", "high"], "curve")
    curve, left_out = _told(curve)
    families = list(dict.fromkeys(curve["family"]))
    targets, sources = list(dict.fromkeys(curve["target"])), list(dict.fromkeys(curve["source"]))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(targets)}
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(sources)}
    across = 2 if len(families) == 4 else min(3, len(families))
    down = -(-len(families) // across)
    with _style():
        entries = len(targets) + len(sources) + 7
        figure = _figure(2.6 + (5.0 if across == 1 else 3.1 * across), max(3.4 * down, 0.21 * entries + 0.3))
        panels = figure.subplots(down, across, sharey=True, squeeze=False)
        for axes in panels.flat[len(families) :]:
            axes.set_visible(False)
        for axes, family in zip(panels.flat, families, strict=False):
            # White-box curves are drawn last, above the transferred ones.
            of_family = dict(list(curve[curve["family"] == family].groupby(["source", "target"], sort=False)))
            for source, target in sorted(product(sources, targets), key=lambda pair: pair[0] == pair[1]):
                line = of_family.get((source, target), curve[:0]).sort_values(by="eps")
                _curve(axes, line, colours[target], markers[source], solid=source == target)
            axes.axhline(1 / class_count, color=MUTED, linestyle=":", linewidth=1.2)
            axes.set(title=_short(family, 40), xlabel="eps")
            axes.set_ylim(-0.02, 1.04)
            axes.margins(x=0.04)
            _percent_axis(axes)
        for axes in panels[:, 0]:
            axes.set_ylabel("accuracy")
        _curve_legend(figure, colours, markers, class_count)
        if left_out:
            figure.supxlabel(left_out, fontsize=8, color=MUTED)
        return _png(figure)


def _told(curve: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The curves to draw, and in a sentence which they are where that is not all."""
    of_line = ["source", "target", "family"]
    lines = curve.groupby(of_line, sort=False)["robust_accuracy"].mean().reset_index()
    if len(lines) <= MAX_CURVES:
        return curve, ""
    own = lines[lines["source"] == lines["target"]]
    kind, chosen = ("white-box curves", own) if len(own) else ("curves", lines)
    lowest = chosen.groupby("target")["robust_accuracy"].mean().nsmallest(MAX_WHITE_BOX).index
    kept = chosen[chosen["target"].isin(lowest)].drop(columns="robust_accuracy")[:MAX_CURVES]
    which = f"the {len(kept)} {kind}" + (" that fall lowest" if len(kept) < len(chosen) else "")
    shown = curve.merge(kept, on=of_line)
    return shown, f"{which}, of {len(lines):,} curves in all; the table has them all"


def poison_curves(curve: pd.DataFrame) -> bytes:
    """Attack success and clean accuracy against the poisoned fraction, with 95 % intervals: one colour a model.

    Args:
        curve: rows of `poisoning.poison_curve`.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: when a column is missing or there is no row.
    """
    rates = {"asr": "attack success rate", "clean_accuracy": "clean accuracy"}
    ends = [f"{rate}{end}" for rate in rates for end in ("", "_low", "_high")]
    _need(curve, ["architecture", "family", "poison_fraction", *ends], "curve")
    lines = list(curve.groupby(["architecture", "family"], sort=False))
    with _style():
        figure = _figure(8.8, max(3.4, 0.25 * len(lines) + 1))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (rate, title) in zip(panels, rates.items(), strict=True):
            for number, (key, line) in enumerate(lines):
                architecture, family = key
                colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
                share, label = 100 * line["poison_fraction"], _short(f"{family}, {architecture}", 34)
                axes.fill_between(share, line[f"{rate}_low"], line[f"{rate}_high"], color=colour, alpha=0.14, lw=0)
                axes.plot(share, line[rate], marker=marker, color=colour, label=label)
            axes.set(title=title, xlabel="poisoned share of eligible rows, %")
            axes.set_ylim(-0.02, 1.04)
            _percent_axis(axes)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
        return _png(figure)


def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> bytes:
    """Counts of predictions (column) for each true class (row); colour is the share of the row.

    Above 20 classes the counts are left out, as they could not be read.

    Args:
        matrix: int [classes, classes], row = label, column = prediction.
        class_names: one name a class.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: when the matrix is not square or does not fit the class names.
    """
    count = len(class_names)
    if not count or matrix.shape != (count, count):
        raise ValueError(f"a confusion matrix of shape {matrix.shape} does not fit {count} class names")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [_short(name, 22) for name in class_names]
    # Numbers need about half an inch a class; without them an overview of any size fits one page.
    side = 0.52 * count if count <= 20 else min(9.0, max(6.0, 0.12 * count))
    longest = max(map(len, names))
    tilted = 0.075 * longest > max(2.4, side) / count
    with _style():
        labels = 0.07 * longest
        figure = _figure(max(4.4, 1.7 + labels + side), max(3.2, 0.9 + (labels if tilted else 0.2) + side))
        axes = figure.add_subplot()
        image = axes.imshow(share, cmap=_shades(), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        if count <= 20:
            for row, column in np.argwhere(matrix > 0):
                colour = "white" if share[row, column] > 0.5 else INK
                text = f"{matrix[row, column]:,}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8 if len(text) < 5 else 7)
            _bare_cells(axes, count, count)
        else:
            axes.grid(False)
        shown = range(0, count, -(-count // 40))
        size = 9 if count <= 20 else 7
        axes.set_xticks(shown, [names[i] for i in shown], rotation=90 if tilted else 0, fontsize=size)
        axes.set_yticks(shown, [names[i] for i in shown], fontsize=size)
        axes.set(xlabel="prediction", ylabel="label")
        bar = figure.colorbar(image, ax=axes, label="share of the label", fraction=0.05, pad=0.03)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        _percent_axis(bar.ax)
        return _png(figure)


def _picture_rows(rows: list[np.ndarray], titles: list[list[str]], headings: list[str]) -> bytes:
    """Rows of uint8 images, laid out in whole output pixels so that every image pixel becomes a square of one size."""
    height, width, _ = rows[0].shape[1:]
    # Small images are enlarged by a whole factor, middling ones stay as they are, large ones are thinned.
    zoom = 168 // max(height, width) or min(1.0, 320 / max(height, width))
    cell_width, cell_height = round(width * zoom), round(height * zoom)
    line, gap, margin = 27, 14, 16
    wrapped = [[_wrapped(text, max(8, cell_width // 11)) for text in row] for row in titles]
    heads = [line * max((text.count("\n") + 1 for text in row), default=0) + 8 * bool(row) for row in wrapped]
    left = margin + (13 * max(len(part) for text in headings for part in text.split("\n")) if headings else 0)
    total_width = left + len(rows[0]) * (cell_width + gap) - gap + margin
    total_height = 2 * margin + sum(heads) + len(rows) * (cell_height + gap) - gap
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI)
        # Pixels that are repeated are laid on one sheet: an axes for each image would take most of the time.
        sheet = np.full((total_height, total_width, 3), 255, np.uint8) if zoom >= 1 else None
        top = margin
        for number, (images, texts, head) in enumerate(zip(rows, wrapped, heads, strict=True)):
            top += head
            for column, picture in enumerate(images):
                x = left + column * (cell_width + gap)
                shown = np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture
                if sheet is not None:
                    place = slice(top, top + cell_height), slice(x, x + cell_width)
                    sheet[place] = shown.repeat(int(zoom), axis=0).repeat(int(zoom), axis=1)
                else:
                    _thinned(figure, shown, (x, total_height - top - cell_height, cell_width, cell_height))
                if texts:
                    centre = (x + cell_width / 2) / total_width
                    above = (total_height - top + 8) / total_height
                    figure.text(centre, above, texts[column], ha="center", va="bottom", fontsize=7, linespacing=1.25)
            if headings:
                middle = (total_height - top - cell_height / 2) / total_height
                figure.text((left - 14) / total_width, middle, headings[number], ha="right", va="center", fontsize=8)
            top += cell_height + gap
        if sheet is not None:
            figure.figimage(sheet)
        return _png(figure)


def _thinned(figure: "Figure", image: np.ndarray, place: tuple[int, int, int, int]) -> None:
    """Draw a large image smaller, at (left, bottom, width, height) in pixels of the figure."""
    width, height = figure.get_size_inches() * figure.dpi
    left, bottom, across, up = place
    axes = figure.add_axes((left / width, bottom / height, across / width, up / height))
    axes.imshow(image, interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def _curve(axes: "Axes", line: pd.DataFrame, colour: str, marker: str, *, solid: bool) -> None:
    attacked = line[line["eps"] > 0]
    clean = line[line["eps"] == 0]
    axes.fill_between(line["eps"], line["low"], line["high"], color=colour, alpha=0.14, linewidth=0)
    axes.plot(line["eps"], line["robust_accuracy"], linestyle="-" if solid else (0, (4, 2)), color=colour, zorder=3)
    every = -(-len(attacked) // MAX_MARKERS) or None
    axes.plot(attacked["eps"], attacked["robust_accuracy"], marker, color=colour, zorder=4, markevery=every)
    axes.plot(clean["eps"], clean["robust_accuracy"], "o", color=colour, mfc="white", ms=7, mew=1.6, zorder=4)


def _curve_legend(figure: "Figure", colours: dict[str, str], markers: dict[str, str], class_count: int) -> None:
    """One entry a target, one a source and one a style: it grows with the models, not with their pairs."""
    from matplotlib.lines import Line2D

    def head(text: str) -> tuple[Line2D, str]:
        return Line2D([], [], linestyle=""), text

    entries = [head("evaluated on (target)")]
    entries += [(Line2D([], [], color=colour, lw=3), _short(name, 24)) for name, colour in colours.items()]
    entries += [head("made on (source)")]
    entries += [(Line2D([], [], color=MUTED, ls="", marker=m), _short(name, 24)) for name, m in markers.items()]
    entries += [
        head("line"),
        (Line2D([], [], color=INK), "white-box"),
        (Line2D([], [], color=INK, linestyle=(0, (4, 2))), "transferred"),
        (Line2D([], [], color=INK, ls="", marker="o", mfc="white", ms=7, mew=1.6), "clean (eps 0)"),
        (Line2D([], [], color=MUTED, ls=":", lw=1.2), f"guessing ({100 / class_count:.3g} %)"),
    ]
    handles, labels = zip(*entries, strict=True)
    legend = figure.legend(handles, labels, loc="outside right upper", fontsize=8, alignment="left", handlelength=2.6)
    for text in legend.get_texts():
        if text.get_text() in ("evaluated on (target)", "made on (source)", "line"):
            text.set_fontweight("bold")


def _bare_cells(axes: "Axes", rows: int, columns: int) -> None:
    """White lines between cells in place of the grid, frame and ticks."""
    axes.grid(False)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color="white", linewidth=1.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _percent_axis(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))


def _shades() -> "Colormap":
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("share", SHADES)


def _short(name: object, limit: int) -> str:
    """A name cut in its middle: sweeps differ at the end, models at the start."""
    text = " ".join(str(name).split())
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[len(text) - (limit - limit // 2 - 1) :]}"


def _wrapped(text: str, width: int) -> str:
    """At most three lines of about `width` letters; a percentage stays in one piece."""
    lines = [" ".join(_short(word, width) for word in line.split(" ")) for line in text.splitlines()]
    parts = [part for line in lines for part in textwrap.wrap(line.replace(" %", "\u00a0%"), width)]
    return "\n".join(parts if len(parts) <= 3 else [*parts[:2], _short(" ".join(parts[2:]), width)])


def _checked(images: np.ndarray, what: str) -> np.ndarray:
    if images.ndim != 4 or not len(images) or images.shape[-1] not in (1, 3):
        raise ValueError(f"{what}: pictures must be [n, height, width, 1 or 3] with n >= 1, got shape {images.shape}")
    if not np.isfinite(images).all():
        raise ValueError(f"{what}: pixels are non-finite, there is nothing honest to draw")
    return images.astype(np.float32)


def _need(frame: pd.DataFrame, columns: list[str], what: str) -> None:
    missing = [column for column in columns if column not in frame]
    if missing or frame.empty:
        raise ValueError(f"{what}: " + (f"no column {missing}" if missing else "no row to draw"))


def _figure(width: float, height: float) -> "Figure":
    """An empty figure, size in inches, whose parts make room for each other."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    # Without the name of the software the bytes depend on what is drawn alone.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's defaults and our style, whatever the user has set; the settings are process-wide, hence the lock."""
    import matplotlib.style

    with _STYLE_LOCK, matplotlib.style.context(["default", _STYLE]):
        yield
