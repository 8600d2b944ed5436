"""Products with frozen weights against float64, and which layers of a model take them."""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from weft.model import products
from weft.model.products import across, arithmetic, fast_products, product

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def outputs_first(weight_OI):
    return weight_OI.contiguous()


def inputs_first(weight_OI):
    return weight_OI.T.contiguous().T


def part_of_a_joined_one(weight_OI):
    beside_oI = torch.randn(5, weight_OI.shape[1]).to(weight_OI.dtype)
    return inputs_first(torch.cat([beside_oI, weight_OI, beside_oI]))[5:-5]


LAYOUTS = [outputs_first, inputs_first, part_of_a_joined_one]


@pytest.fixture
def made():
    """Input, weight, bias and gradient of the output, of so many rows."""
    generator = torch.Generator().manual_seed(0)

    def make(rows, dtype=torch.float32):
        shapes = [(1, rows, 48), (33, 48), (33,), (1, rows, 33)]
        return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("rows", [0, 1, 8, 40, 64, 150, 300])
def test_values_and_gradients_are_those_of_float64(rows, dtype, layout, made):
    x, weight_OI, bias_O, dy = made(rows, dtype)
    for bias in (bias_O, None):
        x.requires_grad_().grad = None
        y = product(x, layout(weight_OI), bias)
        y.backward(dy)
        exact = x.detach().double().requires_grad_()
        wide = None if bias is None else bias.double()
        exact_y = torch.nn.functional.linear(exact, weight_OI.double(), wide)
        exact_y.backward(dy.double())
        for found, wanted in ((y, exact_y), (x.grad, exact.grad)):
            bound = ROUNDING[dtype] * wanted.abs().max().item() if rows else 0
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=bound)


def test_an_input_with_gaps_is_read_as_it_is(made):
    x, weight_OI, bias_O, _ = made(40)
    wide = torch.cat([x, x], dim=2)[..., 48:]
    torch.testing.assert_close(product(wide, weight_OI, bias_O), product(x, weight_OI, bias_O))
    across = x[0].T.contiguous().T
    torch.testing.assert_close(product(across, weight_OI), product(x, weight_OI)[0])


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("rows", [8, 9, 65, 150])
def test_how_a_weight_lies_changes_no_bit(rows, dtype, made):
    x, weight_OI, bias_O, dy = made(rows, dtype)
    found = []
    for layout in LAYOUTS:
        x.requires_grad_().grad = None
        y = product(x, layout(weight_OI), bias_O)
        y.backward(dy)
        found.append((y, x.grad))
    assert all(torch.equal(y, found[0][0]) and torch.equal(dx, found[0][1]) for y, dx in found)


def test_the_gradient_can_be_differentiated_again(made):
    x, weight_OI, bias_O, dy = made(3)
    y = product(x.requires_grad_(), weight_OI, bias_O)
    (dx,) = torch.autograd.grad(y, x, dy.requires_grad_(), create_graph=True)
    (again,) = torch.autograd.grad(dx.sum(), dy)
    torch.testing.assert_close(again, weight_OI.sum(1).expand_as(dy))


def test_pytorch_has_the_operator_on_a_cpu(made):
    _, weight_OI, _, _ = made(1)
    if not torch.backends.mkldnn.is_available():
        pytest.skip("a PyTorch without oneDNN")
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert arithmetic(weight_OI) == "oneDNN"
    assert (arithmetic(weight_OI.bfloat16()) == "oneDNN") == has_bfloat16
    assert arithmetic(weight_OI.half()) == arithmetic(weight_OI.to("meta")) != "oneDNN"


@pytest.mark.parametrize("operator", [True, False])
@pytest.mark.parametrize("rows", [1, 63, 64, 150])
def test_a_sum_over_rows_is_that_of_float64(rows, operator, made, monkeypatch):
    if not operator:
        monkeypatch.setattr(products, "_HAS_OPERATOR", False)
    (z_Tr,), (y_TO,) = made(rows)[0], made(rows)[3]
    wanted = z_Tr.double().T @ y_TO.double()
    found = across(z_Tr, y_TO)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max())


@pytest.mark.parametrize("rows", [40, 150])
def test_what_comes_out_may_be_changed_in_place(rows, made):
    x, weight_OI, bias_O, _ = made(rows)
    product(x.requires_grad_(), weight_OI, bias_O).relu_().sum().backward()
    found, x.grad = x.grad, None
    torch.nn.functional.linear(x, weight_OI, bias_O).relu().sum().backward()
    torch.testing.assert_close(found, x.grad, rtol=1e-4, atol=1e-5)


def test_without_the_operator_products_are_pytorch_s_own(made, monkeypatch):
    monkeypatch.setattr(products, "_HAS_OPERATOR", False)
    x, weight_OI, bias_O, _ = made(40)
    assert arithmetic(weight_OI) != "oneDNN"
    own = torch.nn.functional.linear(x, weight_OI, bias_O)
    assert torch.equal(product(x, weight_OI, bias_O), own)


def test_layers_of_a_model_are_fast_inside_and_their_own_outside(monkeypatch):
    counted = []
    monkeypatch.setattr(
        products, "product", lambda x, *weights: counted.append(1) or product(x, *weights)
    )
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), Conv1D(4, 6), torch.nn.LayerNorm(4))
    model.requires_grad_(False)
    x = torch.randn(9, 8)
    own = model(x)
    with torch.inference_mode(), fast_products(model), fast_products(model):
        torch.testing.assert_close(model(x), own)
    assert len(counted) == 2 * (arithmetic(model[0].weight) == "oneDNN")
    assert torch.equal(model(x), own)
    assert not any("forward" in vars(layer) for layer in model)


def test_a_layer_that_learns_or_has_a_forward_of_its_own_is_left_alone():
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 4))
    model[1].requires_grad_(False)
    model[1].forward = lambda x: x
    with fast_products(model):
        assert model(torch.randn(3, 8)).shape == (3, 6)
        model(torch.randn(3, 8)).sum().backward()
    assert model[0].weight.grad is not None
    assert "forward" in vars(model[1])


@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_row_s_numbers_do_not_depend_on_how_many_others_there_are(dtype, made):
    x, weight_OI, bias_O, _ = made(600, dtype)
    whole = product(x, weight_OI, bias_O)
    for rows in (8, 63, 65, 130, 257, 300, 520):
        assert torch.equal(product(x[:, :rows], weight_OI, bias_O), whole[:, :rows])
