"""The numbers of MNIST over seeds: `python -m benchmarks.mnist [--part NAME ...] [--out FILE]`, then `--table FILE`.

Every cell is appended to a file of JSON lines as soon as it is computed, and a cell that stands there is not computed
again. Seeds are 0 and on. MNIST is found as `source: mnist` finds it.
"""

import argparse
import functools
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dioptra_assets.robustness.attacks import one_pixel_oracle, parse_attack, perturb_set
from dioptra_assets.robustness.data import MnistSource
from dioptra_assets.robustness.evaluation.predictions import predict
from dioptra_assets.robustness.image_set import ImageSet, encode_png, tile
from dioptra_assets.robustness.inversion.miface import TrainingFacts, invert, parse_inversion
from dioptra_assets.robustness.inversion.scores import inversion_table, training_means
from dioptra_assets.robustness.model_files.files import load_model, save_model
from dioptra_assets.robustness.poisoning import (
    AdversarialEmbedding,
    BaselineBackdoor,
    CleanLabelBackdoor,
    Poisoning,
    poison_training_set,
    poisoning_examples,
    poisoning_metrics,
    select_rows,
    train_embedded,
    triggered_testing_set,
)
from dioptra_assets.robustness.training.loop import TrainingRecipe, split_rows, train

EPS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
FRACTIONS = (0.01, 0.05, 0.1, 0.33)
TARGET = 9
EPOCHS = {"shallow_net": 10, "le_net": 3}
BACKDOOR_EPOCHS, MADRY_EPOCHS = 2, 5
BACKDOOR_IMAGES = 30_000  # the first ones, which halves the time of 30 trainings
PGD = {"method": "pgd", "eps": 0.3, "eps_step": 0.01, "steps": 40}

Row = dict[str, Any]
Cells = Iterator[tuple[str, Callable[[], list[Row]]]]


@dataclass(frozen=True)
class Bench:
    """What the parts share: images, trained models, and where things are written."""

    training: ImageSet
    testing: ImageSet
    cache: Path
    pictures: Path
    quick: bool
    models: dict[Path, Any] = field(default_factory=dict)

    def smaller(self) -> "Bench":
        """With the training images of the backdoors."""
        return replace(self, training=_rows_of(self.training, min(BACKDOOR_IMAGES, len(self.training))))

    def first(self, images: int) -> ImageSet:
        """The first testing images."""
        return _rows_of(self.testing, min(images, len(self.testing)))

    def recipe(self, architecture: str, epochs: float, **fields: Any) -> TrainingRecipe:
        """The recipe of a model, shortened with --quick."""
        epochs = 1 if self.quick else epochs
        return TrainingRecipe(architecture=architecture, epochs=epochs, batch_size=64, **fields)

    def model(self, architecture: str, seed: int, epochs: float, **fields: Any) -> Any:
        """A model trained on the clean images, from the cache where it stands there."""
        recipe = self.recipe(architecture, epochs, **fields)
        kind = "madry_" if fields else ""
        path = self.cache / f"{kind}{architecture}_{recipe.epochs:g}_epochs_{len(self.training)}_seed_{seed}.keras"
        if path not in self.models:
            if not path.is_file():
                save_model(train(recipe, self.training, seed=seed, progress=_say).model, path)
            self.models[path] = load_model(path)
        return self.models[path]

    def standard(self, architecture: str, seed: int) -> Any:
        """A model with the recipe of the experiment `mnist`."""
        return self.model(architecture, seed, EPOCHS[architecture])


def fgm(bench: Bench) -> Cells:
    """Both models of five seeds: clean, and under FGM of rising eps, on the attacked model and on the other."""

    def cell(seed: int) -> list[Row]:
        models = {name: bench.standard(name, seed) for name in EPOCHS}
        common = {"seed": seed, "n": len(bench.testing)}
        rows = [
            common | {"source": name, "target": name, "eps": 0.0, "accuracy": _accuracy(model, bench.testing)}
            for name, model in models.items()
        ]
        for source, attacked_model in models.items():
            for eps in EPS:
                attacked = _attacked({"method": "fgm", "eps": eps}, attacked_model, bench.testing, seed)
                rows += [
                    common | {"source": source, "target": target, "eps": eps, "accuracy": _accuracy(model, attacked)}
                    for target, model in models.items()
                ]
        return rows

    for seed in range(5):
        yield f"seed {seed}", functools.partial(cell, seed)


def pgd(bench: Bench) -> Cells:
    """PGD-40, three seeds."""

    def cell(name: str, seed: int) -> list[Row]:
        model, images = bench.standard(name, seed), bench.first(2000)
        attacked = _attacked(PGD, model, images, seed)
        row = {"architecture": name, "seed": seed, "n": len(images)}
        row |= {"clean": _accuracy(model, images), "fgm": _accuracy(model, _attacked(_fgm(), model, images, seed))}
        return [row | {"pgd": _accuracy(model, attacked), "no_gradient": float(attacked.index["zero_gradient"].mean())}]

    for name in EPOCHS:
        for seed in range(3):
            yield f"{name}, seed {seed}", functools.partial(cell, name, seed)


def backdoor(bench: Bench) -> Cells:
    """The baseline backdoor at four fractions, and the clean control."""
    bench = bench.smaller()

    def cell(seed: int, fraction: float) -> list[Row]:
        if not fraction:
            config = BaselineBackdoor(target_class=TARGET, poison_fraction=FRACTIONS[0])
            return [_backdoor_row(bench, config, _control(bench, seed), seed) | {"fraction": 0.0, "method": "control"}]
        config = BaselineBackdoor(target_class=TARGET, poison_fraction=fraction)
        return [_backdoor_row(bench, config, _trained_on(bench, _poisoned(bench, config, seed), seed), seed)]

    for seed in range(3):
        for fraction in (0.0, *FRACTIONS):
            yield f"{fraction:.0%}, seed {seed}", functools.partial(cell, seed, fraction)


def clean_label(bench: Bench) -> Cells:
    """The clean-label backdoor at four fractions of the target class, perturbed against the clean control."""
    bench = bench.smaller()

    def config(fraction: float) -> CleanLabelBackdoor:
        return CleanLabelBackdoor(target_class=TARGET, poison_fraction=fraction, steps=50 if bench.quick else 200)

    @functools.lru_cache(maxsize=1)
    def largest(seed: int) -> np.ndarray:
        proxy = _control(bench, seed)
        return _poisoned(bench, config(FRACTIONS[-1]), seed, proxy).to_numpy()[0]

    def cell(seed: int, fraction: float) -> list[Row]:
        # Smaller fractions of one seed are part of larger ones: each image is perturbed once a seed.
        rows, _ = split_rows(bench.training, 0.2, seed)
        index = bench.training.index.assign(split="validation")
        index.loc[rows, "split"] = "training"
        images, _ = bench.training.to_numpy()
        chosen = select_rows(config(fraction), bench.training, rows, seed)
        images[chosen] = largest(seed)[chosen]
        poisoned = ImageSet(images, index, bench.training.class_names, "clean label")
        return [_backdoor_row(bench, config(fraction), _trained_on(bench, poisoned, seed), seed)]

    for seed in range(3):
        for fraction in FRACTIONS:
            yield f"{fraction:.0%}, seed {seed}", functools.partial(cell, seed, fraction)


def embedding(bench: Bench) -> Cells:
    """The adversarial embedding."""
    bench = bench.smaller()

    def cell(seed: int) -> list[Row]:
        config = AdversarialEmbedding(target_class=TARGET, poison_fraction=0.1)
        recipe = bench.recipe("le_net", BACKDOOR_EPOCHS, validation_split=0)
        trained = train_embedded(config, recipe, _poisoned(bench, config, seed), seed=seed, progress=_say)
        last = trained.history.iloc[-1]
        hidden = {"discriminator_accuracy": float(last["discriminator_accuracy"])}
        return [_backdoor_row(bench, config, trained.model, seed) | hidden]

    for seed in range(3):
        yield f"seed {seed}", functools.partial(cell, seed)


def madry(bench: Bench) -> Cells:
    """One Madry-trained model beside the standard one of the same seed."""

    def cell() -> list[Row]:
        model, images = bench.model("le_net", 0, MADRY_EPOCHS, madry={"eps": 0.3, "steps": 7}), bench.first(1000)
        return [
            {"architecture": name, "seed": 0, "n": len(images)}
            | {"clean": _accuracy(one, bench.testing), "fgm": _accuracy(one, _attacked(_fgm(), one, bench.testing, 0))}
            | {"pgd": _accuracy(one, _attacked(PGD, one, images, 0))}
            for name, one in (("le_net", bench.standard("le_net", 0)), ("le_net, Madry", model))
        ]

    yield "le_net", cell


def pixel(bench: Bench) -> Cells:
    """The pixel attack by differential evolution beside the oracle that tries every pixel, and the threshold attack."""

    def cell(name: str, method: str, th: int, images: ImageSet, **fields: Any) -> list[Row]:
        model = bench.standard(name, 0)
        entry = {"method": method, "th": th} | fields
        found = _attacked(entry, model, images, 0).index["found"].to_numpy(bool)
        right = (predict(model, images)["prediction"] == images.labels).to_numpy(bool)
        row = {"architecture": name, "method": method, "th": th, "es": parse_attack(entry).model_dump()["es"]}
        row |= {"seed": 0, "n": len(images), "right": int(right.sum()), "found": int((found & right).sum())}
        if method == "pixel" and th == 1:
            some = images if name == "shallow_net" else _rows_of(images, min(5, len(images)))
            reachable = one_pixel_oracle(model, *some.to_numpy())["reachable"].to_numpy(bool)
            row |= _agreement(found[: len(some)], reachable, right[: len(some)])
        return [row]

    for name, count in (("shallow_net", 100), ("le_net", 20)):
        for method, levels, images in (("pixel", (1, 3, 5, 10), count), ("threshold", (10, 30), 20)):
            for th in levels:
                some = bench.first(2 if bench.quick else images)
                fields = {"max_iter": 3} if bench.quick else {}
                yield f"{name}, {method} {th}", functools.partial(cell, name, method, th, some, **fields)


def miface(bench: Bench) -> Cells:
    """Model inversion of both models, scored against the class means and judged by the other."""

    def cell(name: str, start: str, rate: float) -> list[Row]:
        other = next(one for one in EPOCHS if one != name)
        model, names = bench.standard(name, 0), bench.testing.class_names
        entry = {"method": "miface", "start": start, "learning_rate": rate, "max_iter": 50 if bench.quick else 10_000}
        mean, means = training_means(bench.training)
        images = invert(parse_inversion(entry), model, TrainingFacts((28, 28, 1), names, mean), seed=0)
        table = inversion_table(images, means, model, {"other": bench.standard(other, 0)})
        pictures = np.concatenate([images.to_numpy()[0], means])
        picture = np.kron(tile(pictures, len(names)), np.ones((4, 4, 1), np.float32))
        (bench.pictures / f"miface_{name}_{start}_{rate:g}.png").write_bytes(encode_png(picture))
        common: Row = {"architecture": name, "start": start, "learning_rate": rate, "seed": 0}
        rows: Any = json.loads(table.assign(**common).to_json(orient="records"))
        return rows

    for name in EPOCHS:
        for start, rate in (("mean", 0.1), ("noise", 0.1), ("noise", 10.0)):
            yield f"{name}, {start}, {rate:g}", functools.partial(cell, name, start, rate)


PARTS = {part.__name__: part for part in (fgm, backdoor, embedding, miface, pixel, pgd, clean_label, madry)}

# For each part what a row of its table is, and what is averaged over the seeds.
TABLES: dict[str, tuple[list[str], list[str]]] = {
    "fgm": (["source", "target", "eps", "n"], ["accuracy"]),
    "backdoor": (["method", "fraction", "trained_on", "n"], ["clean_accuracy", "asr", "ra"]),
    "embedding": (["method", "fraction", "trained_on", "n"], ["clean_accuracy", "asr", "ra", "discriminator_accuracy"]),
    "miface": (
        [
            "architecture",
            "start",
            "learning_rate",
            "class_name",
            "prediction_other",
            "nearest_class_mean",
            "stop_reason",
        ],
        ["iterations", "confidence", "l2_to_class_mean", "ssim_to_class_mean"],
    ),
    "pixel": (
        ["architecture", "method", "th", "es", "n"],
        ["right", "found", "oracle_n", "oracle_reachable", "oracle_found", "beyond_oracle"],
    ),
    "pgd": (["architecture", "n"], ["clean", "fgm", "pgd", "no_gradient"]),
    "clean_label": (["method", "fraction", "trained_on", "n"], ["clean_accuracy", "asr", "ra"]),
    "madry": (["architecture", "n"], ["clean", "fgm", "pgd"]),
}


def tables(path: Path) -> str:
    """Markdown of what stands in the file: mean ± standard deviation (smallest to largest) over the seeds."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    pages = []
    for part, (keys, values) in TABLES.items():
        cells = [line for line in lines if line["part"] == part]
        if not cells:
            continue
        frame = pd.DataFrame([row for line in cells for row in line["rows"]])
        groups: Any = frame.reindex(columns=[*keys, *values, "seed"]).groupby(keys, sort=False, dropna=False)
        rows = [
            [*map(str, key), str(group["seed"].nunique()), *(_spread(group[value]) for value in values)]
            for key, group in groups
        ]
        head = [[*keys, "seeds", *values], ["---"] * (len(keys) + 1 + len(values))]
        text = "\n".join(f"| {' | '.join(row)} |" for row in head + rows)
        quick = " (--quick: these numbers mean nothing)" * any(line["quick"] for line in cells)
        minutes = sum(line["seconds"] for line in cells) / 60
        pages.append(f"## {part}{quick}\n\n{text}\n\n{len(cells)} cells, {minutes:.0f} minutes.")
    return "\n\n".join(pages)


def _spread(values: pd.Series) -> str:
    numbers = values.dropna().to_numpy(np.float64)
    if not len(numbers):
        return ""
    if len(numbers) == 1:
        return f"{numbers[0]:.4g}"
    return f"{numbers.mean():.4f} ± {numbers.std(ddof=1):.4f} ({numbers.min():.4f} to {numbers.max():.4f})"


def _rows_of(images: ImageSet, count: int) -> ImageSet:
    """The first rows of a set."""
    return ImageSet(images.pixels[slice(0, count)], images.index.iloc[:count], images.class_names, images.name)


def _fgm() -> Row:
    return {"method": "fgm", "eps": EPS[-1]}


def _attacked(entry: Row, model: Any, images: ImageSet, seed: int) -> ImageSet:
    batches = list(perturb_set(parse_attack(entry), model, images, seed=seed, class_count=10))
    index = pd.concat([batch.index for batch in batches], ignore_index=True)
    return ImageSet(np.concatenate([batch.images for batch in batches]), index, images.class_names, "attacked")


def _accuracy(model: Any, images: ImageSet) -> float:
    return float((predict(model, images)["prediction"] == images.labels).mean())


def _agreement(found: np.ndarray, reachable: np.ndarray, right: np.ndarray) -> Row:
    return {
        "oracle_n": int(right.sum()),
        "oracle_reachable": int((reachable & right).sum()),
        "oracle_found": int((found & reachable & right).sum()),
        "beyond_oracle": int((found & ~reachable).sum()),
    }


def _control(bench: Bench, seed: int) -> Any:
    return bench.model("le_net", seed, BACKDOOR_EPOCHS)


def _poisoned(bench: Bench, config: Poisoning, seed: int, proxy: Any = None) -> ImageSet:
    rows, _ = split_rows(bench.training, config.validation_split, seed)
    made = poison_training_set(config, bench.training, rows=rows, seed=seed, proxy_model=proxy)
    images, parts = np.empty((len(bench.training), 28, 28, 1), np.float32), []
    for batch in made.batches:
        start = sum(map(len, parts))
        images[start : start + len(batch.index)] = batch.images
        parts.append(batch.index)
    return ImageSet(images, pd.concat(parts, ignore_index=True), bench.training.class_names, config.method)


def _trained_on(bench: Bench, images: ImageSet, seed: int) -> Any:
    return train(bench.recipe("le_net", BACKDOOR_EPOCHS), images, seed=seed, progress=_say).model


def _backdoor_row(bench: Bench, config: Poisoning, model: Any, seed: int) -> Row:
    examples = poisoning_examples(
        clean=predict(model, bench.testing),
        triggered=predict(model, triggered_testing_set(config, bench.testing)),
        config=config,
        architecture="le_net",
        attack=config.method,
        model_kind="poisoned",
    )
    row = poisoning_metrics(examples, seed=seed).iloc[0]
    rates = {name: float(row[name]) for name in ("clean_accuracy", "asr", "ra")}
    common = {"method": config.method, "fraction": config.poison_fraction, "trained_on": len(bench.training)}
    common |= {"seed": seed, "n": int(row["n"])}
    return common | rates


def _say(message: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {message}", flush=True)


def _compute(parts: list[str], bench: Bench, out: Path) -> int:
    """Compute what does not stand in the file yet; how many cells failed."""
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    done = {(line["part"], line["cell"], line["quick"]) for line in lines}
    failed = 0
    for part in parts:
        for name, work in PARTS[part](bench):
            if (part, name, bench.quick) in done:
                continue
            started = time.perf_counter()
            try:
                rows = work()
            except Exception:  # noqa: BLE001 - one bad cell is not to cost the others
                traceback.print_exc()
                failed += 1
                continue
            seconds = round(time.perf_counter() - started, 1)
            line = {"part": part, "cell": name, "quick": bench.quick, "seconds": seconds, "rows": rows}
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            _say(f"{part}, {name}: {seconds:.0f} s {json.dumps(rows)[:600]}")
    return failed


def main() -> int:
    """Compute or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="which parts; all by default")
    parser.add_argument("--out", type=Path, default=Path("mnist.jsonl"), help="file of JSON lines; pictures go beside")
    parser.add_argument("--cache", type=Path, help="folder of trained models; a temporary one by default")
    parser.add_argument("--quick", action="store_true", help="very few images: whether it runs, not what is right")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print tables of such a file and compute nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(tables(arguments.table))
        return 0
    source = MnistSource(limit_training=600, limit_testing=20) if arguments.quick else MnistSource()
    training, testing = source.load("training"), source.load("testing")
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or Path(temporary)
        cache.mkdir(parents=True, exist_ok=True)
        bench = Bench(training, testing, cache, arguments.out.parent, arguments.quick)
        return min(1, _compute(arguments.part, bench, arguments.out))


if __name__ == "__main__":
    sys.exit(main())
