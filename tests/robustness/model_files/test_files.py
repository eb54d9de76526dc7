import io
import json
import pickle
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from keras.src.legacy.saving import legacy_h5_format
from keras.src.saving.serialization_lib import SafeModeScope

from dioptra_assets.robustness.model_files import allowed as known
from dioptra_assets.robustness.model_files.files import (
    UnsafeModelError,
    check_model_file,
    load_model,
    load_weights,
    save_model,
    weights_digest,
)

IMAGES = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)


def small_cnn(filters: int = 2) -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(2.0, offset=-1.0),
            layers.Conv2D(filters, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(3, name="logits"),
        ]
    )


def small_graph() -> Any:
    pixels: Any = keras.Input((8, 8, 1))
    scaled: Any = (pixels - 0.5) * 2.0
    scaled = layers.Normalization(mean=[0.1], variance=[2.0])(scaled)
    left, right = layers.Conv2D(2, 3, padding="same")(scaled), layers.Conv2D(2, 1)(scaled)
    merged = layers.GlobalAveragePooling2D()(layers.Add()([left, right]))
    return keras.Model(pixels, layers.Dense(3, name="logits")(merged))


def outputs(model: Any, images: np.ndarray = IMAGES) -> np.ndarray:
    return np.asarray(model(images, training=False))


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The members of a sound archive, to be spoiled."""
    path = tmp_path_factory.mktemp("good") / "good.keras"
    save_model(small_cnn(), path)
    return members(path)


def with_config(good: dict[str, bytes], path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    config = json.loads(good["config.json"])
    config = change(config) or config
    return pack(path, {**good, "config.json": json.dumps(config).encode()})


def with_layer(good: dict[str, bytes], path: Path, layer: dict[str, Any]) -> Path:
    return with_config(good, path, lambda config: config["config"]["layers"].insert(2, layer))


def built_in(name: str, **config: Any) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": name, "config": {"name": "trap", **config}, "registered_name": None}


def refused(path: Path, *words: str) -> str:
    """The message with which both the check and the loader refuse a file."""
    with pytest.raises(UnsafeModelError) as check:
        check_model_file(path)
    with pytest.raises(UnsafeModelError) as load:
        load_model(path)
    for word in (str(path), *words):
        assert word in str(check.value)
    assert str(load.value) == str(check.value)
    return str(check.value)


# ---- code ----


def lambda_model(marker: Path, nested: bool) -> Any:
    function = eval(f"lambda x: (__import__('pathlib').Path({str(marker)!r}).touch(), x)[1]")
    if nested:
        trap = layers.Lambda(function, output_shape=(8, 1), name="trap")
        inner = keras.Sequential([keras.Input((8, 1)), trap])
        return keras.Sequential([keras.Input((8, 8, 1)), layers.TimeDistributed(inner), layers.Flatten()])
    trap = layers.Lambda(function, output_shape=(8, 8, 1), name="trap")
    return keras.Sequential([keras.Input((8, 8, 1)), trap])


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_a_stored_lambda_is_refused_and_never_runs(
    tmp_path: Path, suffix: str, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Keras quotes the source of a lambda while it saves it; this one has none.
    monkeypatch.setattr("inspect.getsource", lambda _: "lambda x: x")
    marker, path = tmp_path / "ran", tmp_path / f"trap{suffix}"
    lambda_model(marker, nested).save(path)
    marker.unlink(missing_ok=True)
    refused(path, "Lambda")
    # Even where another library has switched Keras' safe mode off.
    with SafeModeScope(False), pytest.raises(UnsafeModelError):
        load_model(path)
    with pytest.raises(UnsafeModelError):
        load_weights(small_cnn(), path)
    assert not marker.exists()
    # The trap is real: the same file runs its code in Keras without safe mode.
    if suffix == ".keras" and not nested:
        unsafe: Any = keras.saving.load_model(path, safe_mode=False)
        unsafe(IMAGES)
        assert marker.exists()


@pytest.mark.parametrize(
    "layer",
    [
        built_in("TFSMLayer", filepath="/tmp/somewhere", call_endpoint="serve"),
        built_in("StringLookup", vocabulary="/etc/passwd"),
        built_in("IntegerLookup", vocabulary="/etc/passwd"),
        built_in("TextVectorization", vocabulary="/etc/passwd"),
        built_in("Hashing", num_bins=3),
        built_in("TorchModuleWrapper", module="AAAA"),
        built_in("JaxLayer", call_fn="f"),
        built_in("FlaxLayer", module="f"),
        {**built_in("Dense", units=1), "registered_name": "Custom>Dense"},
        {**built_in("Dense", units=1), "module": "keras.src.layers.core.dense"},
        {**built_in("Dense", units=1), "module": "os"},
        {**built_in("Dense", units=1), "module": None},
        {**built_in("Dense", units=1), "module": ["keras.layers"]},
        {"class_name": "Dense", "config": {"name": "trap", "units": 1}},
        {"class_name": ["Dense"], "config": {"name": "trap", "units": 1}, "module": "keras.layers"},
        built_in("Activation", activation={"class_name": "__lambda__", "config": {"value": "AAAA"}}),
        built_in(
            "Activation",
            activation={
                "class_name": "function",
                "module": "keras.utils",
                "config": "get_file",
                "registered_name": "get_file",
            },
        ),
        built_in(
            "Activation",
            activation={"class_name": "function", "module": "builtins", "config": "eval", "registered_name": "eval"},
        ),
        built_in("Rescaling", scale={"class_name": "__numpy__", "config": {"value": ["a"], "dtype": "S999999999999"}}),
        built_in("Rescaling", scale={"class_name": "__tensor__", "config": {"value": ["a"], "dtype": "float32"}}),
        built_in("Rescaling", scale={"class_name": "__typespec__", "spec_name": "f", "module": "os", "config": []}),
        built_in("Rescaling", scale={"class_name": "CompositeTensor", "spec": 1, "tensors": []}),
        built_in("TimeDistributed", layer=built_in("StringLookup", vocabulary="/etc/passwd")),
    ],
    ids=lambda layer: str(layer["class_name"]),
)
def test_a_class_that_is_not_known_to_be_harmless_is_refused(
    tmp_path: Path, good: dict[str, bytes], layer: dict[str, Any]
) -> None:
    refused(with_layer(good, tmp_path / "trap.keras", layer), "layers[2]")


def test_classes_are_refused_in_compile_arguments_too(tmp_path: Path, good: dict[str, bytes]) -> None:
    loss = {"class_name": "function", "module": "my.code", "config": "f", "registered_name": "f"}
    path = with_config(good, tmp_path / "trap.keras", lambda config: {**config, "compile_config": {"loss": loss}})
    refused(path, "compile_config.loss")
    inner = {**built_in("Dense", units=1), "compile_config": {"optimizer": "adam"}}
    refused(with_layer(good, tmp_path / "inner.keras", inner), "layers[2]", "compiled")


def test_the_text_of_a_legacy_model_cannot_name_functions_of_keras(tmp_path: Path) -> None:
    path = tmp_path / "trap.h5"
    small_cnn().save(path)
    with h5py.File(path, "a") as file:
        text = str(file.attrs["model_config"]).replace('"activation": "relu"', '"activation": "deserialize"')
        file.attrs["model_config"] = text
    refused(path, "deserialize")


def test_a_vocabulary_saved_with_its_model_is_refused(tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("a\nb\n")
    model = keras.Sequential([keras.Input((1,), dtype="string"), layers.StringLookup(vocabulary=str(vocabulary))])
    model.save(tmp_path / "lookup.keras")
    refused(tmp_path / "lookup.keras", "assets/")


def test_a_pickle_named_keras_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    for name in ("trap.keras", "trap.h5"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        refused(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_every_allowed_class_and_function_is_a_public_one_of_keras_or_reviewed() -> None:
    for module, names in known.CLASSES.items():
        place = keras
        if module.startswith("keras.src."):
            place = __import__(module, fromlist=["x"])
        else:
            for part in module.split(".")[1:]:
                place = getattr(place, part)
        for name in names:
            assert isinstance(getattr(place, name), type), f"{module}.{name}"
    for name in known.FUNCTIONS:
        assert any(hasattr(place, name) for place in (keras.activations, keras.losses, keras.metrics)), name


def test_the_check_imports_neither_tensorflow_nor_keras(tmp_path: Path, good: dict[str, bytes]) -> None:
    path = pack(tmp_path / "good.keras", good)
    code = (
        "import sys; from dioptra_assets.robustness.model_files.files import check_model_file; "
        f"check_model_file({str(path)!r}); assert not {{'keras', 'tensorflow'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- files ----


def external_link(file: Any, folder: Path) -> None:
    file["layers/conv2d/vars/9"] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")


def soft_link(file: Any, _: Path) -> None:
    file["layers/conv2d/vars/9"] = h5py.SoftLink("/layers/conv2d/vars/0")


def second_hard_link(file: Any, _: Path) -> None:
    file["layers/conv2d/vars/9"] = file["layers/conv2d/vars/0"]


def cycle(file: Any, _: Path) -> None:
    file["layers/conv2d/again"] = file["layers"]


def external_storage(file: Any, folder: Path) -> None:
    file.create_dataset("x", (4,), "u1", external=[(str(folder / "secret"), 0, 4)])


def virtual_dataset(file: Any, folder: Path) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "x", (4,))
    file.create_virtual_dataset("x", layout)


def huge_shape(file: Any, _: Path) -> None:
    file.create_dataset("x", (2**36,), "f4", chunks=(1024,))


def huge_shape_in_one_piece(file: Any, _: Path) -> None:
    file.create_dataset("x", (2**36,), "f4")


def never_written(file: Any, _: Path) -> None:
    file.create_dataset("x", (100,), "f4")


def compressed(file: Any, _: Path) -> None:
    file.create_dataset("x", data=np.zeros(1000, "f4"), compression="gzip")


def texts(file: Any, _: Path) -> None:
    file.create_dataset("x", data=["a", "b"])


def compound(file: Any, _: Path) -> None:
    file.create_dataset("x", data=np.zeros(2, [("a", "f4"), ("b", "i4")]))


def reference(file: Any, _: Path) -> None:
    file.attrs["x"] = file["layers"].ref


def named_type(file: Any, _: Path) -> None:
    file["x"] = np.dtype("f4")


SPOILERS = [
    external_link,
    soft_link,
    second_hard_link,
    cycle,
    external_storage,
    virtual_dataset,
    huge_shape,
    huge_shape_in_one_piece,
    never_written,
    compressed,
    texts,
    compound,
    reference,
    named_type,
]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_hdf5_that_reaches_outside_or_declares_more_than_it_holds_is_refused(
    tmp_path: Path, good: dict[str, bytes], spoil: Callable[[Any, Path], None]
) -> None:
    (tmp_path / "secret").write_bytes(b"root")
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["x"] = np.frombuffer(b"root", "u1")
    weights = tmp_path / "trap.weights.h5"
    weights.write_bytes(good["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        spoil(file, tmp_path)
    archive = pack(tmp_path / "trap.keras", {**good, "model.weights.h5": weights.read_bytes()})
    legacy = weights.rename(tmp_path / "trap.h5")
    refused(archive, "HDF5")
    model = small_cnn()
    before = weights_digest(model)
    for path in (archive, legacy):
        with pytest.raises(UnsafeModelError, match=path.name):
            load_weights(model, path)
    assert weights_digest(model) == before


def test_archives_that_are_not_three_plain_members_are_refused(tmp_path: Path, good: dict[str, bytes]) -> None:
    refused(pack(tmp_path / "bomb.keras", {**good, "model.weights.h5": bytes(10**6)}, zipfile.ZIP_DEFLATED), "compress")
    refused(pack(tmp_path / "up.keras", {**good, "../evil": b""}), "../evil")
    refused(pack(tmp_path / "root.keras", {**good, "/evil": b""}), "/evil")
    refused(pack(tmp_path / "less.keras", {k: v for k, v in good.items() if k != "metadata.json"}), "metadata.json")
    refused(pack(tmp_path / "long.keras", {**good, "config.json": b" " * 17 * 2**20}), "config.json")
    refused(pack(tmp_path / "deep.keras", {**good, "config.json": b"[" * 10**5 + b"]" * 10**5}), "config.json")
    refused(pack(tmp_path / "list.keras", {**good, "config.json": b"[]"}), "config.json")
    refused(pack(tmp_path / "text.keras", {**good, "model.weights.h5": b"text"}), "HDF5")
    link = zipfile.ZipInfo("model.weights.h5")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.keras", "w") as archive:
        for name in ("config.json", "metadata.json"):
            archive.writestr(name, good[name])
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "link.keras", "link")
    with zipfile.ZipFile(tmp_path / "twice.keras", "w") as archive, pytest.warns(UserWarning):
        for name in (*good, "config.json"):
            archive.writestr(name, good[name])
    refused(tmp_path / "twice.keras", "once")


def test_a_damaged_archive_is_refused(tmp_path: Path, good: dict[str, bytes]) -> None:
    path = pack(tmp_path / "damaged.keras", good)
    content = bytearray(path.read_bytes())
    place = content.index(good["model.weights.h5"]) + len(good["model.weights.h5"]) - 10
    content[place] ^= 1
    path.write_bytes(content)
    refused(path, "CRC")
    path.write_bytes(content[: len(content) // 2])
    refused(path)


def test_what_is_no_model_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.keras"):
        load_model(tmp_path / "none.keras")
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "folder.keras" / "config.json").write_text("{}")
    refused(tmp_path / "folder.keras", "folder")
    (tmp_path / "model.pkl").write_bytes(b"")
    refused(tmp_path / "model.pkl", "model.pkl")


# ---- sizes ----


def test_a_layer_of_absurd_size_is_refused_before_keras_sees_it(tmp_path: Path, good: dict[str, bytes]) -> None:
    refused(with_layer(good, tmp_path / "wide.keras", built_in("Dense", units=10**11)), "units")


def sizes_refused(path: Path) -> str:
    """The message of the loader, for files whose sizes only building the model can tell."""
    with pytest.raises(UnsafeModelError) as error:
        load_model(path)
    assert str(path) in str(error.value)
    # Terabytes cannot be had; a refusal that came from trying would say so.
    assert "OOM" not in str(error.value) and "Exhausted" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound archive with 4 million weights, so that layers of 2 million units are not absurd by themselves."""
    path = tmp_path_factory.mktemp("wide") / "wide.keras"
    save_model(keras.Sequential([keras.Input((2,)), layers.Dense(1_300_000, use_bias=False)]), path)
    return members(path)


WIDE_LAYERS = {
    "dense": built_in("Dense", units=2_000_000),
    "einsum": built_in("EinsumDense", equation="ab,bc->ac", output_shape=[2_000_000]),
    "embedding": built_in("Embedding", input_dim=2_000_000, output_dim=2_000_000),
}


@pytest.mark.parametrize("name", sorted(WIDE_LAYERS))
def test_layers_that_are_absurd_only_together_take_no_memory(tmp_path: Path, wide: dict[str, bytes], name: str) -> None:
    def add(config: dict[str, Any]) -> None:
        config["config"]["layers"].append(WIDE_LAYERS[name])

    sizes_refused(with_config(wide, tmp_path / "wide.keras", add))
    # Nothing of the refused model is left to be allocated when the next one is built.
    assert outputs(small_cnn()).shape == (3, 3)


def functional(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    pixels = keras.Input((2,))
    model = keras.Model(pixels, layers.Dense(1_300_000, use_bias=False, name="logits")(pixels))
    save_model(model, tmp_path / "graph.keras")
    return with_config(members(tmp_path / "graph.keras"), tmp_path / "graph.keras", change)


def test_a_layer_outside_the_graph_takes_no_memory(tmp_path: Path) -> None:
    def add(config: dict[str, Any]) -> None:
        orphan = {**built_in("Dense", units=1_000_000), "name": "trap", "inbound_nodes": []}
        orphan["build_config"] = {"input_shape": [None, 10**9]}
        config["config"]["layers"].append(orphan)

    assert "trap" in sizes_refused(functional(tmp_path, add))


@pytest.mark.parametrize("hidden", [False, True])
def test_a_layer_called_on_constants_is_refused(tmp_path: Path, hidden: bool) -> None:
    tensor = {
        "class_name": "__keras_tensor__",
        "config": {"shape": [None, 2], "dtype": "float32", "keras_history": None},
    }
    hiding_place = {"class_name": "__slice__", "config": {"start": tensor, "stop": None, "step": None}}

    def add(config: dict[str, Any]) -> None:
        node = {"args": [[[1.0, 2.0]]], "kwargs": {"training": hiding_place} if hidden else {}}
        config["config"]["layers"].append(
            {**built_in("Dense", units=1_000_000), "name": "trap", "inbound_nodes": [node]}
        )

    refused(functional(tmp_path, add), "constants")


@pytest.mark.parametrize(
    "config",
    [
        {"lora_rank": 2},
        {"dtype": "int8_from_float32"},
        {"quantization_config": {"bits": 4}},
        {"dtype": {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float8_from_float32"}}},
    ],
)
def test_layers_that_compute_with_weights_while_they_are_read_are_refused(
    tmp_path: Path, good: dict[str, bytes], config: dict[str, Any]
) -> None:
    refused(with_layer(good, tmp_path / "lora.keras", built_in("Dense", units=2, **config)), "in floats")


@pytest.mark.parametrize("shape", [[None, 10**12], None, "text"])
def test_normalization_of_an_absurd_or_unknown_input_is_refused(
    tmp_path: Path, good: dict[str, bytes], shape: Any
) -> None:
    layer = {**built_in("Normalization", axis=-1), "build_config": {"input_shape": shape}}
    refused(with_layer(good, tmp_path / "wide.keras", layer), "Normalization")


def test_weights_that_are_missing_or_too_many_are_refused(tmp_path: Path, good: dict[str, bytes]) -> None:
    for name, change in (
        ("missing", lambda file: file.__delitem__("layers/conv2d")),
        ("one_missing", lambda file: file.__delitem__("layers/conv2d/vars/1")),
        ("too_many", lambda file: file.create_dataset("layers/other/vars/0", data=np.zeros(3, "f4"))),
    ):
        content = io.BytesIO(good["model.weights.h5"])
        with h5py.File(content, "a") as file:
            change(file)
        path = pack(tmp_path / f"{name}.keras", {**good, "model.weights.h5": content.getvalue()})
        sizes_refused(path)
        with pytest.raises(ValueError, match=path.name):
            load_weights(small_cnn(), path)


# ---- good models ----


@pytest.mark.parametrize("make", [small_cnn, small_graph])
def test_a_model_comes_back_with_equal_outputs_and_digest(tmp_path: Path, make: Callable[[], Any]) -> None:
    model = make()
    save_model(model, tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert np.array_equal(outputs(loaded), outputs(model))
    assert weights_digest(loaded) == weights_digest(model)
    assert not any(tmp_path.glob(".saving-*"))


@pytest.mark.parametrize("name", ["ResNet50", "VGG16"])
def test_models_of_keras_applications_come_back(tmp_path: Path, name: str) -> None:
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), include_top=False, pooling="avg")
    save_model(model, tmp_path / "model.keras")
    images = np.random.default_rng(1).random((2, 32, 32, 3), np.float32)
    assert np.array_equal(outputs(load_model(tmp_path / "model.keras"), images), outputs(model, images))


@pytest.fixture(scope="module")
def trained() -> Any:
    """A model with the state of its training."""
    model = small_cnn()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)])
    model.fit(IMAGES, np.array([0, 1, 2]), verbose=0)
    return model


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.hdf5"])
def test_a_file_that_keras_itself_wrote_after_training_is_loaded_uncompiled(
    tmp_path: Path, trained: Any, name: str
) -> None:
    trained.save(tmp_path / name)
    loaded: Any = load_model(tmp_path / name)
    assert np.array_equal(outputs(loaded), outputs(trained))
    assert weights_digest(loaded) == weights_digest(trained)
    assert not loaded.compiled


def test_the_state_of_training_is_not_saved(tmp_path: Path, trained: Any) -> None:
    save_model(trained, tmp_path / "model.keras")
    content = members(tmp_path / "model.keras")
    with h5py.File(io.BytesIO(content["model.weights.h5"])) as file:
        assert "optimizer" not in file
    assert b"compile_config" not in content["config.json"]


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_a_model_trained_with_a_loss_of_ones_own_is_saved_without_it(tmp_path: Path) -> None:
    model = small_cnn()
    model.compile("adam", lambda truth, guess: keras.ops.mean(guess))
    save_model(model, tmp_path / "model.keras")
    assert np.array_equal(outputs(load_model(tmp_path / "model.keras")), outputs(model))


def test_a_loaded_model_can_be_trained(tmp_path: Path) -> None:
    save_model(small_cnn(), tmp_path / "model.keras")
    model: Any = load_model(tmp_path / "model.keras")
    before = weights_digest(model)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(IMAGES, np.array([0, 1, 2]), verbose=0)
    assert weights_digest(model) != before


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = small_cnn()
    for name in ("one.keras", "two.keras"):
        save_model(model, tmp_path / name)
    assert (tmp_path / "one.keras").read_bytes() == (tmp_path / "two.keras").read_bytes()


def test_a_model_that_could_not_be_loaded_is_not_written_over_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    save_model(small_cnn(), path)
    before = path.read_bytes()
    with pytest.raises(UnsafeModelError, match=r"model\.keras was not written: .*Masking"):
        save_model(keras.Sequential([keras.Input((8, 1)), layers.Masking()]), path)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match=r"\.keras"):
        save_model(small_cnn(), tmp_path / "model.h5")


# ---- weights ----


def legacy_weights(model: Any, path: Path) -> Path:
    """Weights by order of layers, as keras.applications distributes them."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return path


@pytest.mark.parametrize("name", ["a.weights.h5", "b.keras", "c.h5", "d.hdf5"])
def test_weights_of_every_format_are_loaded(tmp_path: Path, trained: Any, name: str) -> None:
    path = tmp_path / name
    if name == "d.hdf5":
        legacy_weights(trained, path)
    else:
        (trained.save_weights if name == "a.weights.h5" else trained.save)(path)
    model = small_cnn()
    model.compile("adam", "mse")
    load_weights(model, path)
    assert np.array_equal(outputs(model), outputs(trained))


def test_weights_of_a_body_go_to_the_body(tmp_path: Path) -> None:
    body = small_cnn()
    path = legacy_weights(body, tmp_path / "body.h5")
    pixels = keras.Input((8, 8, 1))
    model: Any = keras.Model(pixels, small_cnn()(layers.Conv2D(1, 1, name="preprocessing")(pixels)))
    load_weights(model, path)
    assert np.array_equal(outputs(model.layers[-1]), outputs(body))


@pytest.mark.parametrize("name", ["a.weights.h5", "b.keras", "c.h5"])
def test_weights_of_another_shape_name_file_and_layer_and_leave_the_model(tmp_path: Path, name: str) -> None:
    source, path = small_cnn(filters=5), tmp_path / name
    if name == "c.h5":
        legacy_weights(source, path)
    else:
        (source.save if name == "b.keras" else source.save_weights)(path)
    model = small_cnn()
    before = weights_digest(model)
    with pytest.raises(ValueError, match="conv2d") as error:
        load_weights(model, path)
    assert str(path) in str(error.value)
    assert weights_digest(model) == before


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    small_cnn().save_weights(tmp_path / "a.weights.h5")
    check_model_file(tmp_path / "a.weights.h5")
    with pytest.raises(UnsafeModelError, match="load_weights"):
        load_model(tmp_path / "a.weights.h5")


# ---- digest ----


def copy_of(model: Any, make: Callable[[], Any]) -> Any:
    twin = make()
    twin.set_weights(model.get_weights())
    return twin


@pytest.mark.parametrize("make", [small_cnn, small_graph])
def test_the_digest_does_not_depend_on_names_numbered_by_the_session(make: Callable[[], Any]) -> None:
    model = make()
    twin = copy_of(model, make)
    assert [layer.name for layer in twin.layers] != [layer.name for layer in model.layers]
    assert weights_digest(twin) == weights_digest(model)


def test_the_digest_changes_with_one_weight_and_with_the_architecture() -> None:
    def relu(activation: str = "relu") -> Any:
        return keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Activation(activation), layers.Dense(3)])

    model = relu()
    digest = weights_digest(model)
    assert len(digest) == 64
    assert weights_digest(copy_of(model, lambda: relu("tanh"))) != digest
    kernel = model.get_weights()
    kernel[0][0, 0] = np.nextafter(kernel[0][0, 0], np.float32(9))
    model.set_weights(kernel)
    assert weights_digest(model) != digest


def test_the_digest_tells_which_layers_are_joined() -> None:
    def joined(swap: bool) -> Any:
        pixels = keras.Input((4,))
        first = layers.Dense(4)(pixels)
        second = layers.Dense(4)(first)
        return keras.Model(pixels, layers.Subtract()([second, first] if swap else [first, second]))

    model = joined(False)
    assert weights_digest(copy_of(model, lambda: joined(True))) != weights_digest(model)


# What is too large for anyone


def written(tmp_path: Path, model: Any) -> Path:
    """As Keras itself writes it: our own writer would refuse."""
    path = tmp_path / "large.keras"
    model.save(path)
    return path


def test_a_model_of_many_thousand_layers_is_refused_before_keras_sees_it(
    tmp_path: Path, good: dict[str, bytes]
) -> None:
    config = json.loads(good["config.json"])
    stack = config["config"]["layers"]
    layer = {"module": "keras.layers", "class_name": "Identity", "registered_name": None}
    stack[1:1] = [
        {**layer, "config": {"name": f"same_{n}", "trainable": True, "dtype": "float32"}} for n in range(20_000)
    ]
    path = pack(tmp_path / "deep.keras", {**good, "config.json": json.dumps(config).encode()})
    began = time.monotonic()
    with pytest.raises(UnsafeModelError, match="more than 2,000 layers"):
        check_model_file(path)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: layers.UpSampling2D(4000), "layer 'bomb' makes 1,024,000,000 numbers per image"),
        (lambda: layers.ZeroPadding2D(20_000), "layer 'bomb' makes "),
        (
            lambda: keras.Sequential([layers.Flatten(), layers.RepeatVector(10**8, name="bomb")]),
            "layer 'bomb' makes 6,4",
        ),
        (lambda: layers.Resizing(60_000, 60_000), "layer 'bomb' makes 3,600,000,000"),
    ],
)
def test_a_layer_that_blows_an_image_up_is_refused_before_anything_is_computed(
    tmp_path: Path, make: Callable[[], Any], said: str
) -> None:
    bomb = make()
    if not hasattr(bomb, "layers"):
        bomb.name = "bomb"
    pixels = keras.Input((8, 8, 1))
    inside = bomb(pixels)
    pooled = layers.GlobalMaxPooling2D()(inside) if len(inside.shape) == 4 else layers.GlobalMaxPooling1D()(inside)
    path = written(tmp_path, keras.Model(pixels, layers.Dense(3)(pooled)))
    with pytest.raises(UnsafeModelError) as caught:
        load_model(path)
    assert said in str(caught.value)
    assert "at most 33,554,432 are allowed" in str(caught.value)


def test_attention_over_every_pixel_is_counted_with_its_scores(tmp_path: Path) -> None:
    pixels = keras.Input((128, 128, 1))
    rows = layers.Reshape((128 * 128, 1))(pixels)
    seen = layers.MultiHeadAttention(1, 1, name="every_pixel")(rows, rows)
    path = written(tmp_path, keras.Model(pixels, layers.Dense(3)(layers.GlobalMaxPooling1D()(seen))))
    with pytest.raises(UnsafeModelError, match="layer 'every_pixel' makes 268,435,456 numbers"):
        load_model(path)


@pytest.mark.parametrize("several", [dict, list])
def test_a_model_of_several_outputs_is_refused_in_a_sentence(tmp_path: Path, several: type) -> None:
    pixels = keras.Input((8, 8, 1))
    flat = layers.Flatten()(pixels)
    outputs = {"a": layers.Dense(3)(flat), "b": layers.Dense(2)(flat)}
    path = written(tmp_path, keras.Model(pixels, outputs if several is dict else list(outputs.values())))
    with pytest.raises(UnsafeModelError, match="of 2 outputs: a classifier gives one tensor of logits"):
        load_model(path)
