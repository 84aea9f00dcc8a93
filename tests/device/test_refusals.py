"""What a device that is not the CPU refuses, the test device as CUDA does, and what both take."""

import copy
import io

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit

REFUSAL = r"same device|Expected a '\w+(:0)?' device type for generator|indices should be either on cpu"


@pytest.fixture
def elsewhere(device):
    if device.type == "cpu":
        pytest.skip("a CPU refuses nothing")
    return device


@pytest.mark.parametrize(
    "meet",
    [
        lambda here, there: here + there,
        lambda here, there: there + here,
        lambda here, there: there @ here,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.where(here > 0, here, there),
        lambda here, there: here.masked_fill(there > 0, 0.0),
        lambda here, there: here.gather(1, there.long()),
        lambda here, there: here.index_select(0, there[0].long()),
        lambda here, there: here.index_add_(0, torch.tensor([0, 1], device=here.device), there),
        lambda here, there: torch.nn.functional.embedding(there.long(), here),
        lambda here, there: there[here.bool()],
        lambda here, there: torch.zeros(()).add_(here.sum()),  # what is written to is no mere number
        lambda here, there: here.normal_(generator=torch.Generator()),
        lambda here, there: torch.randn(2, device=here.device, generator=torch.Generator()),
    ],
)
def test_the_two_do_not_meet(elsewhere, meet):
    with pytest.raises(RuntimeError, match=REFUSAL):
        meet(torch.ones(2, 2, device=elsewhere), torch.ones(2, 2))


def test_numpy_takes_the_cpus_alone(elsewhere):
    tensor = torch.ones(2, device=elsewhere)
    for convert in (torch.Tensor.numpy, np.asarray, np.array):
        with pytest.raises(TypeError, match=f"can't convert {elsewhere.type}:0 device type tensor to numpy"):
            convert(tensor)
    assert tensor.cpu().numpy().tolist() == tensor.tolist() == [1, 1]


def test_a_single_number_and_an_index_may_be_on_the_cpu(device):
    tensor = torch.arange(4.0, device=device)
    assert (tensor * torch.tensor(2.0)).tolist() == [0, 2, 4, 6]
    assert tensor[torch.tensor([3, 1])].tolist() == [3, 1]
    tensor[torch.tensor([0])] = torch.tensor(9.0)
    assert tensor.tolist() == [9, 1, 2, 3]


def test_results_lie_where_the_arguments_do(device):
    tensor = torch.arange(6.0, device=device).view(2, 3)
    made = [tensor.T, tensor @ tensor.T, tensor.sum(), tensor.new_zeros(2), tensor > 2, tensor.topk(2).indices]
    made += [torch.randperm(4, device=device), torch.tril_indices(3, 3, device=device), *tensor.unbind(), tensor.half()]
    assert {result.device for result in made} == {device}


def test_views_and_outputs_share_the_bytes(device):
    tensor = torch.zeros(3, 4, device=device)
    tensor.T[1:, 0].fill_(1)
    torch.add(tensor[0], 1, out=tensor[1])
    tensor[2].copy_(torch.arange(4))
    assert tensor.tolist() == [[0, 1, 1, 1], [1, 2, 2, 2], [0, 1, 2, 3]]
    assert tensor.add_(1) is tensor
    grown = torch.empty(0, device=device)
    assert torch.cumsum(tensor[2], 0, out=grown) is grown
    assert grown.tolist() == [1, 3, 6, 10]


def test_whole_numbers_are_counted(device):
    counts = torch.histc(torch.tensor([0, 1, 1, 3], device=device, dtype=torch.int32), bins=4, min=0, max=3)
    if device.type == "cpu":
        pytest.fail("the CPU counts whole numbers too now: the test device need not")
    assert (counts.device, counts.tolist()) == (device, [1, 2, 0, 1])


def test_random_numbers_come_from_a_state_of_their_own(elsewhere):
    torch.manual_seed(3)
    first, beside = torch.rand(4, device=elsewhere), torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), beside)  # what the device drew took nothing from the CPU's
    assert torch.equal(torch.rand(4, device=elsewhere), first)
    with torch.random.fork_rng([0], device_type=elsewhere.type):
        drawn = torch.rand(4, device=elsewhere)
    assert torch.equal(torch.rand(4, device=elsewhere), drawn)
    generator = torch.Generator(elsewhere).manual_seed(3)
    assert generator.device.type == elsewhere.type
    assert torch.equal(torch.rand(4, device=elsewhere, generator=generator), first)


def test_a_module_moves_there_and_back(device):
    module = torch.nn.Linear(3, 2)
    before, weight = module.weight.detach().clone(), module.weight
    module.to(device)
    assert module.weight is weight  # moved in place, so that an optimiser made before still knows it
    module(torch.ones(1, 3, device=device)).sum().backward()
    torch.optim.AdamW(module.parameters(), weight_decay=0.0).step()
    moved = copy.deepcopy(module).cpu()
    # AdamW's first step is the learning rate, 1e-3, along the gradient's sign; float32 rounds it.
    torch.testing.assert_close(moved.weight.detach(), before - 1e-3, rtol=0, atol=1e-6)


def test_a_tensor_is_saved_and_read(device):
    file = io.BytesIO()
    torch.save({"w": torch.arange(3, device=device)}, file)
    file.seek(0)
    assert torch.load(file, map_location="cpu", weights_only=True)["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("double", [True, False])
def test_bitsandbytes_quantises_there(device, double):
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).to(device)
    codes, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    assert codes.device == state.absmax.device == device
    gap = (dequantize_4bit(codes, state) - weight).abs().max()
    assert 0.01 < gap < 0.6  # half of the widest step between codes, 0.3 of the largest of 64 normal numbers, below 4


def test_a_four_bit_layer_is_made_by_moving_and_trained_through(device):
    torch.manual_seed(0)
    source = torch.nn.Linear(64, 32, bias=False)
    layer = Linear4bit(64, 32, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.load_state_dict(source.state_dict())
    layer.to(device)
    assert isinstance(layer.weight, Params4bit)
    assert (layer.weight.device, layer.weight.dtype) == (device, torch.uint8)
    assert layer.weight.quant_state.absmax.device == device
    x = torch.randn(3, 64, device=device, requires_grad=True)
    layer.train()(x).sum().backward()
    wanted = dequantize_4bit(layer.weight.data, layer.weight.quant_state).sum(0)
    torch.testing.assert_close(x.grad[0], wanted, rtol=0, atol=1e-4)  # float32 sums of 32 weights
    again = copy.deepcopy(layer).to("cpu")
    assert torch.equal(again.weight.data, layer.weight.data.cpu())
