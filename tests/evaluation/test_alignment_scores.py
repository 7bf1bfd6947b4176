import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CheckpointError, DataError, UserError
from common.registry import import_object
from evaluation.alignment.cknna import cknna_terms
from evaluation.alignment.comparison import compare_files, expand_patterns
from evaluation.alignment.conditions import GRID, PUBLISHED, expand
from evaluation.alignment.extraction import find_conditions
from evaluation.alignment.features import FeatureSet, match_images, read_features, write_features
from evaluation.alignment.heat_map import HeatMap, heat_map_svg
from evaluation.alignment.metrics import METRICS, MetricOptions
from evaluation.alignment.preparation import prepare
from evaluation.alignment.scores import Scoring, score_matrix
from evaluation.alignment.se_cknna import Aggregation, score_conditions
from evaluation.alignment.spaces import FeatureSpace


def drawn(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def named(features, prefix="image", **options):
    return FeatureSet(features, tuple(f"{prefix}_{i:04d}" for i in range(len(features))), **options)


def score(metric, a, b, k=5, eps=0.0):
    return import_object(METRICS[metric].target)(FeatureSpace(a), FeatureSpace(b), MetricOptions(k, eps))


def related(n=60):
    """Two sets of prepared features that share half of what they say."""
    common = drawn(n, 6)
    return prepare(torch.cat([common, drawn(n, 6, 1)], 1)), prepare(torch.cat([common, drawn(n, 9, 2)], 1))


# --- metrics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_a_score_ignores_rotations_of_features_their_scale_and_the_order_of_images(metric, seed):
    a, b = (features.double() for features in related())
    turn = torch.linalg.qr(drawn(a.shape[1], a.shape[1], seed).double()).Q
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    scale = 1.0 if "rbf" in metric else 3.0
    found = score(metric, scale * (a @ turn)[order], b[order])
    if metric == "svcca":  # standardises columns, which a rotation mixes
        found = score(metric, scale * a[order], b[order])
    assert found == pytest.approx(score(metric, a, b), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_features_agree_with_themselves_more_than_with_others(metric):
    a, b = related()
    best = {"lcs_knn": 5.0}.get(metric, 1.0)
    own = score(metric, a, a)
    if metric == "cycle_knn":  # asks whether an image is a neighbour of its neighbours, which need not be so
        assert score(metric, a, b) < own <= 1
    else:
        assert own == pytest.approx(best, abs=1e-6) and score(metric, a, b) < 0.9 * best


def test_with_all_neighbours_cknna_is_unbiased_linear_cka():
    a, b = related()
    assert score("cknna", a, b, k=59) == pytest.approx(score("cka_linear", a, b), abs=1e-9)


def test_cknna_depends_on_the_order_of_its_arguments():
    a, b = related()
    assert 0 < abs(score("cknna", a, b) - score("cknna", b, a)) < 0.02


def test_cknna_equals_its_definition_on_dense_matrices():
    a, b = (features.double() for features in related(40))

    def masked(features):
        kernel = features @ features.T
        kernel.fill_diagonal_(-torch.inf)
        mask = torch.zeros_like(kernel).scatter_(1, kernel.topk(7, dim=1).indices, 1)
        return kernel.fill_diagonal_(0), mask

    def hsic(p, q):
        n = len(p)
        middle = (p * q.T).sum() + p.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (p @ q).sum()
        return middle / (n * (n - 3))

    (k, mask_k), (l, mask_l) = masked(a), masked(b)
    both = mask_k * mask_l
    own = hsic(mask_k * k, mask_k * k) * hsic(mask_l * l, mask_l * l)
    assert score("cknna", a, b, k=7) == pytest.approx((hsic(both * k, both * l) / own.sqrt()).item(), abs=1e-12)


def test_neighbours_do_not_depend_on_the_block_of_rows(monkeypatch):
    a, b = related()
    whole = cknna_terms(FeatureSpace(a.double()), FeatureSpace(b.double()), 5)
    monkeypatch.setattr("evaluation.alignment.spaces.BLOCK_ELEMENTS", 7 * 60)
    assert cknna_terms(FeatureSpace(a.double()), FeatureSpace(b.double()), 5) == whole


def test_wrong_numbers_of_neighbours_and_images_are_refused():
    a, b = related()
    with pytest.raises(UserError, match="k: found 60 neighbours among 60 images, expected 1 to 59"):
        score("mutual_knn", a, b, k=60)
    with pytest.raises(UserError, match="k: found 1, expected at least 2"):
        score("cknna", a, b, k=1)
    with pytest.raises(UserError, match="of at least 4 images"):
        FeatureSpace(a[:3])


def test_features_that_are_all_alike_have_no_score():
    assert math.isnan(score("cka_linear", torch.zeros(10, 3), drawn(10, 3)))


# --- files and matching --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_feature_file_gives_back_what_was_written(tmp_path, suffix):
    records = tuple({"mode": "equivariance", "rotation": 90 * (i % 4), "scale": 0.5} for i in range(3))
    written = FeatureSet(
        drawn(3, 4), ("a", "überraschung", ""), records, {"condition": "equivariance", "num_images": 3}
    )
    write_features(tmp_path / f"f{suffix}", written)
    found = read_features(tmp_path / f"f{suffix}")
    assert torch.equal(found.features, written.features)
    assert (found.names, found.transformations, found.facts) == (written.names, records, written.facts)


def test_a_published_file_is_read_with_its_numbers_in_tensors(tmp_path):
    records = [{"mode": "equivariance", "rotation": torch.tensor([90]), "scale": torch.tensor([0.5])}]
    torch.save({"features": drawn(1, 4), "names": ["a"], "transformations": records}, tmp_path / "f.pt")
    assert read_features(tmp_path / "f.pt").transformations == ({"mode": "equivariance", "rotation": 90, "scale": 0.5},)


class Foreign:
    pass


def test_files_that_are_no_feature_files_are_refused(tmp_path):
    def saved(content):
        torch.save(content, tmp_path / "f.pt")
        return read_features(tmp_path / "f.pt")

    with pytest.raises(CheckpointError, match="could execute code; it is never unpickled"):
        saved({"features": drawn(2, 3), "names": ["a", "b"], "note": Foreign()})
    with pytest.raises(DataError, match="found the keys model, expected a feature file with `features` and `names`"):
        saved({"model": 1})
    with pytest.raises(DataError, match="found 2 rows of features, 1 names"):
        saved({"features": drawn(2, 3), "names": ["a"]})
    with pytest.raises(DataError, match="holds no image"):
        saved({"features": torch.zeros(0, 3), "names": []})
    with pytest.raises(DataError, match="names: found NoneType, expected a list of texts"):
        saved({"features": drawn(2, 3), "names": None})
    with pytest.raises(DataError, match=r"features: found int64 of shape \[2\]"):
        saved({"features": torch.arange(2), "names": ["a", "b"]})
    with pytest.raises(DataError, match="features of 1 images are not finite, such as b"):
        saved({"features": torch.tensor([[1.0], [math.nan]]), "names": ["a", "b"]})
    with pytest.raises(DataError, match="does not exist; expected a feature file"):
        read_features(tmp_path / "none.pt")
    with pytest.raises(DataError, match=r"found the suffix '.npy', expected .pt or .safetensors"):
        read_features(tmp_path / "f.npy")
    (tmp_path / "f.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="no safetensors file, or damaged"):
        read_features(tmp_path / "f.safetensors")


def test_images_are_matched_by_name_and_repeated_rows_count_once():
    a = named(drawn(50, 3))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    b = FeatureSet(
        torch.cat([drawn(50, 4, 1)[order], torch.zeros(2, 4)]),
        tuple(a.names[i] for i in order) + a.names[:2],
    )
    matched = match_images([a, b])
    assert matched.names == a.names and matched.left_out == 0
    assert torch.equal(matched.features[1], drawn(50, 4, 1))


def test_files_of_other_images_are_an_error():
    a, b = named(drawn(50, 3), origin="a.pt"), named(drawn(50, 3), prefix="other", origin="b.pt")
    with pytest.raises(DataError, match=r"a.pt and b.pt: found 0 images common to all files of up to 50 \(0.0%\)"):
        match_images([a, b])
    most = FeatureSet(a.features[:47], a.names[:47], origin="b.pt")
    with pytest.raises(DataError, match=r"47 images .* \(94.0%\), expected at least 95.0%; for example 'image_0047'"):
        match_images([a, most])
    assert match_images([a, most], min_overlap=0.9).left_out == 3


# --- scores, conditions, aggregation -------------------------------------------------------------------------------


def test_a_matrix_holds_the_score_of_every_pair():
    a, b = (named(features) for features in related())
    found = score_matrix([a, b], [b], Scoring(k=5, eps=1e-6, clip="none")).values
    assert found.shape == (2, 1)
    assert found[0].item() == pytest.approx(score("cknna", *related(), eps=1e-6), abs=1e-7)
    assert found[1].item() == pytest.approx(1, abs=1e-3)


def test_standard_errors_agree_with_the_spread_over_independent_images():
    """Linear CKA of 400 images: from single sets of images, and between 40 sets."""
    mixing = [drawn(8, 12, seed) for seed in (100, 101)]

    def score_of(seed, halves=0):
        generator = torch.Generator().manual_seed(seed)
        common = torch.randn(400, 8, generator=generator)
        sets = [named(common @ m + torch.randn(400, 12, generator=generator)) for m in mixing]
        return score_matrix(sets[:1], sets[1:], Scoring("cka_linear", halves=halves))

    spread = torch.stack([score_of(seed).values for seed in range(40)]).std().item()
    estimates = torch.stack([score_of(seed, halves=20).standard_errors() for seed in range(1000, 1006)])
    assert estimates.mean().item() == pytest.approx(spread, rel=0.25)


def test_halves_that_are_too_small_for_the_neighbours_are_refused_by_name():
    sets = [named(features[:13]) for features in related()]
    with pytest.raises(UserError, match=r"halves: half of 13 images are 6, expected at least 11 for a standard error"):
        score_matrix(sets[:1], sets[1:], Scoring(k=10, halves=2))
    assert len(score_matrix(sets[:1], sets[1:], Scoring(k=5, halves=2)).halves) == 2


def test_a_prefix_without_the_output_of_a_model_is_told_which_outputs_there_are(tmp_path):
    for layer in (1, -1):
        write_features(tmp_path / f"dino_layer_{layer}_clean.pt", named(drawn(8, 4)))
    with pytest.raises(DataError, match=r"dino_clean\.pt: does not exist.*name one: .*dino_layer_-1, .*dino_layer_1\."):
        find_conditions(str(tmp_path / "dino"), ["clean"])
    with pytest.raises(DataError, match=r"vae_clean\.pt: does not exist.*see extract\.py"):
        find_conditions(str(tmp_path / "vae"), ["clean"])


def conditioned(seed, n=60):
    return {
        name: named(drawn(n, 6) + 0.1 * (i + 1) * drawn(n, 6, seed + i)) for i, name in enumerate(("clean", *PUBLISHED))
    }


def test_aggregation_follows_its_conditions_weights_and_reference():
    first, second, scoring = conditioned(10), conditioned(30), Scoring(k=5)

    def aggregated(**how):
        return score_conditions([first], [second], Aggregation(**how), scoring)

    found = aggregated()
    values = {name: scores.values.item() for name, scores in found.by_condition.items()}
    assert list(values) == ["clean", *PUBLISHED]
    assert found.mean.values.item() == pytest.approx(sum(values[name] for name in PUBLISHED) / 5)
    assert found.relative_change.item() == pytest.approx(found.mean.values.item() / values["clean"] - 1)
    assert aggregated(include_clean=True).mean.values.item() == pytest.approx(sum(values.values()) / 6)
    weighted = aggregated(conditions=("noise_0.050", "noise_0.100"), weights={"noise_0.050": 3.0})
    assert weighted.mean.values.item() == pytest.approx((3 * values["noise_0.050"] + values["noise_0.100"]) / 4)
    fixed = aggregated(reference="clean").by_condition["noise_0.200"].values.item()
    assert fixed == pytest.approx(score_matrix([first["noise_0.200"]], [second["clean"]], scoring).values.item())


def test_wrong_aggregations_are_refused():
    with pytest.raises(UserError, match="weights: found clean=1, expected weights from 0 of equivariance"):
        Aggregation(weights={"clean": 1.0})
    with pytest.raises(UserError, match="weights: all are 0"):
        Aggregation(("noise_0.050",), weights={"noise_0.050": 0.0})
    with pytest.raises(UserError, match="expected at least one transformation and not `clean`"):
        Aggregation(("clean",))


def test_images_that_were_transformed_differently_are_an_error():
    first, second = conditioned(10), conditioned(30)
    for sets, rotation in ((first, 90), (second, 180)):
        old = sets["equivariance"]
        records = tuple({"mode": "equivariance", "rotation": rotation, "scale": 0.5} for _ in old.names)
        sets["equivariance"] = FeatureSet(old.features, old.names, records)
    with pytest.raises(DataError, match=r"image_0000 was transformed by .*'rotation': 90.* other; extract both"):
        score_conditions([first], [second], Aggregation(), Scoring(k=5))
    del second["noise_0.100"]
    with pytest.raises(DataError, match=r"features of the condition noise_0\.100 are not beside it"):
        score_conditions([first], [second], Aggregation(("noise_0.100",)), Scoring(k=5))


def test_conditions_are_known_by_name():
    assert [c.name for c in expand(["published", "clean", "noise_0.050"])] == [*PUBLISHED, "clean"]
    assert len(GRID) == 12 and expand(["rotation_90"])[0].value == 90
    for name in ("noise", "rotation_45", "scale_1.50", "claen"):
        with pytest.raises(UserError, match=f"condition '{name}' is not known"):
            expand([name])


# --- results -------------------------------------------------------------------------------------------------------


def test_results_are_written_as_json_and_in_the_published_layout(tmp_path):
    for name, features in zip("ab", related()):
        write_features(tmp_path / f"{name}.pt", named(features))
    paths = [tmp_path / "a.pt"], [tmp_path / "b.pt"]
    found = compare_files(*paths, [Scoring("cknna", 5), Scoring("cknna", 10), Scoring("svcca", 5)], trials=2)
    found.write(tmp_path / "r.pt")
    published = torch.load(tmp_path / "r.pt", weights_only=True)
    assert published["metrics_computed"] == ["cknna_k5", "cknna_k10", "svcca"] and published["trials"] == 2
    only = published["results"]["cknna_k5"]
    assert only["std"] == 0 and only["scores"] == [only["mean"]] * 2 and only["mean_time"] > 0
    found.write(tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    assert [(s["metric"], s["k"]) for s in content["scores"]] == [("cknna", 5), ("cknna", 10), ("svcca", None)]
    assert content["scores"][0]["value"] == only["mean"] and content["protocol"]["eps"] == 1e-6
    assert len(content["files"][str(tmp_path / "a.pt")]["sha256"]) == 64


def test_patterns_give_files_in_natural_order(tmp_path):
    for name in ("block_10.pt", "block_2.pt", "final.pt"):
        (tmp_path / name).touch()
    found = expand_patterns([f"{tmp_path}/block_*.pt", f"{tmp_path}/*.pt"])
    assert [path.name for path in found] == ["block_2.pt", "block_10.pt", "final.pt"]
    with pytest.raises(DataError, match="no file matches; quote patterns"):
        expand_patterns([f"{tmp_path}/blok_*.pt"])


def test_a_heat_map_draws_every_cell_and_frames_the_best_of_each_column():
    values = torch.tensor([[0.1, 0.4], [0.3, math.nan], [0.2, 0.2]])
    picture = heat_map_svg(HeatMap("a <title>", ["r1", "r2", "r3"], ["c1", "c2"], values))
    assert picture.count("<title>") == 5 and ">0.300</text>" in picture and "a &lt;title&gt;" in picture
    assert picture.count('class="best"') == 3  # two columns and the legend
