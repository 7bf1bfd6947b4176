"""Files and networks on one machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from evaluation.batches import Turns


@pytest.mark.parametrize(
    ("device", "threads", "apart"), [("cpu", 10**6, True), ("cpu", 0, False), ("cuda", 10**6, False)]
)
def test_files_wait_for_a_network_that_has_all_cores(monkeypatch, device: str, threads: int, apart: bool) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    turns = Turns(torch.device(device))
    with ThreadPoolExecutor(1) as pool:
        with turns.of_network():
            reading = pool.submit(turns.of_files(lambda name: name.upper()), "a")
            if apart:
                with pytest.raises(TimeoutError):
                    reading.result(timeout=0.2)
            else:
                assert reading.result(timeout=10) == "A"
        assert reading.result(timeout=10) == "A"


def test_files_go_on_after_a_network_has_failed(monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10**6)
    turns = Turns(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), turns.of_network():
        raise ZeroDivisionError
    assert turns.of_files(len)("abc") == 3
