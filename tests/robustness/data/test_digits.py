import subprocess
import sys

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from dioptra_assets.robustness.data import AnySource, DataSource, DigitsSource
from dioptra_assets.robustness.image_set import ImageSet

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def splits() -> tuple[ImageSet, ImageSet]:
    return DigitsSource().load("training"), DigitsSource().load("testing")


def test_every_digit_is_in_exactly_one_split(splits: tuple[ImageSet, ImageSet]) -> None:
    training, testing = (set(split.index["image_id"]) for split in splits)
    assert not training & testing
    assert training | testing == {f"digits-{row:04d}" for row in range(1797)}
    assert len(testing) == 360


def test_the_split_keeps_the_shares_of_the_classes(splits: tuple[ImageSet, ImageSet]) -> None:
    training, testing = (np.bincount(split.labels, minlength=10) for split in splits)
    np.testing.assert_allclose(testing / (training + testing), 0.2, atol=0.01)


def test_images_have_the_declared_shape_and_lie_in_the_unit_range(splits: tuple[ImageSet, ImageSet]) -> None:
    for split in splits:
        images, _ = split.to_numpy()
        assert split.image_shape == DigitsSource().image_shape == (28, 28, 1)
        assert images.dtype == np.float32
        assert images.min() == 0.0
        assert images.max() == 1.0


def test_images_belong_to_their_ids_and_labels() -> None:
    from sklearn.datasets import load_digits

    originals, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    unscaled = DigitsSource(image_size=(8, 8)).load("testing")
    rows = unscaled.index["image_id"].str.removeprefix("digits-").astype(int).to_numpy()
    np.testing.assert_array_equal(unscaled.labels, labels[rows])
    np.testing.assert_array_equal(unscaled.to_numpy()[0].reshape(-1, 64) * 16, originals[rows])
    # Enlarged, each picture is still nearest to its own original.
    enlarged = DigitsSource(image_size=(16, 16)).load("testing").to_numpy()[0]
    shrunk = enlarged.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4)).reshape(-1, 64)
    distances = ((shrunk[:, None] - originals[None].astype(np.float32) / 16) ** 2).sum(-1)
    np.testing.assert_array_equal(distances.argmin(axis=1), rows)


def test_the_seed_alone_decides_the_split() -> None:
    first, again = DigitsSource(seed=1).load("testing"), DigitsSource(seed=1).load("testing")
    other = DigitsSource(seed=2).load("testing")
    assert first.index.equals(again.index)
    np.testing.assert_array_equal(first.to_numpy()[0], again.to_numpy()[0])
    assert set(first.index["image_id"]) != set(other.index["image_id"])


def test_loading_leaves_the_global_generator_alone() -> None:
    np.random.seed(3)
    before = np.random.get_state(legacy=False)["state"]["pos"]
    DigitsSource().load("testing")
    assert np.random.get_state(legacy=False)["state"]["pos"] == before


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"source": "digits", "test_fraction": 0}, "test_fraction"),
        ({"source": "digits", "test_fraction": 1.0}, "test_fraction"),
        ({"source": "digits", "image_size": [28, 0]}, "image_size"),
        ({"source": "digits", "seed": -1}, "seed"),
        ({"source": "digits", "sead": 1}, "sead"),
        ({"source": "mnist", "limit_training": 0}, "limit_training"),
        ({"source": "mnist", "limit_testing": 10_001}, "limit_testing"),
        ({"source": "image_folder", "directory": "x", "image_size": [8, 8], "channels": 2}, "channels"),
        ({"source": "image_folder", "directory": "x"}, "image_size"),
        ({"source": "cifar"}, "source"),
    ],
)
def test_a_wrong_config_is_refused_by_field(config: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(AnySource).validate_python(config)


def test_the_field_source_picks_the_data_source() -> None:
    for source in ("digits", "mnist"):
        picked: DataSource = TypeAdapter(AnySource).validate_python({"source": source})
        assert picked.model_dump()["source"] == source
        assert picked.class_count() == 10
        assert picked.image_shape == (28, 28, 1)


def test_declaring_a_source_imports_nothing_heavy_and_reads_nothing() -> None:
    code = (
        "import sys; from dioptra_assets.robustness.data import *; DigitsSource(); MnistSource(directory='/nowhere');"
        "ImageFolderSource(directory='/nowhere', image_size=(8, 8));"
        "print({'sklearn', 'PIL', 'pooch', 'scipy', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
