"""Cells that one run can take: a range of partition keys, which is a rectangle in two dimensions."""

from collections.abc import Collection, Iterator, Sequence

Key = tuple[str, ...]


def ranges(
    dimensions: Sequence[Sequence[str]], wanted: Collection[Key], most: int | None = None
) -> Iterator[list[Key]]:
    """Cut a set of cells into a few ranges.

    A range holds every combination of neighbouring keys of the one dimension with neighbouring keys of the other.
    Rows that want the same columns are taken together. Takes as long as sorting the cells.

    Args:
        dimensions: the keys of one or two dimensions, in their order.
        wanted: the cells, each with one key per dimension.
        most: the most cells in a range; None for any number.

    Yields:
        The cells of a range, the first and the last of which are its ends.
    """
    *outer, columns = dimensions
    rows: list[Key] = [(key,) for key in outer[0]] if outer else [()]
    place = {key: number for number, key in enumerate(columns)}
    at: dict[Key, list[int]] = {}
    for *row, column in wanted:
        at.setdefault(tuple(row), []).append(place[column])
    stripes: dict[tuple[int, int], list[int]] = {}  # first and last column -> rows that want all between
    for number, row in enumerate(rows):
        for first, last in _neighbours(sorted(at.get(row, []))):
            for begin in range(first, last + 1, most or len(columns)):
                end = min(last, begin + (most or len(columns)) - 1)
                stripes.setdefault((begin, end), []).append(number)
    for (begin, end), numbers in stripes.items():
        height = max(1, most // (end - begin + 1)) if most else len(rows)
        for first, last in _neighbours(numbers):
            for top in range(first, last + 1, height):
                taken = rows[top : min(last, top + height - 1) + 1]
                yield [(*row, column) for row in taken for column in columns[begin : end + 1]]


def _neighbours(places: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    begins = [place for number, place in enumerate(places) if not number or places[number - 1] != place - 1]
    ends = [place for number, place in enumerate(places) if places[number + 1 : number + 2] != [place + 1]]
    return list(zip(begins, ends, strict=True))
