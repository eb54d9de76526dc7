"""The device a cell runs on is set up once a process."""

from typing import Any

import pytest
import tensorflow as tf

from resources import compute

pytestmark = pytest.mark.quick


def test_the_device_is_set_up_once_a_process_not_once_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    listed = tf.config.list_physical_devices

    def list_devices(kind: Any = None) -> Any:
        looked.append(kind)
        return listed(kind)

    monkeypatch.setattr(tf.config, "list_physical_devices", list_devices)
    compute._prepared.cache_clear()
    assert {compute.prepare_device() for _ in range(3)} == {compute.device()}
    assert looked == ["GPU"]
