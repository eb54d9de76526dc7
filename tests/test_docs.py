"""What the documentation says is what the code does."""

import re
from pathlib import Path

from docs import records, reference

ROOT = Path(__file__).parent.parent


def test_the_reference_of_fields_is_the_one_the_types_give() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run `python -m docs.reference`"


def test_the_schema_of_a_report_is_the_one_the_types_give() -> None:
    assert records.SCHEMA.read_bytes() == records.schema(), "run `python -m docs.records`"


def test_every_picture_and_page_that_the_readme_names_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    named = re.findall(r"\]\(([^)#]+)\)", readme)
    missing = [path for path in named if "://" not in path and not (ROOT / path).exists()]
    assert named and not missing


def test_the_lock_file_names_no_address() -> None:
    assert not re.search(r"://|index-url|find-links", (ROOT / "requirements.lock").read_text())


def test_every_make_target_that_the_readme_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()
