"""One FGM cell on MNIST, from the stored testing set to metrics: against how the demos go about it.

There every set is a folder of PNG files. One job reads the testing images in batches of 32, has ART attack them
without being given labels, writes a PNG file for each, and packs them; another unpacks them, reads them and evaluates
the model. The distances that a cell measures beside the rates are not asked of the demos' way.
"""

import tarfile
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks.measure import Pair, pair
from dioptra_assets.robustness.attacks import FastGradientMethod, perturb_set
from dioptra_assets.robustness.data.mnist import MnistSource
from dioptra_assets.robustness.evaluation.distances import set_distances
from dioptra_assets.robustness.evaluation.examples import RowKey, example_table
from dioptra_assets.robustness.evaluation.metrics import metric_table
from dioptra_assets.robustness.evaluation.predictions import predict
from dioptra_assets.robustness.image_set import ImageBatch, ImageSet
from dioptra_assets.robustness.training.architectures import build
from resources.image_store import read_image_set, write_image_set
from resources.store import Cell, CellStore
from resources.tables import read_table, write_table

EPS = 0.3
DEMO_BATCH = 32
PARTITION = {"architecture": "le_net", "attack": "fgm_0.3"}


def rows(quick: bool = False, images: int = 10_000) -> list[Pair]:
    """What was measured. Without MNIST at hand the images are noise, which costs as much."""
    keras.utils.set_random_seed(0)
    testing_set = _testing_set(64 if quick else images)
    model: Any = build("le_net", (28, 28, 1), 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(*testing_set.to_numpy(), batch_size=64, epochs=1, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        ours = our_cell(Path(folder, "ours"), model, testing_set)
        demos = demos_jobs(Path(folder, "demos"), model, testing_set)
        # Files hold 8 bits, and labels that ART guesses are the model's own predictions: not the same, but as strong.
        gap = abs(demos() - ours())
        assert quick or gap < 0.05, f"the robust accuracies differ by {gap}"
        name = f"FGM cell, {len(testing_set):,} MNIST images, batch 256; peer: the demos' way"
        return [pair(name, demos, ours, rounds=1 if quick else 3, floor=3.0)]


def our_cell(folder: Path, model: Any, testing_set: ImageSet) -> Any:
    """A function that computes the cell from what is stored, and gives the robust accuracy."""
    store = CellStore(str(folder))
    attack = FastGradientMethod(eps=EPS)
    facts = {"image_shape": testing_set.image_shape, "class_names": testing_set.class_names}

    def stored(cell: Cell, batches: Any) -> ImageSet:
        return read_image_set(write_image_set(store.at(cell), batches, n=len(testing_set), **facts))

    source, predictions = Cell("bench/testing_set"), Cell("bench/clean_predictions", {"architecture": "le_net"})
    stored(source, testing_set.batches())
    write_table(store.at(predictions), predict(model, testing_set))

    def cell() -> float:
        clean = read_image_set(store.open(source))
        attacked = perturb_set(attack, model, clean, seed=0, class_count=10)
        adversarial = stored(
            Cell("bench/adversarial_set", PARTITION), (ImageBatch(batch.images, batch.index) for batch in attacked)
        )
        examples = example_table(
            RowKey("le_net", "fgm_0.3", "le_net"),
            clean=read_table(store.open(predictions)),
            adversarial=predict(model, adversarial),
            distances=set_distances(clean, adversarial),
        )
        table_cell = Cell("bench/evasion_examples", PARTITION)
        write_table(store.at(table_cell), examples)
        metrics = metric_table(read_table(store.open(table_cell)), class_names=clean.class_names, seed=0)
        write_table(store.at(Cell("bench/evasion_metrics", PARTITION)), metrics)
        return float(metrics["robust_accuracy"].iloc[0])

    return cell


def demos_jobs(folder: Path, model: Any, testing_set: ImageSet) -> Any:
    """A function that runs both jobs from the folder of PNG files, and gives the robust accuracy."""
    import sklearn.metrics
    from art.attacks.evasion import FastGradientMethod as ArtFastGradientMethod
    from art.estimators.classification import TensorFlowV2Classifier

    metrics: Any = sklearn.metrics
    testing_set.export_png(folder / "testing")
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    classifier = TensorFlowV2Classifier(
        model=model, nb_classes=10, input_shape=(28, 28, 1), loss_object=loss, clip_values=(0.0, 1.0)
    )
    attack = ArtFastGradientMethod(classifier, eps=EPS, batch_size=DEMO_BATCH)
    archive = folder / "adversarial.tar.gz"

    def attack_job(work: Path) -> None:
        for batch in _files(folder / "testing"):
            adversarial = attack.generate(x=_read(batch))
            for file, image in zip(batch, adversarial, strict=True):
                target = work / "adversarial" / file.parent.name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                keras.utils.save_img(target, 255 * image, scale=False)
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(work / "adversarial", arcname="adversarial")

    def infer_job(work: Path) -> float:
        with tarfile.open(archive) as tar:
            tar.extractall(work / "unpacked", filter="data")
        batches = _files(work / "unpacked" / "adversarial")
        labels = np.array([int(file.parent.name) for batch in batches for file in batch])
        logits = np.concatenate([np.asarray(model(_read(batch), training=False)) for batch in batches])
        predicted = logits.argmax(axis=1)
        for score in (metrics.precision_score, metrics.recall_score):
            score(labels, predicted, average="macro", zero_division=np.nan)
        if len(set(labels)) == 10:
            metrics.roc_auc_score(labels, np.asarray(keras.ops.softmax(logits)), multi_class="ovr")
        return float(metrics.accuracy_score(labels, predicted))

    def jobs() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            attack_job(Path(work))
            return infer_job(Path(work))

    return jobs


def _testing_set(count: int) -> ImageSet:
    from dioptra_assets.robustness.data.base import DataError

    try:
        return MnistSource(limit_testing=count).load("testing")
    except DataError:
        generator = np.random.default_rng(0)
        images = generator.random((count, 28, 28, 1), np.float32)
        return ImageSet.from_arrays(images, generator.integers(0, 10, count), [str(digit) for digit in range(10)])


def _files(folder: Path) -> list[list[Path]]:
    files = sorted(folder.glob("*/*.png"))
    return [files[start : start + DEMO_BATCH] for start in range(0, len(files), DEMO_BATCH)]


def _read(files: list[Path]) -> np.ndarray:
    images = [keras.utils.img_to_array(keras.utils.load_img(file, color_mode="grayscale")) for file in files]
    return np.stack(images) / np.float32(255)
