import io
import sys
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dioptra_assets.robustness.reporting import plots

pytestmark = pytest.mark.quick

HOSTILE = "$\\frac{1}$ _<script>"


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def digits(n: int = 3, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(7).random((n, 28, 28, channels), dtype=np.float32)


def history() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "epoch": [1, 2],
            "loss": [0.5, 0.2],
            "accuracy": [0.8, 0.9],
            "val_loss": [0.6, 0.3],
            "val_accuracy": [0.7, 0.8],
        }
    )


def curve(names: list[str]) -> pd.DataFrame:
    points = [
        (source, target, family, eps, 0.9 - eps, 0.88 - eps, 0.92 - eps)
        for source in names
        for target in names
        for family in ["fgm", "pgd"]
        for eps in [0.0, 0.1, 0.3]
    ]
    return pd.DataFrame(points, columns=["source", "target", "family", "eps", "robust_accuracy", "low", "high"])


def backdoor_curve(names: list[str]) -> pd.DataFrame:
    rates = ("asr", "clean_accuracy")
    points = [
        (name, family, share, *(rate + end for rate in (0.5 + share, 0.9 - share) for end in (0, -0.02, 0.02)))
        for name in names
        for family in ["baseline", "clean_label"]
        for share in [0.0, 0.1, 0.3]
    ]
    ends = [f"{rate}{end}" for rate in rates for end in ("", "_low", "_high")]
    return pd.DataFrame(points, columns=["architecture", "family", "poison_fraction", *ends])


def matrix(names: list[str]) -> pd.DataFrame:
    values = np.linspace(0, 1, len(names) ** 2).reshape(len(names), len(names))
    values[0, -1] = np.nan
    return pd.DataFrame(values, index=names, columns=names)


PICTURES = {
    "image_grid": lambda: plots.image_grid(digits(), ["0", "1", HOSTILE]),
    "image_grid_plain": lambda: plots.image_grid(digits(12, channels=3)),
    "comparison_grid": lambda: plots.comparison_grid(digits(), 1 - digits(), ["7 → 3 (99.1 %)", "a" * 90, HOSTILE]),
    "loss_curves": lambda: plots.loss_curves(history()),
    "loss_curves_one_epoch": lambda: plots.loss_curves(history()[["epoch", "loss", "accuracy"]].head(1)),
    "transfer_heat_map": lambda: plots.transfer_heat_map(matrix(["le_net", "m" * 60]), title=HOSTILE),
    "security_curves": lambda: plots.security_curves(curve(["le_net", HOSTILE]), class_count=10),
    "poison_curves": lambda: plots.poison_curves(backdoor_curve(["le_net", HOSTILE])),
    "poison_curves_one_point": lambda: plots.poison_curves(backdoor_curve(["le_net"]).head(1)),
    "confusion_matrix": lambda: plots.confusion_matrix(np.eye(3, dtype=int) * 5, ["a", "long class name", HOSTILE]),
    "confusion_matrix_large": lambda: plots.confusion_matrix(np.eye(21, dtype=int), [str(i) for i in range(21)]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_drawn_without_a_warning_and_twice_alike(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = PICTURES[name]()
    plots._DRAWN.clear()
    assert PICTURES[name]() == png
    assert b"Software" not in png[:200]
    pixels = decoded(png)
    assert np.bincount(pixels.ravel(), minlength=256).astype(bool).sum() > 10, "blank"
    # Nothing touches the edge, where it would be clipped.
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edge == 255).all()


def test_a_users_matplotlib_settings_change_nothing_and_are_left_alone():
    expected = PICTURES["security_curves"]()
    plots._DRAWN.clear()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert PICTURES["security_curves"]() == expected
        assert mpl.rcParams["font.size"] == 30
        assert mpl.rcParams["text.parse_math"] is True


def test_no_window_system_or_global_figure_is_used():
    import subprocess

    code = (
        "import sys, numpy as np; from dioptra_assets.robustness.reporting import plots;"
        "assert 'matplotlib' not in sys.modules;"
        "plots.image_grid(np.zeros((1, 4, 4, 1), np.float32)); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("change", "grey"), [(0.0, 128), (0.2, 153), (-0.2, 102), (0.02, 130), (1.0, 255), (-1.0, 0)])
def test_a_difference_is_drawn_unscaled_around_mid_grey(change, grey):
    clean = np.full((1, 28, 28, 1), 0.5 if abs(change) < 1 else (0.0 if change > 0 else 1.0), np.float32)
    adversarial = clean.copy()
    adversarial[0, 10, 5] += change
    pixels = decoded(plots.comparison_grid(clean, adversarial, ["7 → 3"]))[..., 0]
    zoom = 6
    # The difference is the lowest picture: its last rows lie above the bottom margin, its last columns left of it.
    bottom, right = pixels.shape[0] - 16, pixels.shape[1] - 16
    difference = pixels[bottom - 28 * zoom : bottom, right - 28 * zoom : right]
    cells = difference.reshape(28, zoom, 28, zoom).transpose(0, 2, 1, 3).reshape(28, 28, -1)
    assert (cells == cells[..., :1]).all(), "an image pixel is not one plain square"
    assert cells[10, 5, 0] == grey
    rest = np.delete(cells[..., 0].ravel(), 10 * 28 + 5)
    assert (rest == 128).all()


def test_a_dim_image_stays_dim():
    pixels = decoded(plots.image_grid(np.full((1, 28, 28, 1), 0.2, np.float32)))
    assert set(np.unique(pixels)) == {51, 255}


def test_a_missing_cell_is_not_drawn_as_zero():
    known = matrix(["a", "b"])
    assert plots.transfer_heat_map(known, title="t") != plots.transfer_heat_map(known.fillna(0.0), title="t")


def test_attack_success_and_clean_accuracy_have_panels_of_their_own():
    known = backdoor_curve(["a"])
    half = decoded(plots.poison_curves(known)).shape[1] // 2
    other = known.assign(asr=0.2, asr_low=0.1, asr_high=0.3)
    before, after = decoded(plots.poison_curves(known)), decoded(plots.poison_curves(other))
    columns = np.flatnonzero((before != after).any(axis=(0, 2)))
    assert len(columns) and columns.max() < half, "the left panel alone shows attack success"


def test_names_cut_short_keep_both_ends():
    assert plots._short("resnet50_imagenet_eps_0.25", 15) == "resnet5…ps_0.25"
    assert plots._short("le_net", 15) == "le_net"
    assert plots._wrapped("Egyptian cat → remote control (87.1 %)", 16).splitlines()[-1].endswith("(87.1\u00a0%)")


def test_a_family_without_markers_left_still_gets_one():
    names = [f"model_{i}" for i in range(9)]
    assert len(names) > len(plots.MARKERS) > len(plots.PALETTE)
    plots.security_curves(curve(names).query("family == 'fgm' and source == target"), class_count=10)


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda: plots.image_grid(np.zeros((28, 28, 1), np.float32)), "shape"),
        (lambda: plots.image_grid(np.zeros((0, 28, 28, 1), np.float32)), "n >= 1"),
        (lambda: plots.image_grid(np.full((1, 28, 28, 1), np.nan, np.float32)), "non-finite"),
        (lambda: plots.image_grid(digits(2), ["one"]), "1 titles"),
        (lambda: plots.comparison_grid(digits(2), digits(1), ["a", "b"]), "shape"),
        (lambda: plots.comparison_grid(digits(2), digits(2), ["a"]), "1 titles"),
        (lambda: plots.loss_curves(history().drop(columns="loss")), "loss"),
        (lambda: plots.loss_curves(history().head(0)), "no row"),
        (lambda: plots.transfer_heat_map(pd.DataFrame(), title="t"), "no cell"),
        (lambda: plots.security_curves(curve(["a"]).drop(columns="low"), class_count=10), "low"),
        (lambda: plots.poison_curves(backdoor_curve(["a"]).drop(columns="asr_low")), "asr_low"),
        (lambda: plots.poison_curves(backdoor_curve(["a"]).head(0)), "no row"),
        (lambda: plots.confusion_matrix(np.eye(3, dtype=int), ["a", "b"]), "2 class names"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_reason(draw, says):
    with pytest.raises(ValueError, match=says):
        draw()


def test_of_many_curves_the_lowest_white_box_ones_are_drawn_and_the_picture_says_so():
    names = [f"net_{number}" for number in range(20)]
    many = curve(names)
    lower = many["target"].map({name: number / 100 for number, name in enumerate(names)})
    many["robust_accuracy"] -= lower
    shown, said = plots._told(many)
    assert set(zip(shown["source"], shown["target"], strict=True)) == {(name, name) for name in names[8:]}
    assert said == "the 24 white-box curves that fall lowest, of 800 curves in all; the table has them all"
    assert set(shown["family"]) == {"fgm", "pgd"}
    few = curve(names[:5])
    assert plots._told(few) == (few, "")
    assert plots.security_curves(many, class_count=10)[:4] == b"\x89PNG"


def test_a_matrix_of_many_models_stays_a_page():
    names = [f"net_{number}" for number in range(60)]
    height, width, _ = decoded(plots.transfer_heat_map(matrix(names), title="fgm")).shape
    assert max(height, width) < 15 * plots.DPI


def test_a_picture_of_a_table_is_drawn_once_for_its_asset_and_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []
    real = plots._png
    monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(real(figure)) or drawn[-1])
    matrix = pd.DataFrame([[0.125, 0.5], [0.25, 1.0]], index=["here", "there"], columns=["here", "there"])
    first = plots.transfer_heat_map(matrix, title="drawn once")
    assert plots.transfer_heat_map(matrix.copy(), title="drawn once") == first
    assert len(drawn) == 1
    others = [
        plots.transfer_heat_map(matrix, title="another title"),
        plots.transfer_heat_map(matrix + 1e-16, title="drawn once"),
        plots.transfer_heat_map(matrix.rename(columns={"here": "new"}), title="drawn once"),
    ]
    assert len(drawn) == 4
    assert len({first, others[0], others[2]}) == 3


@pytest.mark.parametrize(("side", "axes"), [(28, 0), (168, 0), (400, 5)])
def test_images_that_are_not_thinned_are_one_sheet(side: int, axes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An axes for each image took most of the time of a report."""
    figures: list[Figure] = []
    real = plots._png
    monkeypatch.setattr(plots, "_png", lambda figure: figures.append(figure) or real(figure))
    plots.image_grid(np.zeros((5, side, side, 1)))
    assert len(figures[0].axes) == axes
