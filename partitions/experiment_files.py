"""Reading an experiment file. A bad file is refused in one sentence, within a second, before anything uses it.

Dagster's component loader reads the same file and shows a mistake as a traceback. The code here looks at the file
first, event by event: no object is built before the file is known to be harmless.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from partitions.entries import ExperimentError

MAX_BYTES = 250_000  # Dagster's reader takes a second for as much
MAX_VALUES = 50_000  # with everything that an alias stands for
MAX_DEPTH = 30
FILE_NAMES = ("defs.yaml", "defs.yml", "component.yaml")
PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "map", "null", "seq", "str")}
_LONG_NUMBER = re.compile("[-+]?[0-9][0-9_:.]{99,}")
# Of its types some name no arguments.
_YAML: Any = yaml
# libyaml, where PyYAML was built with it, is ten times faster.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _WithoutDates(_LOADER):
    """Dates stay text, as in Dagster's own reader."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's name
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def check_files(folder: Path) -> None:
    """Refuse the first file below a folder of definitions that no reader of YAML should be given.

    Raises:
        ExperimentError: see :func:`check_file`.
    """
    for path in sorted(path for name in FILE_NAMES for path in folder.rglob(name)):
        check_file(path)


def check_file(path: Path) -> None:
    """Refuse a file that is not YAML, asks for Python objects, is huge or expands to be huge, or repeats a name.

    Raises:
        ExperimentError: naming file, line and what is wrong there.
    """
    _documents(path)


def read_attributes(path: Path) -> dict[str, Any]:
    """What an experiment file says below `attributes`.

    Raises:
        ExperimentError: see :func:`check_file`; also where there is no such mapping.
    """
    documents = _documents(path)
    if len(documents) > 1:
        raise _refusal(path, f"{len(documents)} documents are not allowed, take out the line `---`")
    document = documents[0] if documents else None
    attributes: Any = cast("dict[Any, Any]", document).get("attributes") if isinstance(document, dict) else None
    if not isinstance(attributes, dict):
        raise _refusal(path, "there is no mapping 'attributes', write the fields of the experiment below it")
    return cast("dict[str, Any]", attributes)


def _documents(path: Path) -> list[Any]:
    text = _text(path)
    try:
        _check_events(path, text)
        _refuse_repeated_names(path, text)
        return list(yaml.load_all(text, _WithoutDates))
    except yaml.YAMLError as error:
        raise _refusal(path, _sentence(text, error), getattr(error, "problem_mark", None)) from error


def _text(path: Path) -> str:
    if not path.is_file():
        raise _refusal(path, "this is not a file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _refusal(
            path, f"{size:,} bytes are not allowed, at most {MAX_BYTES:,}; write a sweep instead of many entries"
        )
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise _refusal(path, f"byte {error.start:,} is no UTF-8 text") from error


def _check_events(path: Path, text: str) -> None:
    """Follow the events of the parser: no node is made, so that neither depth nor aliases cost anything."""
    sizes: dict[str, int] = {}  # of what an anchor names, everything that its aliases stand for included
    open_anchors: list[str | None] = []
    counts = [0]  # values within each collection that is open, and in the whole
    for event in _events(text):
        if (tag := getattr(event, "tag", None)) and tag not in PLAIN_TAGS and tag != "!":
            name = re.sub("^tag:yaml.org,2002:", "!!", tag)
            raise _refusal(path, f"the tag {name!r} is not allowed, a file holds plain values", event.start_mark)
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _LONG_NUMBER.match(event.value):
            raise _refusal(path, f"a number of {len(event.value):,} digits is not allowed", event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in open_anchors:
                raise _refusal(path, f"*{event.anchor} stands within itself", event.start_mark)
            counts[-1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append(event.anchor)
            counts.append(1)
            if len(counts) > MAX_DEPTH:
                raise _refusal(path, f"more than {MAX_DEPTH} values stand within each other", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent | yaml.ScalarEvent):
            scalar = isinstance(event, yaml.ScalarEvent)
            size, anchor = (1, event.anchor) if scalar else (counts.pop(), open_anchors.pop())
            counts[-1] += size
            if anchor:
                sizes[anchor] = size
        if sum(counts) > MAX_VALUES:
            raise _refusal(
                path,
                f"the file stands for more than {MAX_VALUES:,} values, an alias counted as what it stands for; write a"
                " sweep instead of many entries",
                event.start_mark,
            )


def _events(text: str) -> Iterator[Any]:
    return _YAML.parse(text, _LOADER)


def _refuse_repeated_names(path: Path, text: str) -> None:
    """YAML readers keep the last of two equal names and say nothing."""
    nodes: Iterator[yaml.Node | None] = _YAML.compose_all(text, _LOADER)
    pending = [node for node in nodes if node]
    visited: set[int] = set()  # an alias leads to one node many times
    while pending:
        node = pending.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                pending.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ExperimentError(
                        f"experiment {path.parent.name!r}: the name {key.value!r} is given twice in {path.name}, again"
                        f" in line {line}; each entry and field needs a name of its own"
                    )
                seen.add(key.value)


def _refusal(path: Path, fault: str, mark: Any = None) -> ExperimentError:
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return ExperimentError(f"experiment {path.parent.name!r}, {path.name}{where}: {fault}")


def _sentence(text: str, error: Exception) -> str:
    mark: yaml.Mark | None = getattr(error, "problem_mark", None)
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or (mark and line[mark.column : mark.column + 1] == "\t"):
        return "a tab is not allowed here, YAML is indented with spaces"
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    said = ", ".join(part for part in parts if part) or str(error).replace("\n", " ")
    return f"this is not sound YAML: {said}"
