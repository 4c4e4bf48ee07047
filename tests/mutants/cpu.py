"""Mutants of the code that only makes CPUs faster."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        name='linear_gradient_ignores_relu',
        breaks='The gradient of a fused linear layer stops where ReLU did.',
        file='mmseg_m2f/cpu/onednn.py',
        old='grad = torch.ops.aten.threshold_backward(grad, y, 0)',
        new='grad = grad.contiguous()',
        tests=('tests/cpu/test_onednn.py',),
    ),
    Mutant(
        name='an_autocast_is_ignored',
        breaks='Under an autocast the fast linear layer leaves the work to PyTorch.',
        file='mmseg_m2f/cpu/onednn.py',
        old="if torch.is_autocast_enabled('cpu'):",
        new="if torch.is_autocast_enabled('cuda'):",
        tests=('tests/cpu/test_onednn.py',),
    ),
    Mutant(
        name='frozen_norms_forget_their_mean',
        breaks='A frozen norm is folded into the convolution with its mean.',
        file='mmseg_m2f/cpu/resnet.py',
        old='shift = -norm.running_mean if',
        new='shift = norm.running_mean if',
        tests=('tests/cpu/test_resnet.py',),
    ),
    Mutant(
        name='norms_in_training_mode_are_folded',
        breaks='A norm in training mode keeps its statistics of the batch.',
        file='mmseg_m2f/cpu/resnet.py',
        old='return not norm.training and norm.running_mean is not None',
        new='return norm.running_mean is not None',
        tests=('tests/cpu/test_resnet.py',),
    ),
    Mutant(
        name='hooks_inside_a_block_are_passed_by',
        breaks='A residual block with hooks inside is left to its class.',
        file='mmseg_m2f/cpu/conditions.py',
        old="return bool(has_hooks or 'forward' in vars(module))",
        new="return bool('forward' in vars(module))",
        tests=('tests/cpu/test_resnet.py',),
    ),
    Mutant(
        name='strided_pointwise_convolution_forgets_its_stride',
        breaks='A 1 x 1 convolution of stride 2 visits every second pixel.',
        file='mmseg_m2f/cpu/convolution.py',
        old='pixels = _pixels(x)[:, :: stride[0], :: stride[1]]',
        new='pixels = _pixels(x)',
        tests=('tests/cpu/test_convolution.py',),
    ),
    Mutant(
        name='shifted_windows_attend_across_the_border',
        breaks='Tokens that lie side by side only by the cyclic shift do not attend to each other.',
        file='mmseg_m2f/cpu/swin.py',
        old='if mask is not None:',
        new='if mask is not None and mask.dim() < 3:',
        tests=('tests/cpu/test_swin.py',),
    ),
)
