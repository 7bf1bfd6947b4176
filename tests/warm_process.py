"""What the warm process imports, so that no process which is forked from it need do so."""

import gc

import timm  # noqa: F401
import torchvision.transforms  # noqa: F401

import tests.evaluation.prefetch_process
import tests.faults.child  # noqa: F401

gc.freeze()  # the forks need not look for garbage among it either, which would copy every page that they share
