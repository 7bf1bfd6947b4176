"""The root configuration: every problem of a file in one report, before anything is built."""

from __future__ import annotations

import copy
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.config import Source, read_yaml
from common.errors import ConfigError
from common.registry import closest
from configs.schema import EXPERIMENTS, check, dump, load_config
from tests.configs.schema_keys import schema_keys

CONFIGS = Path(__file__).parents[2] / "configs"
STAGE_0 = CONFIGS / "vfm_vae_f16d32_siglip2_stage_0_strong_alignment.yaml"
DETAILS = CONFIGS / "vfm_vae_details.yaml"

RUNS = sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.endswith("_base"))
ALL_KEYS = read_yaml(DETAILS)

FIVE_MISTAKES = f"""
base: {STAGE_0}
training: {{batch_size: "512"}}
decoder: {{use_gausian_blur: true}}
encoder: {{patch_in_dimensions: [1024, 1024]}}
data: {{resolution: 200, path: no/such/folder}}
"""


def report_of(path, overrides=(), require_runnable=False) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides, require_runnable)
    return [line.strip() for line in str(error.value).splitlines()]


def has(lines: list[str], text: str) -> bool:
    return any(line.startswith(text) for line in lines)


KEYS = schema_keys(EXPERIMENTS["vfm_vae"])


# --- the five mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("decoder.use_gausian_blur=true", "decoder.use_gausian_blur: unknown key. Closest: use_gaussian_blur."),
        ("lossess.kl.weight=1", "lossess: unknown key. Closest: losses."),
        (
            "losses.semantic={weight: 1}",
            "losses.semantic: belongs to the system vfmtok, not to vfm_vae; remove the term.",
        ),
        ("batch_size=4", "batch_size: unknown key. Closest: training.batch_size."),
        ("training.batch_size=many", "training.batch_size: found 'many', expected a whole number."),
        (
            "run=5",
            "run: found 5, expected a section, that is a mapping of some of the keys run_dir, random_seed, device.",
        ),
        ("losses=[kl]", "losses: found ['kl'], expected a section, that is a mapping of some of the keys l1_pixel,"),
        ("encoder=null", "encoder: found null, expected a section, that is a mapping of some of the keys vfm_name,"),
        (
            "encoder.patch_in_dimensions=[1024, 1024]",
            "encoder.patch_from_layers: 3 layers [0, 12, -1], but encoder.patch_in_dimensions has 2 and "
            "latent.patch_out_dimensions has 3 values; give one value per layer in all three lists.",
        ),
        ("decoder.attn_depths=[2]", "decoder.attn_depths: 1 depths [2] for 3 attention blocks [0, 1, 2];"),
        (
            "data.resolution=250",
            "data.resolution: 250 is not divisible by latent.resolution_compression_factor 16.",
        ),
        (
            "losses.multiscale_pixel.weights.7=1",
            "losses.multiscale_pixel: found resolution 7, expected some of [8, 16, 32, 64, 128]",
        ),
        (
            "discriminator.use_stylegan_t_discriminator=false",
            "losses.stylegan_t.weight: found 1, which needs discriminator.use_stylegan_t_discriminator: true.",
        ),
        (
            "losses.stylegan_t=null",
            "discriminator.use_stylegan_t_discriminator: true, but nothing uses it; give losses.stylegan_t or losses."
            "matching_aware a weight above 0, or set it false.",
        ),
        (
            "discriminator.use_patchgan_discriminator=true",
            "discriminator.use_patchgan_discriminator: true, but nothing uses it; give losses.patchgan or losses."
            "feature_matching a weight above 0, or set it false.",
        ),
        (
            "training.batch_size=9",
            "training.batch_size: leaves micro-batches of 9 images; the discriminators normalise over groups of at "
            "most 8, so give at most 8 or a multiple of 8 images.",
        ),
        (
            "discriminator={use_stylegan_t_discriminator: true, backbone: random_tiny, dino_path: dino.pth}",
            'discriminator.dino_path: found "dino.pth", but discriminator.backbone is random_tiny.',
        ),
        (
            "losses.matching_aware={weight: 1}",
            "losses.matching_aware.weight: found 1, which needs decoder.conditional: true; else no discriminator sees",
        ),
        (
            "losses={l1_pixel: null, l2_pixel: null, stylegan_t: {weight: 1, use_disc_warmup: true}}",
            "losses.stylegan_t.use_disc_warmup: true waits for losses.l1_pixel or losses.l2_pixel to settle; give it",
        ),
        (
            "losses={stylegan_t: null, patchgan: {weight: 1, use_disc_warmup: true}}",
            "losses.patchgan.use_disc_warmup: true waits for losses.stylegan_t to settle; give it a weight above 0.",
        ),
        ("discriminator.blur_init_sigma=-1", "discriminator.blur_init_sigma: found -1, expected"),
        ("data.max_size=100", "data.max_size: found 100, which only image folders and zip files have; data.source is"),
        ("data.xflip=true", "data.xflip: found true, which only image folders and zip files have; data.source is"),
        (
            "losses.vq={weight: 1}",
            "losses.vq.weight: found 1, which needs latent.compression_mode: discrete, found continuous; remove the",
        ),
        (
            "losses.entropy={weight: 0.1}",
            "losses.entropy.weight: found 0.1, which needs latent.compression_mode: discrete, found continuous;",
        ),
        (
            "latent.compression_mode=discrete",
            "losses.kl.weight: found 1e-06, which needs latent.compression_mode: continuous, found discrete;",
        ),
        (
            "latent.compression_mode=discrete",
            "losses.vq: has no weight, but latent.compression_mode is discrete: only this term and losses.entropy move",
        ),
        ("losses.kl.end_kimg=0", "losses.kl: end_kimg 0 is not after start_kimg 0; the term would never count."),
        (
            "validation={path: x, perceptual: none, best_metric: lpips}",
            "validation.best_metric: found lpips, but validation.perceptual is none, expected lpips;",
        ),
        (
            "validation={path: x, frechet: efficientnet_lite0, best_metric: rfid}",
            "validation.best_metric: found rfid, but validation.frechet is efficientnet_lite0, expected inception;",
        ),
        (
            "validation={path: x, frechet: none, inception_path: y.pth}",
            'validation.inception_path: found "y.pth", but validation.frechet is none.',
        ),
        ("validation={num_images: 5}", "validation.path: missing. It has no default; give it a value."),
        (
            "system=vfm_vea",
            "system: found 'vfm_vea', expected one of vfm_vae, vfmtok, lightningdit, reg, gpt_c2i. Closest: vfm_vae.",
        ),
        (
            "decoder.use_cross_attn=true",
            "decoder.use_cross_attn: true, but it looks at tokens of texts; set decoder.conditional: true and "
            "label_type: cls2text or text.",
        ),
        (
            "decoder.use_convnext=false",
            "equivariance.use_equivariance_regularization: true, but it changes the size of the latent, and with "
            "decoder.use_convnext: false noise maps fix it.",
        ),
        (
            "decoder.use_multiscale_output=false",
            "losses.multiscale_pixel: needs decoder.use_multiscale_output: true, found false.",
        ),
        (
            "discriminator.projected_kind=vfmtok",
            "discriminator.diffaug: true, but discriminator.projected_kind vfmtok sees images without augmentation;",
        ),
        (
            "discriminator.use_stylegan2_discriminator=true",
            "discriminator.use_stylegan2_discriminator: true, but only losses.vfmtok_gan of the system vfmtok uses it;",
        ),
        ("training.init_kimg=20000", "training.total_kimg: found 20000, expected more than training.init_kimg 20000."),
    ],
)
def test_a_mistake_is_reported_by_its_key(override, problem):
    assert has(report_of(STAGE_0, [override]), problem)


def test_the_clip_loss_needs_labels_that_are_texts():
    lines = report_of(STAGE_0, ["losses.clip={weight: 0.5}", "data.label_type=none"])
    assert has(lines, "losses.clip.weight: found 0.5, which needs data.label_type cls2text or text, found none.")


CONDITIONAL = ["decoder.conditional=true", "data.label_type=cls2id"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            [*CONDITIONAL, "decoder.label_type=cls2id", "decoder.label_dim=0"],
            "decoder.label_dim: found 0, expected the number of classes: the decoder is conditional on class indices.",
        ),
        (
            CONDITIONAL,
            "decoder.conditional: true with decoder.label_type cls2text needs such labels; set data.label_type to "
            "cls2text or text, found cls2id.",
        ),
        (
            ["decoder.conditional=true", "encoder.family=dinov2"],
            "decoder.conditional: true with label_type cls2text, but an encoder of the family dinov2 has no text "
            "model; use one of siglip2",
        ),
        (
            ["decoder.use_convnext=false", "decoder.channel_base=4096"],
            "decoder.channel_base: gives block 5 16 channels, expected a multiple of 32 for its group norm.",
        ),
    ],
)
def test_relations_of_decoder_variants_are_reported(overrides, problem):
    assert has(report_of(STAGE_0, overrides), problem)


def test_a_decoder_of_every_kind_is_accepted():
    for overrides in (
        [*CONDITIONAL, "decoder.label_type=cls2id"],
        [
            "decoder.conditional=true",
            "decoder.use_cross_attn=true",
            "data.label_type=cls2text",
            "data.cls_to_text_path=imagenet_info/imagenet_1k_cls_to_text.json",
        ],
        [
            "decoder.use_convnext=false",
            "decoder.use_multiscale_output=false",
            "losses.multiscale_pixel=null",
            "equivariance.use_equivariance_regularization=false",
        ],
    ):
        load_config(STAGE_0, overrides)


def test_a_missing_path_is_reported_with_its_nearest_neighbour(tmp_path):
    (tmp_path / "shards").mkdir()
    lines = report_of(STAGE_0, [f"data.path={tmp_path}/shard"], require_runnable=True)
    assert has(lines, f"data.path: found '{tmp_path}/shard', which does not exist (closest in that folder: shards).")
    assert has(lines, "encoder.vfm_name: found './pretrained/siglip2-large-patch16-512', which does not exist;")
    filter_line = next(line for line in lines if line.startswith("data.filter_keys_path"))
    assert "imagenet_info/scan_keys.py writes it" in filter_line


def test_all_mistakes_of_a_file_are_in_one_report(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(FIVE_MISTAKES)
    lines = report_of(path, require_runnable=True)
    assert has(lines, "training.batch_size: found '512', expected a whole number without quotes.")
    assert has(lines, "decoder.use_gausian_blur: unknown key. Closest: use_gaussian_blur.")
    assert has(lines, "encoder.patch_from_layers: 3 layers [0, 12, -1], but encoder.patch_in_dimensions has 2")
    assert has(lines, "data.resolution: 200 is not divisible by latent.resolution_compression_factor 16.")
    assert has(lines, "data.path: found 'no/such/folder', which does not exist.")
    assert lines[0] == f"{path}: {len(lines) - 1} problems"


def test_a_bad_file_is_refused_within_two_cpu_seconds_and_without_torch(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(FIVE_MISTAKES)
    program = (
        "import sys\n"
        "from common.errors import ConfigError\n"
        "from configs.schema import load_config\n"
        "try:\n    load_config(sys.argv[1], require_runnable=True)\n"
        "except ConfigError as error:\n    print(error)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'timm', 'PIL'} & set(sys.modules)\n"
        "sys.exit(3 if heavy else 0)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, cwd=CONFIGS.parent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 0, run.stderr
    assert "use_gausian_blur" in run.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("latent.vocab_size=100", "latent.vocab_size: found 100, expected a multiple of latent.num_codebooks 8, for"),
        ("latent.vocab_width=12", "latent.vocab_width: found 12, expected a multiple of latent.num_codebooks 8, for"),
        (
            "latent.vocab_width=40",
            "latent.patch_out_dimensions: the fused layers have 768 channels (64 x 4 + 64 x 4 + 64 x 4) and the head",
        ),
    ],
)
def test_codebooks_that_do_not_fit_are_reported_in_discrete_mode_alone(override, problem):
    discrete = ["latent.compression_mode=discrete", "losses.kl=null", "losses.vq={weight: 1}"]
    assert len(report_of(STAGE_0, [*discrete, override])) == 2
    assert has(report_of(STAGE_0, [*discrete, override]), problem)
    load_config(STAGE_0, [override])


def test_codebooks_need_no_loss_where_they_are_not_trained():
    changes = ["latent.compression_mode=discrete", "losses.kl=null", "training.train_mode=train_decoder"]
    assert load_config(STAGE_0, changes).config.latent.head_channels() == 64


# --- what is not here --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["https://host/{0..3}.tar", "pipe:cat a.tar", "no/such/folder/{0..3}.tar"])
def test_shards_that_are_named_are_not_looked_for_before_the_run(path):
    lines = report_of(STAGE_0, [f"data.path={path}"], require_runnable=True)
    assert not has(lines, "data.path: ")


def test_warnings_list_what_a_run_would_be_refused_for():
    loaded = load_config(STAGE_0)
    assert "data.path: found 'datasets/imagenet-1k-wds', which does not exist." in loaded.warnings()


# --- any misspelt key ----------------------------------------------------------------------------------------------


def spoil(name: str, position: int, kind: str) -> str:
    """One slip of the keyboard."""
    position %= len(name)
    if kind == "drop":
        return name[:position] + name[position + 1 :]
    if kind == "double":
        return name[:position] + name[position] + name[position:]
    return name[:position] + name[position : position + 2][::-1] + name[position + 2 :]


@settings(max_examples=100, deadline=None)
@given(key=st.sampled_from(KEYS), position=st.integers(0, 60), kind=st.sampled_from(["drop", "double", "swap"]))
def test_any_misspelt_key_is_reported_with_its_neighbour(key, position, kind):
    section, _, leaf = key.rpartition(".")
    misspelt = spoil(leaf, position, kind)
    siblings = [k.rpartition(".")[2] for k in KEYS if k.rpartition(".")[0] == section]
    assume(misspelt and misspelt not in schema_leaves())
    dotted = f"{section}.{misspelt}" if section else misspelt
    target = values = copy.deepcopy(ALL_KEYS)
    for part in section.split(".") if section else []:
        target = target[part]
    target[misspelt] = target.pop(leaf)
    lines = report_of_values(values)
    named = next(line for line in lines if line.startswith(f"{dotted}: unknown key."))
    neighbour = named.split("Closest: ")[1].removesuffix(".")
    assert neighbour == leaf or closest(misspelt, [leaf, neighbour]) == neighbour
    assert neighbour in siblings or not section


def schema_leaves() -> set[str]:
    return {key.rpartition(".")[2] for key in KEYS}


def report_of_values(values) -> list[str]:
    with pytest.raises(ConfigError) as error:
        check(Source("values", values))
    return [line.strip() for line in str(error.value).splitlines()]


def test_the_shared_base_of_the_stages_lacks_only_the_folder_of_the_run():
    lines = report_of(CONFIGS / "vfm_vae_f16d32_siglip2_base.yaml")
    assert lines[1:] == ["run.run_dir: missing. It has no default; give it a value."]


def test_a_preset_lies_between_the_file_and_the_overrides():
    plain = load_config(STAGE_0).config
    fast = load_config(STAGE_0, ["training.precision=fp32"], presets=["fast"]).config
    assert (plain.training.precision, fast.training.precision) == ("fp16", "fp32")
    shared = ("share_generator_forward", "share_decoder_backward", "channels_last", "fused_optimizer")
    assert not any(getattr(plain.training, name) for name in shared)
    assert all(getattr(fast.training, name) for name in shared)
    assert dump(fast) | {"training": None} == dump(plain) | {"training": None}


def test_a_preset_of_another_system_is_refused_by_key_and_file():
    with pytest.raises(ConfigError, match=r"training\.share_decoder_backward: unknown key.*presets/fast\.yaml"):
        load_config(CONFIGS / "lightningdit_xl1_stage_0.yaml", presets=["fast"])


def test_recomputed_blocks_must_exist():
    lines = report_of(STAGE_0, ["training.recompute_above_resolution=256"])
    assert lines[1:] == [
        "training.recompute_above_resolution: found 256, expected less than some block has: [8, 16, 32, 64, 128, 256]; "
        "or null. (given in --set)"
    ]


# --- dump and load -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_dumped_config_loads_to_an_equal_one(path, tmp_path):
    config = load_config(path).config
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(dump(config)))
    assert load_config(copy).config == config
