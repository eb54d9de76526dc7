"""Which rows are poisoned, and what is kept of it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.poisoning import (
    POISONINGS,
    AdversarialEmbedding,
    AnyPoisoning,
    BaselineBackdoor,
    CleanLabelBackdoor,
    Poisoning,
    Trigger,
    parse_poisoning,
    poison_training_set,
    select_rows,
    triggered_testing_set,
)
from dioptra_assets.robustness.training.loop import split_rows
from tests.robustness.poisoning.conftest import collect

pytestmark = pytest.mark.quick

TARGET = 3
CONFIGS = [
    BaselineBackdoor(target_class=TARGET, poison_fraction=0.1),
    CleanLabelBackdoor(target_class=TARGET, poison_fraction=0.2, steps=2, eps_step=3.0),
    AdversarialEmbedding(target_class=TARGET, poison_fraction=0.1),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_every_row_comes_out_once_and_only_the_manifest_s_rows_are_changed(
    config: Poisoning, training_set: ImageSet, proxy_model: Any
) -> None:
    rows, held_out = split_rows(training_set, 0.2, seed=5)
    before = training_set.to_numpy()[0].copy()
    poisoned = poison_training_set(
        config,
        training_set,
        rows=rows,
        seed=1,
        proxy_model=proxy_model if config.needs_proxy_model else None,
        batch_size=100,
    )
    result, manifest = collect(poisoned, training_set), poisoned.manifest
    images, labels = result.to_numpy()
    chosen = manifest["row"].to_numpy()
    others = np.setdiff1d(np.arange(len(training_set)), chosen)
    assert result.index["image_id"].tolist() == training_set.index["image_id"].tolist()
    assert np.array_equal(images[others], before[others])
    assert np.array_equal(labels[others], training_set.labels[others])
    assert np.array_equal(training_set.to_numpy()[0], before)

    mask = config.trigger.mask(training_set.image_shape)
    assert (images[chosen][:, mask] == 1).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert result.index["poisoned"].to_numpy().nonzero()[0].tolist() == chosen.tolist()
    assert np.array_equal(result.index["original_label"], training_set.labels)
    assert not set(chosen) & set(held_out)
    assert sorted(np.flatnonzero(result.index["split"] == "validation")) == held_out.tolist()

    assert manifest["image_id"].tolist() == training_set.index["image_id"].iloc[chosen].tolist()
    assert np.array_equal(manifest["old_label"], training_set.labels[chosen])
    assert np.array_equal(manifest["new_label"], labels[chosen])
    eligible = training_set.labels[rows] != TARGET
    if config.method == "clean_label":
        eligible = ~eligible
        assert (manifest["old_label"] == TARGET).all()
        assert (result.index["perturbation"].to_numpy()[chosen] > 1).all()
    else:
        assert (manifest["old_label"] != TARGET).all()
        assert (result.index["perturbation"] == 0).all()
    assert (manifest["new_label"] == TARGET).all()
    assert len(manifest) == round(config.poison_fraction * eligible.sum())


def test_the_sample_depends_on_the_seed_alone_and_is_no_slice(training_set: ImageSet) -> None:
    config, rows = CONFIGS[0], np.arange(len(training_set))
    first, again, other = (select_rows(config, training_set, rows, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.max() - first.min() > 0.9 * len(rows)
    assert len(np.unique(training_set.labels[first])) == 9
    named = config.model_copy(update={"seed": 2})
    poisoned = poison_training_set(named, training_set, rows=rows, seed=1)
    assert np.array_equal(poisoned.manifest["row"], other)


def test_a_smaller_fraction_of_one_seed_is_part_of_a_larger(training_set: ImageSet) -> None:
    rows = np.arange(len(training_set))
    small, large = (
        select_rows(BaselineBackdoor(target_class=0, poison_fraction=fraction), training_set, rows, 1)
        for fraction in (0.05, 0.3)
    )
    assert set(small) < set(large)


def test_batches_are_made_as_they_are_asked_for(training_set: ImageSet) -> None:
    class Counted:
        shape = training_set.pixels.shape
        read = 0

        def __getitem__(self, rows: slice) -> np.ndarray:
            self.read += 1
            return training_set.pixels[rows]

    counted = Counted()
    lazy = ImageSet(counted, training_set.index, training_set.class_names)
    config = BaselineBackdoor(target_class=TARGET, poison_fraction=1.0)
    batches = poison_training_set(config, lazy, rows=np.arange(len(lazy)), seed=0, batch_size=300).batches
    assert counted.read == 0
    next(batches)
    assert counted.read == 1


def test_the_size_of_the_batches_changes_nothing(training_set: ImageSet, proxy_model: Any) -> None:
    few = ImageSet.from_arrays(training_set.images(range(150)), training_set.labels[:150], training_set.class_names)
    results = []
    for batch_size, at_once in ((150, 256), (7, 3)):
        config = CleanLabelBackdoor(target_class=1, poison_fraction=0.5, steps=5, eps_step=1.0, batch_size=at_once)
        poisoned = poison_training_set(
            config, few, rows=np.arange(150), seed=1, proxy_model=proxy_model, batch_size=batch_size
        )
        results.append(collect(poisoned, few))
    assert [len(batch) for batch in (results[0], results[1])] == [150, 150]
    np.testing.assert_allclose(results[0].to_numpy()[0], results[1].to_numpy()[0], atol=1e-4)
    pd.testing.assert_frame_equal(results[0].index, results[1].index, rtol=1e-3)


def test_clean_label_poisons_are_the_same_bytes_again_and_within_the_budget(
    training_set: ImageSet, proxy_model: Any
) -> None:
    config = CleanLabelBackdoor(target_class=1, poison_fraction=0.3, steps=20, eps=0.7, trigger=Trigger(size=1))
    first, again = (
        collect(
            poison_training_set(
                config, training_set, rows=np.arange(len(training_set)), seed=1, proxy_model=proxy_model
            ),
            training_set,
        )
        for _ in range(2)
    )
    assert np.array_equal(first.to_numpy()[0], again.to_numpy()[0])
    chosen = first.index["poisoned"].to_numpy(bool)
    change = (first.to_numpy()[0] - training_set.to_numpy()[0])[chosen]
    change[:, config.trigger.mask(training_set.image_shape)] = 0
    sizes = np.linalg.norm(change.reshape(len(change), -1), axis=1)
    assert (sizes <= 0.7001).all()
    assert np.median(sizes) > 0.6
    np.testing.assert_allclose(first.index["perturbation"][chosen], 0.7, atol=0.05)


def test_label_type_test_keeps_the_labels(training_set: ImageSet) -> None:
    config = BaselineBackdoor(target_class=TARGET, poison_fraction=0.2, label_type="test")
    poisoned = poison_training_set(config, training_set, rows=np.arange(len(training_set)), seed=0)
    assert len(poisoned.manifest) > 100
    assert (poisoned.manifest["new_label"] == poisoned.manifest["old_label"]).all()
    assert np.array_equal(collect(poisoned, training_set).labels, training_set.labels)


def test_fraction_0_poisons_nothing_and_1_everything_eligible(training_set: ImageSet) -> None:
    rows = np.arange(len(training_set))
    for fraction, count in ((0, 0), (1, int((training_set.labels != TARGET).sum()))):
        config = BaselineBackdoor(target_class=TARGET, poison_fraction=fraction)
        assert len(poison_training_set(config, training_set, rows=rows, seed=0).manifest) == count


def test_the_triggered_testing_set_has_every_row_with_trigger_and_true_label(testing_set: ImageSet) -> None:
    triggered = triggered_testing_set(CONFIGS[0], testing_set)
    images, labels = triggered.to_numpy()
    assert np.array_equal(labels, testing_set.labels)
    assert triggered.index["image_id"].tolist() == testing_set.index["image_id"].tolist()
    assert np.array_equal(triggered.index["eligible"], testing_set.labels != TARGET)
    assert np.array_equal(images, CONFIGS[0].trigger.stamp(testing_set.to_numpy()[0]))
    assert np.array_equal(np.concatenate([batch.images for batch in triggered.batches(50)]), images)


def test_what_does_not_fit_the_set_is_refused(training_set: ImageSet, proxy_model: Any) -> None:
    rows = np.arange(len(training_set))

    def poison(config: Poisoning, **arguments: Any) -> None:
        poison_training_set(config, training_set, **{"rows": rows, "seed": 0, **arguments})

    baseline, clean_label, _ = CONFIGS
    with pytest.raises(ValueError, match="target_class is 10, but there are 10 classes: allowed are 0 to 9"):
        poison(BaselineBackdoor(target_class=10, poison_fraction=0.1))
    with pytest.raises(ValueError, match="is no row: raise the fraction"):
        poison(BaselineBackdoor(target_class=0, poison_fraction=1e-5))
    with pytest.raises(ValueError, match="give a proxy model"):
        poison(clean_label)
    with pytest.raises(ValueError, match="uses no proxy model"):
        poison(baseline, proxy_model=proxy_model)
    with pytest.raises(ValueError, match="a row is given twice"):
        poison(baseline, rows=np.array([1, 1]))
    with pytest.raises(ValueError, match="allowed are 0 to 1436"):
        poison(baseline, rows=np.array([1, 1437]))
    with pytest.raises(ValueError, match="leaves the image"):
        triggered_testing_set(baseline.model_copy(update={"trigger": Trigger(size=14)}), training_set)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_a_config_survives_json_and_says_what_it_assumes(config: Poisoning) -> None:
    document = config.model_dump(mode="json")
    assert parse_poisoning(document) == config
    assert TypeAdapter(AnyPoisoning).validate_python(document) == config
    assert POISONINGS[config.method] is type(config)
    threat = config.threat_model()
    assert threat.nist_class == "backdoor poisoning"
    assert f"{config.poison_fraction:g}" in threat.budget


@pytest.mark.parametrize(
    "entry",
    [
        {"method": "baseline", "poison_fraction": 0.1},
        {"method": "baseline", "target_class": 0, "poison_fraction": 1.1},
        {"method": "baseline", "target_class": 0, "poison_fraction": 0.1, "label_type": "both"},
        {"method": "baseline", "target_class": 0, "poison_fraction": 0.1, "target_class_id": 1},
        {"method": "baseline", "target_class": 0, "poison_fraction": 0.1, "eps": 5},
        {"method": "clean_label", "target_class": -1},
        {"method": "clean_label", "target_class": 0, "norm": 1},
        {"method": "clean_label", "target_class": 0, "norm": "inf", "eps": 50},
        {"method": "clean_label", "target_class": 0, "eps": 5, "steps": 10},
        {"method": "adversarial_embedding", "target_class": 0, "poison_fraction": 0.1, "regularization_factor": 0},
        {"method": "adversarial_embedding", "target_class": 0, "poison_fraction": 0.1, "training_split": 0},
        {"method": "adversarial_embedding", "target_class": 0, "poison_fraction": 0.1, "feature_layer": 1.5},
    ],
)
def test_an_unknown_or_wrong_parameter_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse_poisoning(entry)


def test_an_unknown_method_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="adversarial_embedding, baseline, clean_label"):
        parse_poisoning({"method": "badnets"})
