"""A file that no reader of YAML should be given is refused in a sentence, within a second."""

import time
from pathlib import Path

import pytest

from partitions import experiment_files
from partitions.entries import ExperimentError
from partitions.experiment_files import check_file, check_files, read_attributes

pytestmark = pytest.mark.quick

GOOD = "type: x\nattributes:\n  seed: 7\n"


def file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "digits" / "defs.yaml"
    path.parent.mkdir()
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def bomb(depth: int) -> str:
    lines = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "attributes:\n  " + "\n  ".join(lines)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("attributes:\n\tseed: 1\n", ", line 2, column 1: a tab is not allowed here, YAML is indented with spaces"),
        (
            "attributes:\n  seed: !!python/object/apply:os.system ['touch HERE']\n",
            ", line 2, column 9: the tag '!!python/object/apply:os.system' is not allowed, a file holds plain values",
        ),
        ("attributes: !env X\n", ", line 1, column 13: the tag '!env' is not allowed, a file holds plain values"),
        (
            bomb(12),
            "the file stands for more than 50,000 values, an alias counted as what it stands for; write a sweep",
        ),
        ("a: &a {x: 1}\nb: &b {<<: [" + ", ".join(["*a"] * 60_000) + "]}", "stands for more than 50,000 values"),
        ("circle: &circle [*circle]\n", ", line 1, column 18: *circle stands within itself"),
        ("a: " + "[" * 100_000, "more than 30 values stand within each other"),
        ("a: " + "9" * 5000, ", line 1, column 4: a number of 5,000 digits is not allowed"),
        ("a: 1" + ":1" * 300 + ".0", "a number of 603 digits is not allowed"),
        ("a: [1, 2\nb: 3\n", "this is not sound YAML: while parsing a flow sequence"),
        ("? [a]\n: 2\n", "this is not sound YAML: while constructing a mapping, found unhashable key"),
        ("a: *nowhere\n", "this is not sound YAML: found undefined alias"),
        ("a: \0", "this is not sound YAML"),
        (b"a: \xff", ": byte 3 is no UTF-8 text"),
        (
            "a: " + "x" * 300_000,
            ": 300,003 bytes are not allowed, at most 250,000; write a sweep instead of many entries",
        ),
    ],
)
def test_a_hostile_or_broken_file_is_refused_in_a_sentence_within_a_second(tmp_path: Path, text: str, fault: str):
    path = file(tmp_path, text)
    begun = time.perf_counter()
    with pytest.raises(ExperimentError) as caught:
        check_file(path)
    assert time.perf_counter() - begun < 1
    sentence = str(caught.value)
    assert sentence.startswith("experiment 'digits', defs.yaml"), sentence
    assert fault in sentence, sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("name", experiment_files.FILE_NAMES)
def test_every_name_that_dagster_reads_is_looked_at(tmp_path: Path, name: str):
    path = file(tmp_path, bomb(12))
    path.rename(path.with_name(name))
    with pytest.raises(ExperimentError, match="50,000 values"):
        check_files(tmp_path)


def test_without_libyaml_the_same_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(experiment_files, "_LOADER", experiment_files.yaml.SafeLoader)
    with pytest.raises(ExperimentError, match="line 2, column 1: a tab"):
        check_file(file(tmp_path, "attributes:\n\tseed: 1\n"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "there is no mapping 'attributes'"),
        ("attributes: 3\n", "there is no mapping 'attributes'"),
        ("- a\n", "there is no mapping 'attributes'"),
        (GOOD + "---\n" + GOOD, "2 documents are not allowed, take out the line `---`"),
    ],
)
def test_a_file_that_declares_no_experiment_is_refused(tmp_path: Path, text: str, fault: str):
    with pytest.raises(ExperimentError, match=fault):
        read_attributes(file(tmp_path, text))


def test_dates_stay_text_as_dagster_reads_them(tmp_path: Path):
    path = file(tmp_path, "attributes:\n  description: 2026-13-45\n")
    assert read_attributes(path) == {"description": "2026-13-45"}


@pytest.mark.parametrize(
    ("text", "name", "line"),
    [
        ("attributes:\n  attacks:\n    fgm: {eps: 0.1}\n    fgm: {eps: 0.3}\n", "fgm", 4),
        ("attributes:\n  attacks:\n    fgm: {eps: 0.1, eps: 0.3}\n", "eps", 3),
        ("attributes:\n  seed: 1\n  data: {source: digits}\n  seed: 2\n", "seed", 4),
        ("attributes: {}\n---\nattributes:\n  owners:\n  - {a: 1, 'a': 2}\n", "a", 5),
        ("attributes:\n  architectures: {grün: {}, grün: {}}\n", "grün", 2),
    ],
)
def test_a_name_given_twice_is_refused_with_its_line(tmp_path: Path, text: str, name: str, line: int):
    with pytest.raises(ExperimentError) as caught:
        check_file(file(tmp_path, text))
    assert str(caught.value) == (
        f"experiment 'digits': the name '{name}' is given twice in defs.yaml, again in line {line}; each entry and"
        " field needs a name of its own"
    )


@pytest.mark.parametrize(
    "text",
    [GOOD, "", "a: {eps: 1}\nb: {eps: 1}\n", "base: &base {eps: 1}\na: *base\nb: {<<: *base, norm: 2}\n", "a: ! x\n"],
)
def test_a_sound_file_passes(tmp_path: Path, text: str):
    check_file(file(tmp_path, text))
