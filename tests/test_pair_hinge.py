"""mmfast.contrastive_loss: values and gradients against the definition in float64."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmfast
from mmfast import _C, reference
from tests.oracle import Problem, assert_exact, cast, loss_and_gradients, problem

DTYPES = [torch.float32, torch.float64]
REDUCTIONS = ["sum", "mean", "mean_nonzero"]
# Aligned, one off each way, ragged in every dimension, one row, no rows, no features.
SHAPES = [(64, 64), (63, 65), (65, 63), (128, 8), (37, 19), (200, 130), (1, 1), (1, 16), (0, 16), (5, 0), (130, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("rows", "features"), SHAPES)
def test_self_form(rows: int, features: int, reduction: str, dtype: torch.dtype) -> None:
    for margin in (0.0, 1.0, 1.9, 50.0):
        assert_exact(problem(rows, features, margin=margin, reduction=reduction), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("rows", "features"), SHAPES)
@pytest.mark.parametrize("ref_rows", [0, 1, 70, 129])
def test_cross_form(rows: int, features: int, ref_rows: int, reduction: str, dtype: torch.dtype) -> None:
    assert_exact(problem(rows, features, ref_rows=ref_rows, margin=1.8, reduction=reduction), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ref_rows", [None, 50])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, ref_rows: int | None) -> None:
    assert_exact(problem(90, 33, ref_rows=ref_rows, margin=1.8), dtype)


def test_the_double_loop() -> None:
    """The program the loss replaces, word for word."""
    p = problem(23, 5, margin=1.3)
    x, labels, total = p["embeddings"], p["labels"], 0.0
    for i, j in itertools.product(range(23), repeat=2):
        d2 = float((x[i] - x[j]).square().sum())
        total += d2 if labels[i] == labels[j] else max(0.0, 1.3 - d2)
    assert mmfast.contrastive_loss(**p).item() == pytest.approx(total, rel=1e-14)
    assert reference.contrastive_loss(**p).item() == pytest.approx(total, rel=1e-14)


@pytest.mark.parametrize("ref_rows", [None, 40])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_take_no_part(ref_rows: int | None, reduction: str) -> None:
    p = problem(60, 12, ref_rows=ref_rows, margin=1.8, reduction=reduction, ignore_index=3)
    p["embeddings"][p["labels"] == 3] = float("nan")  # not even looked at
    loss, gradients = loss_and_gradients(mmfast.contrastive_loss, p)
    kept = p["labels"] != 3
    clean = {**p, "embeddings": p["embeddings"][kept], "labels": p["labels"][kept]}
    expected, expected_gradients = loss_and_gradients(reference.contrastive_loss, clean)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients[0][kept], expected_gradients[0])
    assert not gradients[0][~kept].any()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint32, torch.int64])
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    p = problem(40, 9, margin=1.5)
    expected = mmfast.contrastive_loss(**p)
    assert torch.equal(mmfast.contrastive_loss(**{**p, "labels": p["labels"].to(dtype)}), expected)


def test_all_labels_equal_and_all_different() -> None:
    p = problem(70, 16, margin=2.0)
    assert_exact({**p, "labels": torch.zeros(70, dtype=torch.int64)})
    assert_exact({**p, "labels": torch.arange(70) * 2**57 - 2**62})  # the widest labels


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_and_read_only_storage(dtype: torch.dtype) -> None:
    p = cast(problem(80, 30, margin=1.8), dtype)
    expected, expected_gradients = loss_and_gradients(mmfast.contrastive_loss, p)
    wide = torch.zeros(160, 61, dtype=dtype)
    wide[::2, ::2][:, :30] = p["embeddings"]
    labels = torch.zeros(80, 2, dtype=torch.int64)
    labels[:, 0] = p["labels"]
    views = [wide[::2, ::2][:, :30], p["embeddings"].T.contiguous().T, p["embeddings"].flip(0).flip(0)]
    for view in views:
        leaf = view.requires_grad_() if view.is_leaf else view
        loss = mmfast.contrastive_loss(leaf, labels[:, 0], margin=1.8)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert torch.equal(loss, expected)
        assert torch.equal(gradient, expected_gradients[0])
    numbers = p["embeddings"].numpy().copy()
    numbers.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it cannot mark the tensor read-only; we only read
        frozen = torch.from_numpy(numbers)
    assert torch.equal(mmfast.contrastive_loss(frozen, labels[:, 0], margin=1.8), expected)
    expanded = torch.ones(1, 4, dtype=dtype).expand(6, 4)
    assert mmfast.contrastive_loss(expanded, torch.arange(6)).item() == 30.0  # 30 pairs at distance 0, each the margin


def test_inputs_stay_as_they_are() -> None:
    p = problem(50, 20, ref_rows=30, margin=1.8)
    before = {k: v.clone() for k, v in p.items() if isinstance(v, torch.Tensor)}
    loss_and_gradients(mmfast.contrastive_loss, p)
    assert all(torch.equal(p[k], v) for k, v in before.items())


class TestAdversarial:
    """Data made to break a screen, a bound or a subtraction."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_ties_at_the_margin(self, dtype: torch.dtype) -> None:
        """Integer rows: many d² equal the margin exactly, where the hinge and its gradient are 0."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randint(-2, 3, (120, 6), generator=generator).double()
        p = {"embeddings": x, "labels": torch.arange(120) % 5, "ref_emb": None, "ref_labels": None, "margin": 9.0}
        ties = (torch.cdist(x, x).square().round() == 9).sum()
        assert ties > 100
        for reduction in REDUCTIONS:
            assert_exact({**p, "reduction": reduction}, dtype)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_one_rounding_either_side_of_the_margin(self, dtype: torch.dtype) -> None:
        """Two rows whose d² lies one unit in the last place above, on and below the margin."""
        one = torch.tensor(1.0, dtype=dtype)
        for neighbour in (torch.nextafter(one, one * 2), one, torch.nextafter(one, one * 0)):
            x = torch.zeros(2, 40, dtype=dtype)
            x[1, 7] = neighbour
            p = {"embeddings": x, "labels": torch.arange(2), "ref_emb": None, "ref_labels": None, "margin": 1.0}
            loss, (gradient,) = loss_and_gradients(mmfast.contrastive_loss, p)
            assert bool(gradient.any()) == bool(neighbour < 1)
            assert bool(loss > 0) == bool(neighbour < 1)

    @pytest.mark.parametrize("ref_rows", [None, 45])
    def test_duplicates(self, ref_rows: int | None) -> None:
        """Repeated rows, within a class and across classes; the means count only what is not zero."""
        for reduction in REDUCTIONS:
            p = problem(90, 14, ref_rows=ref_rows, margin=1.0, reduction=reduction)
            p["embeddings"][30:60] = p["embeddings"][:30]
            if ref_rows:
                p["ref_emb"][:45] = p["embeddings"][:45]
            assert_exact(p)
        zeros = {**p, "embeddings": torch.zeros(90, 14), "reduction": "mean_nonzero"}
        assert_exact(zeros)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("offset", [1e3, 1e6])
    def test_huge_common_offset(self, offset: float, dtype: torch.dtype) -> None:
        """The Gram form has lost every digit of these distances."""
        p = problem(100, 24, margin=1.8)
        p["embeddings"] = p["embeddings"] * (1 if offset < 1e5 else 64) + offset
        assert_exact({**p, "margin": 1.8 if offset < 1e5 else 1.8 * 64**2}, dtype)

    @pytest.mark.parametrize("distance", [1e-4, 1e-6])
    def test_near_duplicates_keep_their_digits(self, distance: float) -> None:
        p = problem(64, 512, classes=64, margin=1.0)
        p["embeddings"][1::2] = p["embeddings"][::2]
        p["embeddings"][1::2, 3] += distance
        assert_exact(p)
        assert_exact({**p, "labels": torch.arange(64) // 2})

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e17])
    def test_scales(self, scale: float, dtype: torch.dtype) -> None:
        p = problem(70, 20)
        assert_exact({**p, "embeddings": p["embeddings"] * scale, "margin": min(1.8 * scale**2, 1e36)}, dtype)
        assert_exact({**p, "embeddings": p["embeddings"] * scale, "margin": 1.0}, dtype)

    @pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e150])
    def test_scales_of_float64(self, scale: float) -> None:
        p = problem(70, 20)
        assert_exact({**p, "embeddings": p["embeddings"] * scale, "margin": 1.8 * scale * scale}, torch.float64)
        assert_exact({**p, "embeddings": p["embeddings"] * scale}, torch.float64)

    def test_what_overflows_is_infinite_as_in_pytorch(self) -> None:
        p = cast(problem(20, 8), torch.float32)
        huge = {**p, "embeddings": p["embeddings"] * 1e20}
        assert mmfast.contrastive_loss(**huge).item() == float("inf")

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_outlier_features_and_rows_of_unlike_norms(self, dtype: torch.dtype) -> None:
        """One feature a thousand times the others ruins 8-bit quantisation; the result must not notice."""
        p = problem(100, 40, margin=1.8)
        p["embeddings"][:, 5] *= 1000
        assert_exact(p, dtype)
        p["embeddings"] *= 10.0 ** torch.linspace(-10, 10, 100, dtype=torch.float64)[:, None]
        for margin in (1e-8, 1.0, 1e8):
            assert_exact({**p, "margin": margin}, dtype)
        p["embeddings"][::7] = 0
        assert_exact(p, dtype)

    @pytest.mark.parametrize("outlier", [1e4, 1e12, 1e17])  # the loss of more overflows float32
    @pytest.mark.parametrize("ref_rows", [None, 40])
    def test_an_outlier_costs_the_other_rows_nothing(self, outlier: float, ref_rows: int | None) -> None:
        """Of a class, of the sample that the centre is made from, and of what the largest value is taken of."""
        for row in (0, 3, 59):
            p = problem(60, 12, ref_rows=ref_rows, margin=1.8)
            p["embeddings"][row] *= outlier
            assert_exact(p, torch.float64)
            assert_exact(p)

    @pytest.mark.parametrize("ref_rows", [None, 1])
    def test_many_differences_of_one_sign(self, ref_rows: int | None) -> None:
        """Summed in float32 they would lose half their digits."""
        x = torch.zeros(200_001, 1)
        x[0] = 0.1
        if ref_rows is None:
            rows = x[:3000].clone().requires_grad_()
            mmfast.contrastive_loss(rows, (torch.arange(3000) > 0).long()).backward()
            expected = -4 * 2999 * float(x[0])
        else:
            rows = x[:1].clone().requires_grad_()
            mmfast.contrastive_loss(rows, torch.zeros(1).long(), x[1:], torch.ones(200_000).long()).backward()
            expected = -2 * 200_000 * float(x[0])
        assert rows.grad is not None
        assert rows.grad[0].item() == pytest.approx(expected, rel=1e-7)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("ref_rows", [None, 300])
    @pytest.mark.parametrize("spread", [0.0, 1e-3, 0.3])
    def test_classes_far_apart_but_for_some_rows(self, spread: float, ref_rows: int | None, dtype: torch.dtype) -> None:
        """Whole classes are ruled out at once, which must not lose the rows that lie among another class."""
        for classes in (2, 5, 16):
            p = problem(330, 24, classes=classes, ref_rows=ref_rows, margin=1.0)
            centres = 3 * torch.randn(classes, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            p["embeddings"] = centres[p["labels"]] + spread * p["embeddings"]
            p["embeddings"][::40] = centres[0] + 0.3 * p["embeddings"][::40]  # strays
            p["embeddings"][1] = p["embeddings"][40]
            if ref_rows:
                p["ref_emb"] = centres[p["ref_labels"]] + spread * p["ref_emb"]
            assert_exact(p, dtype)
            # The margin just above and below a distance; at it the two sides may round differently.
            d2 = float((p["embeddings"][2] - p["embeddings"][p["labels"] != p["labels"][2]][3]).square().sum())
            for margin in (d2 * (1 + 1e-12), d2 * (1 - 1e-12)):
                assert_exact({**p, "margin": margin}, dtype)

    @pytest.mark.parametrize("ref_rows", [None, 70, 150])
    @pytest.mark.parametrize("features", [1, 7, 40, 128, 130])
    def test_dense_units(self, features: int, ref_rows: int | None) -> None:
        """Half, most and all pairs active: summed from masks, by all pairs or by all but the few that are not."""
        p = problem(150, features, classes=40, ref_rows=ref_rows)
        d2 = torch.cdist(p["embeddings"], p["embeddings"]).square()
        for share in (0.12, 0.25, 0.5, 0.9, 0.97, 1.0):
            for reduction in ("sum", "mean_nonzero"):
                assert_exact({**p, "margin": 1e-9 + float(d2.quantile(share)), "reduction": reduction})
        assert_exact({**p, "margin": 1e6})

    @pytest.mark.parametrize("offset", [0.0, 1000.0])
    def test_dense_units_of_near_duplicates_far_apart(self, offset: float) -> None:
        """Tight clusters in one unit: their sums must not be rounded by the distances between clusters."""
        p = problem(128, 24, classes=64)
        centres = torch.randn(4, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for spread in (1e-2, 1e-4, 1e-6):
            rows = centres[torch.arange(128) % 4] + spread * p["embeddings"] + offset
            for margin in (spread**2, (2 * spread) ** 2, 1.0, 100.0):
                assert_exact({**p, "embeddings": rows, "margin": margin})

    @pytest.mark.parametrize("outlier", [10.0, 1e8, 1e10, 1e17])
    def test_dense_units_beside_an_outlier(self, outlier: float) -> None:
        """A row that is not active must not enter the sums of those that are, nor get a gradient itself."""
        p = problem(128, 16, margin=1.0)
        x = 0.1 * p["embeddings"] * 4
        x[:, 3] *= 1e-8
        x[127] = outlier
        labels = torch.tensor([0] * 64 + [1] * 63 + [2])
        assert_exact({**p, "embeddings": x, "labels": labels})
        _, (gradient,) = loss_and_gradients(mmfast.contrastive_loss, {**p, "embeddings": x.float(), "labels": labels})
        assert not gradient[127].any()

    def test_a_margin_near_the_largest_float(self) -> None:
        x = torch.tensor([[1e-10], [-1e-10], [2e-10], [1e15], [-1e15]], dtype=torch.float64)
        p = {"embeddings": x, "labels": torch.arange(5), "ref_emb": None, "ref_labels": None}
        for reduction in REDUCTIONS:
            assert_exact({**p, "margin": 1e31, "reduction": reduction})

    def test_dense_units_of_rows_at_the_margin(self) -> None:
        """Corners of a simplex are all at one distance: the loss is a difference of nearly equal sums."""
        x = torch.eye(96, dtype=torch.float64) * 0.7
        p = {"embeddings": x, "labels": torch.arange(96) // 2, "ref_emb": None, "ref_labels": None}
        exact = 2 * float(torch.tensor(0.7, dtype=torch.float32).double()) ** 2
        for margin in (exact, exact * (1 + 1e-9), exact * (1 - 1e-9), exact * (1 + 1e-6), exact * 1.5):
            assert_exact({**p, "margin": margin})

    def test_denormals(self) -> None:
        p = problem(50, 16)
        assert_exact({**p, "embeddings": p["embeddings"] * 1e-41, "margin": 0.5})
        assert_exact({**p, "embeddings": p["embeddings"] * 5e-324, "margin": 0.5}, torch.float64)
        assert_exact({**p, "embeddings": p["embeddings"] * 3e-162, "margin": 5e-324}, torch.float64)

    def test_denormals_that_the_caller_flushes(self) -> None:
        """A thread's own mode must neither reach the engine nor be changed by it."""
        x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)).sign() * 1e-40
        labels, threads = torch.zeros(4000, dtype=torch.int64), torch.get_num_threads()
        gradients = []
        try:
            for flush, count in ((False, 1), (True, 1), (True, 4)):
                torch.set_num_threads(count)
                supported = torch.set_flush_denormal(flush)
                rows = x.clone().requires_grad_()
                mmfast.contrastive_loss(rows, labels).backward()
                assert rows.grad is not None
                gradients.append(rows.grad)
                assert not flush or not supported or float(torch.tensor([1e-40]) * 1) == 0
        finally:
            torch.set_flush_denormal(False)
            torch.set_num_threads(threads)
        assert float(gradients[0].abs().min()) > 1e-37  # which no product flushes
        assert all(g.equal(gradients[0]) for g in gradients)

    def test_more_features_than_the_screen_takes(self) -> None:
        for features in (65536, 65537):
            assert_exact(problem(6, features, margin=1.99))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_makes_the_result_nan(value: float, dtype: torch.dtype) -> None:
    for ref_rows in (None, 30):
        p = cast(problem(40, 12, ref_rows=ref_rows), dtype)
        p["embeddings"][17, 3] = value
        loss, gradients = loss_and_gradients(mmfast.contrastive_loss, p)
        assert loss.isnan()
        assert all(bool(g.isnan().all()) for g in gradients)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_shape_labels_scale_and_margin(data: st.DataObject) -> None:
    draw = data.draw
    rows, features = draw(st.integers(0, 90)), draw(st.integers(0, 70))
    ref_rows = draw(st.one_of(st.none(), st.integers(0, 90)))
    p = problem(
        rows,
        features,
        draw(st.sampled_from([1, 2, 9, 100])),
        ref_rows,
        draw(st.integers(0, 2**16)),
        margin=draw(st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 4))),
        reduction=draw(st.sampled_from(REDUCTIONS)),
        ignore_index=draw(st.sampled_from([-100, 0])),
    )
    if draw(st.booleans()):  # a coarse grid: duplicates, and ties at the margin
        p["embeddings"] = (p["embeddings"] * 2).round() / 2
    p["embeddings"] = p["embeddings"] + draw(st.sampled_from([0.0, 0.0, 5.0, 1000.0]))
    assert_exact(p, draw(st.sampled_from(DTYPES)))


def in_each_tier(arguments: Problem) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    chosen, results = _C.cpu_tier(), []
    try:
        for tier in _C.cpu_tiers_available():
            _C.select_cpu_tier(tier)
            assert _C.cpu_tier() == tier
            results.append(loss_and_gradients(mmfast.contrastive_loss, arguments))
    finally:
        _C.select_cpu_tier(chosen)
    return results


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ref_rows", [None, 150])
@pytest.mark.parametrize("features", [3, 64, 129])
def test_every_tier_returns_the_same_bits(features: int, ref_rows: int | None, dtype: torch.dtype) -> None:
    p = cast(problem(333, features, ref_rows=ref_rows, margin=1.7), dtype)
    (loss, gradients), *others = in_each_tier(p)
    assert "portable" in _C.cpu_tiers_available()
    for other, other_gradients in others:
        assert torch.equal(loss, other)
        assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_every_tier_sums_a_unit_alike(seed: int) -> None:
    """Near the share of active pairs from which units are summed by masks."""
    p = cast(problem(256, 4 * 2 ** (seed % 4), classes=40, seed=seed), torch.float32)
    d2 = torch.pdist(p["embeddings"].double()).square()
    p["margin"] = float(d2.quantile(0.09 + 0.01 * seed))
    (loss, gradients), *others = in_each_tier(p)
    for other, other_gradients in others:
        assert torch.equal(loss, other)
        assert torch.equal(gradients[0], other_gradients[0])


@pytest.mark.parametrize("ref_rows", [None, 40, 900])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_thread_count_changes_no_bit(ref_rows: int | None, reduction: str) -> None:
    p = cast(problem(700, 48, ref_rows=ref_rows, margin=1.8, reduction=reduction), torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(loss_and_gradients(mmfast.contrastive_loss, p))
    finally:
        torch.set_num_threads(threads)
    (loss, gradients), *others = results
    for other, other_gradients in others:
        assert torch.equal(loss, other)
        assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients, strict=True))


def test_no_less_accurate_than_the_eager_idiom() -> None:
    p = cast(problem(400, 128, margin=1.9), torch.float32)

    def eager(embeddings: torch.Tensor, labels: torch.Tensor, margin: float, **_: object) -> torch.Tensor:
        squares = embeddings.square().sum(1)
        d2 = squares[:, None] + squares[None, :] - 2 * embeddings @ embeddings.T
        return torch.where(labels[:, None] == labels[None, :], d2, (margin - d2).relu()).sum()

    exact, (exact_gradient,) = loss_and_gradients(reference.contrastive_loss, cast(p, torch.float64))
    ours, (our_gradient,) = loss_and_gradients(mmfast.contrastive_loss, p)
    theirs, (their_gradient,) = loss_and_gradients(eager, p)
    assert abs(ours - exact) <= abs(theirs - exact) + 1e-7 * exact
    small = 4 * torch.finfo(torch.float32).eps * exact_gradient.norm()
    assert (our_gradient - exact_gradient).norm() <= (their_gradient - exact_gradient).norm() + small


@pytest.mark.parametrize("below", [True, False])
def test_residuals_that_meet_the_bound_prove_nothing(below: bool) -> None:
    """Distances are longer than those of the digits by all that the residuals allow.

    One feature of ±1 sets the scale, the others are ±1.49 digits. All pairs within 128 rows look active by their
    digits; the half of them that differ are just beyond the margin, or just within it.
    """
    signs = torch.tensor([1.0, -1.0])
    x = torch.full((256, 257), 1.49 / 63)
    x *= signs[torch.arange(256) // 2 % 2, None]  # so that the mean of every second row is 0 as well
    x[:, 0] = signs[torch.arange(256) // 128]
    d2 = float((x[0].double() - x[2].double()).square().sum())
    p = problem(256, 257)
    assert_exact({**p, "embeddings": x, "labels": torch.arange(256), "margin": d2 * (1 - 1e-6 if below else 1 + 1e-6)})


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("features", [*range(96, 160, 5), 271, 384])
def test_digits_of_16_bits_that_are_off_by_up_to_a_half(features: int, below: bool) -> None:
    """Two opposite rows whose features are all equal: all their digits are off by the same fraction, up to a half."""
    x = torch.full((128, features), features**-0.5) * torch.tensor([1.0, -1.0])[torch.arange(128) % 2, None]
    d2 = float((x[0].double() - x[1].double()).square().sum())
    p = problem(128, features)
    assert_exact({**p, "embeddings": x, "labels": torch.arange(128), "margin": d2 * (1 - 1e-9 if below else 1 + 1e-9)})
