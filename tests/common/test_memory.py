import resource
import sys
from multiprocessing.connection import Connection

import pytest
import torch

from common.memory import keep_freed_memory
from tests.forkserver import CONTEXT


def page_faults_of_large_tensors() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**23)  # 32 MiB, 8192 pages, above every threshold that glibc adapts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def report_page_faults(reports: Connection) -> None:
    before = page_faults_of_large_tensors()
    keep_freed_memory()
    page_faults_of_large_tensors()
    reports.send((before, page_faults_of_large_tensors()))


@pytest.mark.skipif(sys.platform != "linux", reason="tells glibc")
def test_freed_memory_is_used_again_instead_of_being_cleared_by_the_system():
    reports, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=report_page_faults, args=(sender,))
    process.start()
    assert reports.poll(60)
    before, after = reports.recv()
    process.join()
    assert before > 10 * 8000
    assert after < 1000
