"""The attacks of the engine `compiled` hold to the contract on JAX as they do on TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


class WithoutArt:
    """Deselects the cases of the Adversarial Robustness Toolbox, which runs on TensorFlow alone."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not _needs_art(item)]


def _needs_art(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    case = callspec.params.get("case") if callspec else None
    return case is not None and "art" in {case.config["method"], case.config.get("engine")}


def run_contract() -> None:
    """Ends the process with pytest's verdict on the contract, on the Keras backend of this process."""
    arguments = ["tests/robustness/attacks/test_contract.py", "-p", "no:cacheprovider", "--maxfail=5", "--durations=0"]
    sys.exit(pytest.main(arguments, plugins=[WithoutArt()]))


@pytest.mark.slow
def test_every_compiled_attack_holds_to_the_contract_on_jax() -> None:
    pytest.importorskip("jax")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    contract = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import run_contract; run_contract()"],
        env=environment | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert contract.returncode == 0, contract.stdout[-4000:] + contract.stderr[-2000:]
