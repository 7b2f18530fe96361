"""Models against timm's own outputs, and checkpoints, the good ones and those that must be refused."""

import inspect
import os
import pickle
from pathlib import Path

from ltvit_lib import longtail, losses, models, networks, recipes
from ltvit_lib.mae import MaskedAutoencoder

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import refused
from safetensors.torch import save_file
from torch import nn

PLAIN, DISTILLED = "vit_w64d4_patch2_8", "deit_w64d4_patch2_8_distilled"
SMALL = dict(num_classes=5, depth=1)


@pytest.fixture
def images(rng):
    return torch.randn(4, 3, 8, 8, generator=rng)


# --- building --------------------------------------------------------------------------------------------------


def test_compact_vits_are_timm_models():
    for name in models.compact_names():
        assert timm.is_model(name)
        model = timm.create_model(name, num_classes=7, depth=1)
        size = model.patch_embed.img_size[0]
        assert model.eval()(torch.zeros(1, 3, size, size)).shape == (1, 7)
        assert hasattr(model, "dist_token") == name.startswith("deit")


def test_timm_names_work():
    with torch.device("meta"):
        model = models.create("deit_base_distilled_patch16_224", num_classes=10, drop_path_rate=0.1)
        small = models.create("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=100)
    assert sum(p.numel() for p in model.parameters()) == 85_815_572  # DeiT-B distilled with two heads for ten classes
    assert small.pos_embed.shape == (1, 65, 192)


def test_compact_vits_have_no_published_weights():
    refused(lambda: timm.create_model(PLAIN, pretrained=True), "no published weights")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_nonsense", {}, "no model 'vit_nonsense'"),
        ("vit_w96d6_patch4_32", dict(img_size=30), "patch size 4 .* 30: use 28 pixels"),
        ("vit_w96d6_patch4_32", dict(img_size=32, patch_size=5), "patch size 5 .* 32: use 30 pixels"),
        ("vit_tiny_patch16_224", dict(img_size=(224, 100)), "patch size 16 .* 100: use 96 pixels"),
        ("vit_tiny_patch16_224", dict(img_size=8), "use 16 pixels"),
        ("resnet18_cifar", {}, r"depth must be 6 k \+ 2"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, message):
    refused(lambda: models.create(name, **options), message)


# --- heads -----------------------------------------------------------------------------------------------------


def test_head_logits_of_a_distilled_model_are_timms_training_pair(images):
    model = models.create(DISTILLED, **SMALL)
    model.set_distilled_training(True)
    cls, dist = models.head_logits(model, images)
    for ours, timms in zip((cls, dist), model.train()(images)):
        assert torch.equal(ours, timms)
    assert not torch.equal(cls, dist)
    torch.testing.assert_close((cls + dist) / 2, model.eval()(images))


def test_head_dropout_is_that_of_timm(images):
    model = models.create(DISTILLED, drop_rate=0.5, **SMALL).train()
    model.set_distilled_training(True)
    torch.manual_seed(1)
    ours = models.head_logits(model, images)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(ours, model(images)))


@pytest.mark.parametrize("options", [dict(global_pool="avg"), dict(global_pool="token")])
def test_head_logits_of_a_plain_model_are_its_output(images, options):
    model = models.create(PLAIN, **SMALL, **options)
    cls, dist = models.head_logits(model, images)
    assert torch.equal(cls, model(images)) and dist is None


# --- CIFAR ResNets ---------------------------------------------------------------------------------------------


def test_resnet_32_has_the_published_size():
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert count(models.create("resnet32_cifar")) == 464_154
    assert count(models.resnet_cifar(32, 10, normed=True)) == 464_144


def test_option_a_shortcut_subsamples_and_pads_with_zeros(rng):
    block = networks.BasicBlock(4, 8, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)  # the branch gives 0: what is left is the shortcut
    x = torch.rand(2, 4, 6, 6, generator=rng)
    out = block(x)
    assert out.shape == (2, 8, 3, 3)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 6:].any()


@pytest.mark.parametrize("width", [8, 16])
def test_resnet_shapes(width):
    model = models.resnet_cifar(8, 7, width=width, in_chans=1)
    assert model.forward_features(torch.zeros(2, 1, 32, 32)).shape == (2, 4 * width, 8, 8)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(("name", "path"), [("resnet18", "fc"), ("regnetx_002", "head.fc")])
def test_any_cnn_of_timm_takes_the_cosine_classifier(rng, name, path):
    model = models.create(name, normed=True, num_classes=7).eval()
    assert isinstance(model.get_submodule(path), models.NormedLinear)
    assert model.get_classifier() is model.get_submodule(path)
    assert models.logit_scale(model) == 30.0
    assert model(torch.randn(2, 3, 32, 32, generator=rng)).abs().max() <= 1 + 1e-6


def test_normed_classifier_gives_cosines(rng):
    head = models.NormedLinear(6, 4)
    x = torch.randn(50, 6, generator=rng) * 100
    out = head(x)
    assert out.abs().max() <= 1 + 1e-6
    expected = F.cosine_similarity(x[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(4))  # starts with unit rows, as LDAM's
    torch.testing.assert_close(head(-7 * head.weight).diagonal(), -torch.ones(4))


def test_logit_scale_is_ldams_for_cosines_only():
    assert models.logit_scale(models.resnet_cifar(8, normed=True)) == 30.0
    assert models.logit_scale(models.resnet_cifar(8)) == models.logit_scale(nn.Identity()) == 1.0


def test_logit_scale_of_a_recipe_is_its_loss_s():
    default = inspect.signature(losses.ldam).parameters["scale"].default
    for name in ("digits_teacher_ldam_drw_sam", "digits_mgp_ldam"):  # a cosine classifier, a linear one
        assert models.logit_scale(recipes.get(name)) == default
        assert models.logit_scale(recipes.get(name, loss_options={"scale": 12.5})) == 12.5
    for name in ("digits_vit_ce", "digits_mgp", "digits_teacher_paco_sam", "digits_deit_lt"):
        assert models.logit_scale(recipes.get(name)) == 1.0
    assert models.logit_scale(models.resnet_cifar(8, normed=True)) == default


# --- checkpoints -----------------------------------------------------------------------------------------------


def saved(model: nn.Module, path: Path, how: str) -> Path:
    state = model.state_dict()
    if how == "run":
        save_file({f"model.{k}": v for k, v in state.items()} | {"optimizer.0.0.step": torch.ones(1)}, path)
    elif how == "safetensors":
        save_file(state, path)
    else:
        wrapped = {f"module.{k}": v for k, v in state.items()}
        torch.save({"plain": state, "module": wrapped, "nested": {"epoch": 3, "state_dict": wrapped}}[how], path)
    return path


@pytest.mark.parametrize(
    ("how", "name"),
    [("run", "last.safetensors"), ("safetensors", "x.safetensors"), ("plain", "x.pth"), ("module", "x.pt"),
     ("nested", "x.pth.tar")],
)  # fmt: skip
def test_checkpoints_load(tmp_path, images, how, name):
    model = models.create(PLAIN, **SMALL).eval()
    path = saved(model, tmp_path / name, how)
    again = models.create(PLAIN, checkpoint=tmp_path if how == "run" else path, **SMALL).eval()
    assert torch.equal(again(images), model(images))


def test_a_malicious_pickle_is_not_executed(tmp_path):
    trace = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    path = tmp_path / "weights.pth"
    torch.save({"state_dict": Malicious()}, path)
    refused(lambda: models.read_weights(path), "weights.pth", "was not unpickled")
    path.write_bytes(pickle.dumps({"head.weight": Malicious()}, protocol=2))  # an older file: a bare pickle
    refused(lambda: models.read_weights(path), "was not unpickled")
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # it would have worked


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_named(tmp_path, name, share):
    how = "safetensors" if name.endswith("s") else "plain"
    path = saved(models.create(PLAIN, **SMALL), tmp_path / name, how)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(lambda: models.create(PLAIN, checkpoint=path, **SMALL), f"{name} is truncated")


@pytest.mark.parametrize("content", [b"not a checkpoint", b"\x80\x02}q", bytes(range(256)), b"<!DOCTYPE html>"])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_other_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(lambda: models.read_weights(tmp_path / name), f"{name} is truncated or")


def test_a_missing_checkpoint_says_what_to_give(tmp_path):
    refused(lambda: models.read_weights(tmp_path), "no checkpoint at .*last.safetensors: give a finished run's folder")
    refused(lambda: models.read_weights(tmp_path / "x.pth"), "no checkpoint at .*x.pth")


def test_a_list_of_tensors_is_no_state_dict(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "x.pth")
    refused(lambda: models.read_weights(tmp_path / "x.pth"), "holds a list instead of a state_dict")


@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        (PLAIN, dict(num_classes=5, depth=2), r"blocks.1.* is not in the model"),
        (PLAIN, dict(num_classes=6, depth=1), r"head.weight: \(5, 64\) here, \(6, 64\) there"),
        (DISTILLED, SMALL, r"pos_embed: \(1, 17, 64\) here, \(1, 18, 64\) there"),
        ("resnet8_cifar", dict(num_classes=5), "cls_token is missing|is missing"),
    ],
)
def test_another_architecture_is_refused(tmp_path, other, options, message):
    path = saved(models.create(other, **options), tmp_path / "x.safetensors", "safetensors")
    refused(lambda: models.create(PLAIN, checkpoint=path, **SMALL), "x.safetensors is of another architecture", message)


def test_loading_leaves_the_given_state_dict_alone():
    model = models.create("resnet8_cifar", normed=True)
    weights = dict(model.state_dict())
    before = {k: v.data_ptr() for k, v in weights.items()}
    models.load_weights(model, weights)
    assert {k: v.data_ptr() for k, v in weights.items()} == before


@pytest.mark.parametrize("normed", [False, True])
def test_released_teachers_load(tmp_path, rng, normed):
    """LDAM-DRW's names: layer1.0.conv1, linear; the cosine classifier is stored (in, out)."""
    teacher = models.resnet_cifar(20, 7, normed).eval()
    released = {}
    for key, value in teacher.state_dict().items():
        parts = key.split(".")
        if parts[0] == "blocks":
            parts = [f"layer{int(parts[1]) // 3 + 1}", str(int(parts[1]) % 3), *parts[2:]]
        if parts[0] == "head":
            parts[0], value = "linear", value.T.contiguous() if normed else value
        released["module." + ".".join(parts)] = value
    torch.save({"epoch": 200, "state_dict": released}, tmp_path / "ckpt.pth.tar")
    again = models.create("resnet20_cifar", tmp_path / "ckpt.pth.tar", num_classes=7, normed=normed).eval()
    x = torch.randn(2, 3, 32, 32, generator=rng)
    assert torch.equal(again(x), teacher(x))


# --- from a masked autoencoder ---------------------------------------------------------------------------------


@pytest.fixture
def pretrained(tmp_path):
    """A pre-training run's folder, and its model."""
    torch.manual_seed(1)
    model = MaskedAutoencoder(models.create(PLAIN, depth=1), 32, 1, 2).eval()
    saved(model, tmp_path / "last.safetensors", "run")
    return tmp_path, model


def test_the_encoder_of_a_run_starts_a_plain_vit(pretrained, images):
    path, mae = pretrained
    model = models.create(PLAIN, global_pool="avg", **SMALL).eval()
    models.load_encoder(model, path)
    latent, order = mae.encode(images, 0.0)
    patches = latent[:, 1:].gather(1, order.argsort(1)[..., None].expand(-1, -1, 64))
    normed = mae.encoder.norm(model.forward_features(images))  # average pooling has its own norm, after it
    torch.testing.assert_close(normed[:, 1:], patches, atol=1e-5, rtol=1e-5)
    assert model.pos_embed.requires_grad
    assert 0 < model.head.weight.std() < 4e-5 and not model.head.bias.any()  # MAE's and LiVT's start
    assert torch.equal(model.fc_norm.weight, torch.ones(64))


def test_positions_of_a_grid_that_fits_stay(tmp_path):
    """Sixteen patches need not be four by four."""
    wide = dict(img_size=(4, 16), patch_size=2, depth=1)
    mae = MaskedAutoencoder(models.create(PLAIN, **wide), 32, 1, 2)
    saved(mae, tmp_path / "last.safetensors", "run")
    model = models.create(PLAIN, num_classes=3, **wide)
    models.load_encoder(model, tmp_path)
    assert torch.equal(model.pos_embed, mae.encoder.pos_embed)


def test_a_distilled_student_gets_its_dist_token_from_cls(pretrained, images):
    path, mae = pretrained
    student = models.create(DISTILLED, **SMALL).eval()
    models.load_encoder(student, path)
    assert torch.equal(student.dist_token, mae.encoder.cls_token)
    assert torch.equal(student.pos_embed[:, 2:], mae.encoder.pos_embed[:, 1:])
    assert torch.equal(student.pos_embed[:, 1], student.pos_embed[:, 0])
    tokens = student.forward_features(images)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1])


def test_positions_are_resized_to_another_grid(pretrained):
    path, mae = pretrained
    model = models.create(PLAIN, img_size=12, **SMALL)
    models.load_encoder(model, path)
    old = mae.encoder.pos_embed[:, 1:].reshape(1, 4, 4, 64).permute(0, 3, 1, 2)
    new = F.interpolate(old, (6, 6), mode="bicubic", align_corners=False)  # as MAE and LiVT
    torch.testing.assert_close(model.pos_embed[:, 1:], new.flatten(2).transpose(1, 2))
    assert torch.equal(model.pos_embed[:, :1], mae.encoder.pos_embed[:, :1])


def test_what_is_no_encoder_is_refused(pretrained, tmp_path):
    path, _ = pretrained
    plain = saved(models.create(PLAIN, **SMALL), tmp_path / "plain.safetensors", "safetensors")
    refused(lambda: models.load_encoder(models.create(PLAIN, **SMALL), plain), "holds no masked autoencoder")
    wider = models.create(PLAIN, embed_dim=128, **SMALL)
    refused(lambda: models.load_encoder(wider, path), f"{path} is of another architecture", r"128\) here, .*64\) there")
    refused(lambda: models.load_encoder(models.create(PLAIN, depth=2), path), "blocks.1.norm1.weight is missing")


# --- using -----------------------------------------------------------------------------------------------------


def test_predict_without_priors_is_the_softmax_of_the_averaged_heads(images):
    model = models.create(DISTILLED, **SMALL)
    torch.testing.assert_close(models.predict(model, images), model.eval()(images).softmax(-1))


@pytest.mark.parametrize(("loss", "decide"), [("ce", losses.decide_ce), ("bce", losses.decide_bce)])
def test_predict_under_a_test_prior_agrees_with_the_decision_rule(images, loss, decide):
    model = models.create(PLAIN, **SMALL).eval()
    train, test = longtail.prior([50, 20, 10, 5, 2]), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.3])
    bias = losses.logit_bias_ce(train)
    scores = decide(model(images), train, test, bias=bias, smoothing=0.1)
    ours = models.predict(model, images, train, test, loss=loss, bias=bias, smoothing=0.1)
    torch.testing.assert_close(ours, scores.softmax(-1))
    assert torch.equal(ours.argmax(1), scores.argmax(1))


def test_predict_with_equal_priors_changes_nothing(images):
    model, prior = models.create(PLAIN, **SMALL), longtail.prior([50, 20, 10, 5, 2])
    torch.testing.assert_close(models.predict(model, images, prior, prior), models.predict(model, images))


def test_predict_scales_cosines(images):
    model = models.create("resnet8_cifar", normed=True).eval()
    torch.testing.assert_close(models.predict(model, images), (30 * model(images)).softmax(-1))


def test_predict_refuses_what_it_cannot_do(images):
    model, prior = models.create(PLAIN, **SMALL), longtail.prior([1] * 5)
    refused(lambda: models.predict(model, images, test_prior=prior), "test_prior needs train_prior")
    refused(lambda: models.predict(model, images, prior, prior, loss="ldam"), "loss must be 'ce' or 'bce'")


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_tau_normalise_divides_rows_by_their_norm(tau):
    model = models.create("resnet8_cifar", num_classes=4)
    before = model.head.weight.detach().clone()
    models.tau_normalise(model, tau)
    torch.testing.assert_close(model.head.weight, before / before.norm(dim=1, keepdim=True) ** tau)
    assert not model.head.bias.any()


def test_tau_normalise_needs_one_linear_head():
    refused(lambda: models.tau_normalise(models.create(DISTILLED, **SMALL)), "one linear classifier, got tuple")
    refused(lambda: models.tau_normalise(models.resnet_cifar(8, normed=True)), "got NormedLinear")
