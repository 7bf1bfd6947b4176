"""The alignment metrics by name. Imports no torch, so that a configuration can name them.

Adding one: write a function (FeatureSpace, FeatureSpace, MetricOptions) -> float, and add a line to `METRICS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.registry import Registry

DEFAULT_K = 10
DEFAULT_EPS = 1e-6


@dataclass(frozen=True)
class MetricOptions:
    """What a score depends on besides the two sets of features.

    Args:
        k: number of neighbours; not used by metrics that look at all pairs.
        eps: added to the denominator of CKNNA and CKA. Published scores use 1e-6, which is not negligible for many
            images: see docs/alignment.md.
    """

    k: int = DEFAULT_K
    eps: float = DEFAULT_EPS


@dataclass(frozen=True)
class Metric:
    """A metric of the registry.

    Args:
        target: the function, as `module:name`.
        uses_k: it depends on the number of neighbours.
        title: what it is, for tables.
    """

    target: str
    uses_k: bool
    title: str


METRICS: Registry = Registry(
    "alignment metric",
    {
        "cknna": Metric("evaluation.alignment.cknna:cknna", True, "CKNNA"),
        "cknna_biased": Metric("evaluation.alignment.cknna:cknna_biased", True, "CKNNA, biased HSIC"),
        "cka_linear": Metric("evaluation.alignment.cka:cka_linear", False, "linear CKA"),
        "cka_linear_biased": Metric("evaluation.alignment.cka:cka_linear_biased", False, "linear CKA, biased HSIC"),
        "cka_rbf": Metric("evaluation.alignment.cka:cka_rbf", False, "RBF CKA"),
        "cka_rbf_biased": Metric("evaluation.alignment.cka:cka_rbf_biased", False, "RBF CKA, biased HSIC"),
        "mutual_knn": Metric("evaluation.alignment.neighbour_lists:mutual_knn", True, "mutual kNN"),
        "cycle_knn": Metric("evaluation.alignment.neighbour_lists:cycle_knn", True, "cycle kNN"),
        "lcs_knn": Metric("evaluation.alignment.neighbour_lists:lcs_knn", True, "LCS kNN"),
        "edit_distance_knn": Metric(
            "evaluation.alignment.neighbour_lists:edit_distance_knn", True, "edit-distance kNN"
        ),
        "svcca": Metric("evaluation.alignment.svcca:svcca", False, "SVCCA"),
    },
)
