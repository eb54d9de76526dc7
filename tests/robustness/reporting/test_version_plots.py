"""The picture of a model's versions: that it is drawn whatever there is, and drawn from the numbers."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dioptra_assets.robustness.reporting.version_plots import version_curves

pytestmark = pytest.mark.quick


def versions(names: int = 1, versions: int = 3, attacks: int = 2, robust: float = 0.5) -> pd.DataFrame:
    rows = [
        {
            "name": f"team_net_{name}",
            "version": version,
            "registered": pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(days=version),
            "attack": f"fgm_{attack}",
        }
        | {"clean_accuracy": 0.9, "clean_accuracy_low": 0.85, "clean_accuracy_high": 0.95}
        | {"robust_accuracy": robust, "robust_accuracy_low": robust, "robust_accuracy_high": robust + 0.1}
        for name in range(names)
        for version in range(1, versions + 1)
        for attack in range(attacks)
    ]
    return pd.DataFrame(rows)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 2), (2, 3, 2), (12, 3, 20)])
def test_any_number_of_models_versions_and_attacks_fits_one_page(shape: tuple[int, int, int]) -> None:
    picture = pixels(version_curves(versions(*shape)))
    height, width, _ = picture.shape
    assert 600 < width < 3200 and 400 < height < 2400
    # Nothing runs out of the picture: its border is white.
    assert all((edge == 255).all() for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]))


def test_the_picture_is_of_the_numbers_and_of_nothing_else() -> None:
    first = version_curves(versions())
    assert first == version_curves(versions().sample(frac=1, random_state=1).sort_values("attack"))
    assert not np.array_equal(pixels(first), pixels(version_curves(versions(robust=0.6))))


def test_a_table_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="no row to draw"):
        version_curves(versions(versions=0).reindex(columns=versions().columns))
    with pytest.raises(ValueError, match=r"no column \['registered'\]"):
        version_curves(versions().drop(columns="registered"))
