"""PaCo: its loss against a loop, its limits, and a step of its two encoders and queue by hand."""

import math

from ltvit_lib import losses, models
from ltvit_lib.paco import PaCo, paco_loss, plain_weights
from ltvit_lib.sam import ascended

import pytest
import torch
import torch.nn.functional as F
from conftest import TWO_PROCESSES, launch, refused
from safetensors.torch import load, save
from torch import Tensor

PRIOR = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
WEIGHTS = dict(alpha=0.3, gamma=0.7, temperature=0.2)


def case(rng, queries: int = 6, others: int = 9) -> dict[str, Tensor]:
    """4 classes, width 5, float64; a third of the contrast has no label."""

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    contrast_target = torch.randint(4, (others,), generator=rng)
    contrast_target[::3] = -1
    return {
        "class_logits": 2 * normal(queries, 4),
        "query": F.normalize(normal(queries, 5), dim=1),
        "contrast": F.normalize(normal(others, 5), dim=1),
        "target": torch.randint(4, (queries,), generator=rng),
        "contrast_target": contrast_target,
        "prior": PRIOR,
    }


def by_loop(class_logits, query, contrast, target, contrast_target, prior, alpha, gamma, temperature):
    """The mean over a query's weighted positives of -log(e^score / denominator), a pair at a time."""
    total = 0.0
    for i in range(len(query)):
        scores, weights, shares = [], [], []  # of the positives: log-score, weight; of all: part of the denominator
        for c in range(len(prior)):
            score = class_logits[i, c].item() + math.log(prior[c])
            scores.append(score), weights.append(float(target[i].item() == c)), shares.append(math.exp(score))
        for j in range(len(query) + len(contrast)):
            if j == i:
                continue
            own = j < len(query)
            row = query[j] if own else contrast[j - len(query)]
            label = (target[j] if own else contrast_target[j - len(query)]).item()
            score = sum(a * b for a, b in zip(query[i].tolist(), row.tolist())) / temperature
            scores.append(score), weights.append(alpha * (label == target[i].item()))
            shares.append(gamma * math.exp(score))
        denominator = sum(shares)
        total -= sum(w * (s - math.log(denominator)) for w, s in zip(weights, scores)) / sum(weights)
    return total / len(query)


# --- the loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries, others", [(6, 9), (6, 0), (1, 4), (1, 0)])
def test_the_loss_is_the_loops(rng, queries, others):
    given = case(rng, queries, others)
    for weights in (WEIGHTS, dict(alpha=0.01, gamma=1.0, temperature=0.05), WEIGHTS | {"gamma": 0}):
        assert paco_loss(**given, **weights).item() == pytest.approx(by_loop(**given, **weights), rel=1e-10)


def test_two_alike_and_one_other_by_hand():
    """Equal centres: each of a pair has own centre and partner; the third its centre alone. cos 1, 0; T = 1."""
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    logits, target = torch.zeros(3, 2), torch.tensor([0, 0, 1])
    loss = paco_loss(logits, query, query[:0], target, target[:0], torch.tensor([0.5, 0.5]), 1, 1, 1.0)
    centre = math.log(0.5)
    of_pair = math.log(1 + math.e + 1) - (centre + 1) / 2  # both centres together: 1; partner e; other 1
    assert loss.item() == pytest.approx((2 * of_pair + math.log(3) - centre) / 3, rel=1e-6)


def test_gradients(rng):
    given = case(rng, 4, 5)
    inputs = [given["class_logits"].requires_grad_(), given["query"].requires_grad_()]

    def loss(class_logits, query, gamma):
        return paco_loss(**given | {"class_logits": class_logits, "query": query}, **WEIGHTS | {"gamma": gamma})

    for gamma in (0.7, 0.0):
        assert torch.autograd.gradcheck(loss, (*inputs, gamma))


def test_centres_alone_are_bal_ce(rng):
    given = case(rng)
    loss = paco_loss(**given, **WEIGHTS | {"alpha": 0.0, "gamma": 0.0})
    torch.testing.assert_close(loss, losses.balanced_ce(given["class_logits"], given["target"], PRIOR))


def test_the_order_of_queue_and_batch_does_not_matter(rng):
    given = case(rng)
    loss = paco_loss(**given, **WEIGHTS)
    rows, batch = torch.randperm(9, generator=rng), torch.randperm(6, generator=rng)
    shuffled = {k: given[k][rows] for k in ("contrast", "contrast_target")}
    shuffled |= {k: given[k][batch] for k in ("class_logits", "query", "target")}
    torch.testing.assert_close(paco_loss(**given | shuffled, **WEIGHTS), loss)


def test_an_empty_slot_repels_and_attracts_nobody(rng):
    given = case(rng) | {"contrast_target": torch.full((9,), -1)}
    no_gamma = WEIGHTS | {"gamma": 0.0}
    bare = given | {"contrast": given["contrast"][:0], "contrast_target": given["contrast_target"][:0]}
    torch.testing.assert_close(paco_loss(**given, **no_gamma), paco_loss(**bare, **no_gamma))
    assert paco_loss(**given, **WEIGHTS) > paco_loss(**bare, **WEIGHTS)


def test_low_temperatures_and_half_precision_stay_finite(rng):
    given = {k: v.float() if v.is_floating_point() else v for k, v in case(rng).items()}
    given["class_logits"] = (1000 * given["class_logits"]).requires_grad_()
    loss = paco_loss(**given, temperature=1e-3)  # exponents of 1000
    loss.backward()
    assert loss.isfinite() and given["class_logits"].grad.isfinite().all()
    half = given | {k: given[k].detach().bfloat16() for k in ("class_logits", "query")}
    assert paco_loss(**half).dtype == torch.float32


def test_bad_input_is_refused_in_one_sentence(rng):
    given = case(rng)
    for wrong, fix in [
        ({"query": given["query"][:5]}, r"query: give \(6, d\)"),
        ({"contrast": given["contrast"][:, :4]}, "contrast: .* width"),
        ({"target": F.one_hot(given["target"])}, "target: .* none of them soft"),
        ({"contrast_target": given["contrast_target"][:8]}, "contrast_target: .* each row"),
        ({"prior": PRIOR[:3]}, "prior: .* each column"),
        ({"alpha": -1.0}, "alpha, gamma >= 0"),
        ({"temperature": 0.0}, "temperature > 0"),
    ]:
        refused(lambda wrong=wrong: paco_loss(**given | wrong), fix)


# --- the two encoders and the queue ------------------------------------------------------------------------------


def tiny(**options) -> PaCo:
    torch.manual_seed(0)
    return PaCo(models.resnet_cifar(8, 3, width=4), **dict(dim=6, queue_size=24, momentum=0.9) | options)


def views(rng, count: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Query images, key images and labels: three patterns in noise."""
    patterns, labels = torch.randn(3, 3, 8, 8, generator=rng), torch.arange(count) % 3
    query, key = (patterns[labels] + 0.5 * torch.randn(count, 3, 8, 8, generator=rng) for _ in range(2))
    return query, key, labels


def terms(model: PaCo, images: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
    logits, query = model(images)
    contrast, contrast_labels = model.contrast(keys, labels)
    return paco_loss(logits, query, contrast, labels, contrast_labels, PRIOR[:3] / PRIOR[:3].sum(), alpha=0.05)


def test_it_starts_with_equal_encoders_and_an_unlabelled_queue_of_unit_rows(rng):
    model, (images, _, _) = tiny().train(), views(rng)
    _, query = model(images)
    torch.testing.assert_close(model.encode_keys(images), query.detach())
    torch.testing.assert_close(query.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(model.queue.norm(dim=1), torch.ones(24))
    assert (model.queue_labels == -1).all() and model.pointer == 0
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {"encoder", "projector"}


def test_momentum_in_closed_form(rng):
    """q fixed: after n updates k = q + m^n (k_0 - q)."""
    model, (_, key_images, labels) = tiny(), views(rng)
    start = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in [*model.encoder.parameters(), *model.projector.parameters()]:
            p.add_(torch.randn(p.shape, generator=rng))
    for _ in range(5):
        model.update(model.encode_keys(key_images), labels)
    now = dict(model.named_parameters())
    for name in now:
        if name.startswith("key_"):
            q = now[name.removeprefix("key_")]
            torch.testing.assert_close(now[name], q + 0.9**5 * (start[name] - q))


def test_the_queue_wraps_around(rng):
    model = tiny()
    batches = [(F.normalize(torch.randn(8, 6, generator=rng), dim=1), torch.full((8,), i % 3)) for i in range(4)]
    for i, (keys, labels) in enumerate(batches):
        model.update(keys, labels)
        assert model.pointer == 8 * (i + 1) % 24
    wanted = [batches[3], batches[1], batches[2]]  # the fourth has replaced the first
    assert torch.equal(model.queue, torch.cat([keys for keys, _ in wanted]))
    assert torch.equal(model.queue_labels, torch.cat([labels for _, labels in wanted]))
    refused(lambda: model.update(torch.zeros(7, 6), torch.zeros(7, dtype=torch.int64)), "queue_size 24 .* batch of 7")


def test_both_passes_of_sam_see_one_queue_and_one_key_encoder(rng):
    model, (images, key_images, labels) = tiny().train(), views(rng)
    keys = model.encode_keys(key_images)
    frozen = {n: v.clone() for n, v in model.state_dict().items() if n.startswith(("key_", "queue", "pointer"))}
    first = terms(model, images, keys, labels)
    first.backward()
    with ascended(model.parameters(), 0.05):
        second = terms(model, images, keys, labels)
        second.backward()
    assert second > first
    state = model.state_dict()
    assert all(torch.equal(state[n], v) for n, v in frozen.items())
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith("key_"))


def train(model: PaCo, optimizer: torch.optim.Optimizer, batch: tuple, steps: int) -> list[float]:
    images, key_images, labels = batch
    seen = []
    for _ in range(steps):
        keys = model.encode_keys(key_images)
        loss = terms(model, images, keys, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update(keys, labels)
        seen.append(loss.item())
    return seen


def test_it_learns_a_batch_and_a_file_restores_everything(rng):
    model, batch = tiny().train(), views(rng)
    seen = train(model, torch.optim.SGD(model.parameters(), 0.05), batch, 12)
    assert seen[-1] < 0.8 * seen[3]  # from the fourth step on the queue is full of keys
    again = tiny().train()
    again.load_state_dict(load(save(model.state_dict())))
    runs = [train(m, torch.optim.SGD(m.parameters(), 0.05), batch, 3) for m in (model, again)]
    assert runs[0] == runs[1]
    states = model.state_dict(), again.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_plain_cnn_teaches_in_its_place(rng):
    model, batch = tiny().train(), views(rng)
    train(model, torch.optim.SGD(model.parameters(), 0.05), batch, 2)
    plain = models.resnet_cifar(8, 3, width=4).eval()
    models.load_weights(plain, plain_weights(model.state_dict()))
    logits, dist = models.head_logits(model.eval(), batch[0])
    assert dist is None and torch.equal(plain(batch[0]), logits)
    assert model.get_classifier() is model.encoder.head
    refused(lambda: plain_weights(plain.state_dict()), "not PaCo's")


def test_a_cosine_classifier_is_refused():
    refused(lambda: PaCo(models.resnet_cifar(8, 3, normed=True)), "linear classifier, not NormedLinear")
    refused(lambda: tiny(momentum=1.1), "momentum is 1.1")


TWO = """
import sys
from ltvit_lib import models
from ltvit_lib.paco import PaCo
import torch
import torch.distributed as dist
from safetensors.torch import save_file
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = PaCo(models.resnet_cifar(8, 3, width=4), dim=6, queue_size=24)
for step in range(2):
    model.update(torch.full((4, 6), 10.0 * step + rank), torch.full((4,), rank))
save_file(dict(model.named_buffers(recurse=False)), f"{sys.argv[1]}/{rank}")
dist.destroy_process_group()
"""


def test_two_processes_keep_equal_queues(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    launch([*TWO_PROCESSES, tmp_path / "two.py", tmp_path], tmp_path)
    states = [load((tmp_path / str(rank)).read_bytes()) for rank in (0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[0]["queue"][:16, 0].tolist() == [0] * 4 + [1] * 4 + [10] * 4 + [11] * 4
    assert states[0]["queue_labels"].tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4 + [-1] * 8
    assert states[0]["pointer"] == 16
