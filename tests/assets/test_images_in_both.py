"""Images that are in the training set and in the testing set are counted, named, and a failed check on both sets."""

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from dioptra_assets.assets.datasets import CHECK
from tests.conftest import EXPERIMENT, Lab


def checks(lab: Lab) -> dict[str, tuple[bool, str, int]]:
    """Set -> what its check found last: whether it passed, what it says, how many images are in both."""
    found = {}
    with lab.instance() as instance:
        for name in ("training_set", "testing_set"):
            key = dg.AssetCheckKey(dg.AssetKey(["tiny", name]), CHECK)
            (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
            assert record.event and record.event.dagster_event
            said = record.event.dagster_event.asset_check_evaluation_data
            found[name] = (said.passed, str(said.description), int(str(said.metadata["images_in_both"].value)))
    return found


def make(lab: Lab, *sets: str) -> None:
    for name in sets:
        done = lab.run(name)
        assert done.success, [str(event.step_failure_data.error) for event in done.all_events if event.is_step_failure]


@pytest.fixture
def photographs(blank: Lab) -> Lab:
    for split, seeds in {"training": (0, 1, 2), "testing": (3, 2, 4)}.items():
        folder = blank.folder / "data" / split / "cat"
        folder.mkdir(parents=True)
        for seed in seeds:
            pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}_{seed}.png")
    source = {"source": "image_folder", "directory": str(blank.folder / "data"), "image_size": [32, 32]}
    blank.write({**EXPERIMENT, "data": source, "architectures": {"shallow_net": {}}, "attacks": {}})
    return blank


def test_an_image_of_both_sets_is_named_and_fails_both_whichever_came_second(photographs: Lab) -> None:
    make(photographs, "testing_set", "training_set")
    found = checks(photographs)
    assert {name: (passed, both) for name, (passed, _, both) in found.items()} == {
        "training_set": (False, 1),
        "testing_set": (False, 1),
    }
    assert found["training_set"][1].startswith(
        "1 of the 3 images of the testing set are in the training set too: cat/testing_2.png. Take them out of one"
    )

    (photographs.folder / "data/testing/cat/testing_2.png").unlink()
    make(photographs, "testing_set")
    assert [passed for passed, _, _ in checks(photographs).values()] == [True, True], "mended in one, right in both"
