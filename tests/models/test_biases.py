"""Biases of packed projections: parts that lie together are read as they lie, others are joined, and both are the same."""

import torch

from avfmae.models.attention import CrossAttention, SelfAttention
from avfmae.models.biases import PackedBias


def attention(kind: type[PackedBias], together: bool) -> PackedBias:
    torch.manual_seed(0)
    module = kind(8, 2)
    for part in module.parts.values():
        torch.nn.init.normal_(part)
    if together:
        for name, copy in module.laid_together(torch.float32).items():
            setattr(module, name, torch.nn.Parameter(copy))
    return module


def test_parts_that_lie_together_are_not_copied_and_give_the_same_numbers_and_gradients():
    for kind in (SelfAttention, CrossAttention):
        joined, whole = attention(kind, together=False), attention(kind, together=True)
        v_bias = whole.get_parameter("v_bias")
        assert whole.bias.untyped_storage().data_ptr() == v_bias.untyped_storage().data_ptr()
        assert torch.equal(joined.bias, whole.bias) and whole.bias[-8:].all() and not whole.bias[-16:-8].any()
        scale = torch.randn(len(kind.packed) * 8)
        for module in (joined, whole):
            (module.bias * scale).sum().backward()
        for one, other in zip(joined.parts.values(), whole.parts.values(), strict=True):
            assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
        with torch.no_grad():
            v_bias.add_(1)
        assert torch.equal(whole.bias[-8:], v_bias) and not whole.bias[-16:-8].any()


def test_parts_of_other_memory_are_joined():
    """Neighbours in a larger piece of memory have numbers between them that are none of theirs."""
    module = attention(SelfAttention, together=False)
    numbers = torch.arange(32.0)
    module.q_bias, module.v_bias = (torch.nn.Parameter(numbers[i : i + 8]) for i in (0, 16))
    assert torch.equal(module.bias, torch.cat([numbers[:8], torch.zeros(8), numbers[16:24]]))
