import json
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.training.architectures import build
from resources import models
from resources.models import read_history, read_model, write_model
from resources.store import Cell, CellStore, DamagedCellError
from tests.resources.test_store import Bomb, snapshot

pytestmark = pytest.mark.quick

if TYPE_CHECKING:
    import keras

CELL = Cell("digits/model", {"architecture": "shallow_net"})
HISTORY = pd.DataFrame({"epoch": [1, 2], "loss": [0.5, 0.25], "accuracy": [0.8, 0.9]})
IMAGES = np.random.default_rng(0).random((3, 4, 4, 1), dtype=np.float32)


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    models._load.forget()
    return CellStore(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def model() -> "keras.Model":
    return build("shallow_net", (4, 4, 1), 3)


@pytest.fixture(scope="module")
def other() -> "keras.Model":
    return build("shallow_net", (4, 4, 1), 3)


def logits(model: "keras.Model") -> np.ndarray:
    return np.asarray(model(IMAGES))


def test_a_model_read_back_gives_the_same_logits(store: CellStore, model: "keras.Model"):
    write_model(store.at(CELL), model, HISTORY, attributes={"seed": 3})
    stored = store.open(CELL)
    assert logits(read_model(stored)).tobytes() == logits(model).tobytes()
    pd.testing.assert_frame_equal(read_history(stored), HISTORY)
    assert stored.manifest.attributes == {"seed": 3}


def test_the_same_weights_change_no_byte_and_others_do(store: CellStore, model: "keras.Model", other: "keras.Model"):
    first = write_model(store.at(CELL), model, HISTORY)
    before = snapshot(Path(store.url))
    assert write_model(store.at(CELL), model, HISTORY).version == first.version
    assert snapshot(Path(store.url)) == before
    second = write_model(store.at(CELL), other, HISTORY)
    assert second.manifest.data_version != first.manifest.data_version
    assert logits(read_model(store.open(CELL))).tobytes() == logits(other).tobytes()
    assert logits(read_model(first)).tobytes() == logits(model).tobytes()


def test_a_model_is_loaded_once_in_a_process(store: CellStore, model: "keras.Model"):
    stored = write_model(store.at(CELL), model, HISTORY)
    assert read_model(stored) is read_model(CellStore(store.url).open(CELL))


@pytest.mark.parametrize("name", [models.MODEL, models.HISTORY])
def test_a_changed_byte_is_refused_before_anything_is_loaded(store: CellStore, model: "keras.Model", name: str):
    stored = write_model(store.at(CELL), model, HISTORY)
    path = Path(store.url, stored.prefix, name)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamagedCellError, match=f"{name} was altered"):
        read_model(store.open(CELL))
        read_history(store.open(CELL))


def test_a_planted_pickle_or_lambda_is_refused_and_never_run(store: CellStore, model: "keras.Model", tmp_path: Path):
    sprung = tmp_path / "sprung"
    config = {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"name": "bomb", "function": {"class_name": "__lambda__", "config": {"code": "4wAA"}}},
        "registered_name": None,
    }
    planted = tmp_path / "planted.keras"
    stored = write_model(store.at(CELL), model, HISTORY)
    with zipfile.ZipFile(Path(store.url, stored.prefix, models.MODEL)) as good, zipfile.ZipFile(planted, "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            if name == "config.json":
                document = json.loads(content)
                document["config"]["layers"].insert(1, config)
                content = json.dumps(document).encode()
            bad.writestr(name, content)
    for content, reason in ((pickle.dumps(Bomb(sprung)), "zip"), (planted.read_bytes(), "Lambda")):
        with store.at(CELL).writer(models.KIND) as writer:
            writer.put(models.MODEL, content)
            writer.commit(str(len(content)), {})
        with pytest.raises(Exception, match=rf"model\.keras.*{reason}"):
            read_model(store.open(CELL))
    assert not sprung.exists()


def test_a_model_with_nan_in_its_weights_is_refused_and_the_old_one_stays(
    store: CellStore, model: "keras.Model", other: "keras.Model"
):
    write_model(store.at(CELL), model, HISTORY)
    weights = other.get_weights()
    weights[0][0, 0] = np.nan
    broken = build("shallow_net", (4, 4, 1), 3)
    broken.set_weights(weights)
    with pytest.raises(
        NonFiniteError, match=r"^digits/model/shallow_net: the model has non-finite weights in .*hidden/kernel$"
    ):
        write_model(store.at(CELL), broken, HISTORY)
    assert logits(read_model(store.open(CELL))).tobytes() == logits(model).tobytes()
