import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.keys import is_key, key_text, partition_key_of, partition_of

pytestmark = pytest.mark.quick

ALPHABET = "ABCXYZabcxyz0189_.@=-"


@pytest.mark.parametrize(
    "key", ["le_net", "fgm_0.3", "fgm@eps=0.3@norm=2", "1", "-", "A" * 100, "a..b", "versions", "CURRENT", "fgm_1e-05"]
)
def test_a_plain_name_is_a_key(key: str):
    assert is_key(key)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "a|b",
        "a b",
        "a/b",
        "..",
        ".hidden",
        "a...b",
        "a,b",
        "[a]",
        "ü",
        "a\n",
        "\na",
        "a\0",
        "A" * 101,
        "a#1",
        "a%2F",
    ],
)
def test_a_name_that_dagster_a_path_or_a_url_would_read_otherwise_is_no_key(key: str):
    assert not is_key(key)


@given(st.text(alphabet=ALPHABET, min_size=1, max_size=100).filter(is_key))
def test_dagster_takes_every_key_alone_and_in_two_dimensions(key: str):
    static = dg.StaticPartitionsDefinition([key])
    assert static.get_partition_keys() == [key]
    both = dg.MultiPartitionsDefinition({"attack": static, "architecture": dg.StaticPartitionsDefinition(["le_net"])})
    assert both.get_partition_keys() == [f"le_net|{key}"]


@given(st.text(max_size=20))
def test_a_key_is_one_part_of_a_path_that_leads_nowhere_else(text: str):
    if is_key(text):
        assert text not in {".", ".."}
        assert not set(text) & set('/\\|:*?"<>#%')
        assert text.isascii()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3, "0.3"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1, "1"),
        (1.0, "1.0"),
        (1e-05, "1e-05"),
        (float("inf"), "inf"),
        ("inf", "inf"),
        (True, "true"),
        (False, "false"),
        (None, "null"),
        ("rmsprop", "rmsprop"),
    ],
)
def test_a_value_stands_in_a_key_as_in_yaml(value: object, text: str):
    assert key_text(value) == text


def test_a_partition_key_becomes_dimensions_and_back():
    dimensions = ("architecture", "attack")
    partition = partition_of(dimensions, "le_net|fgm_0.3")
    assert partition == {"architecture": "le_net", "attack": "fgm_0.3"}
    assert partition_key_of(dict(reversed(partition.items()))) == "le_net|fgm_0.3"
    assert partition_of((), None) == {}
    assert partition_key_of({}) is None
    assert partition_of(("attack",), "fgm") == {"attack": "fgm"}


@pytest.mark.parametrize(
    ("dimensions", "key"), [(("architecture",), "le_net|fgm"), (("architecture", "attack"), "fgm"), ((), "fgm")]
)
def test_a_partition_key_of_other_dimensions_is_refused(dimensions: tuple[str, ...], key: str):
    with pytest.raises(ValueError, match=r"the partition key '.*' does not fit the dimensions"):
        partition_of(dimensions, key)
