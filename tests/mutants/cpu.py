"""Mutants of the code that only makes CPUs faster."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        name='linear_gradient_ignores_relu',
        breaks='The gradient of a fused linear layer stops where ReLU did.',
        file='mmseg_m2f/cpu/linear.py',
        old='grad = torch.ops.aten.threshold_backward(grad, y, 0)',
        new='grad = grad.contiguous()',
        tests=('tests/cpu/test_linear.py',),
    ),
    Mutant(
        name='an_autocast_is_ignored',
        breaks='Under an autocast the fast linear layer leaves the work to PyTorch.',
        file='mmseg_m2f/cpu/linear.py',
        old="if torch.is_autocast_enabled('cpu'):",
        new="if torch.is_autocast_enabled('cuda'):",
        tests=('tests/cpu/test_linear.py',),
    ),
    Mutant(
        name='frozen_norms_forget_their_mean',
        breaks='A frozen norm is folded into the convolution with its mean.',
        file='mmseg_m2f/cpu/resnet.py',
        old='shift = -norm.running_mean * scale',
        new='shift = norm.running_mean * scale',
        tests=('tests/cpu/test_resnet.py',),
    ),
    Mutant(
        name='norms_in_training_mode_are_folded',
        breaks='A norm in training mode keeps its statistics of the batch.',
        file='mmseg_m2f/cpu/resnet.py',
        old='nn.BatchNorm2d | nn.SyncBatchNorm) or norm.training:',
        new='nn.BatchNorm2d | nn.SyncBatchNorm):',
        tests=('tests/cpu/test_resnet.py',),
    ),
    Mutant(
        name='hooks_inside_a_block_are_passed_by',
        breaks='A residual block with hooks inside is left to its class.',
        file='mmseg_m2f/cpu/custom_call.py',
        old="return bool(has_hooks or 'forward' in vars(module))",
        new="return bool('forward' in vars(module))",
        tests=('tests/cpu/test_resnet.py',),
    ),
    Mutant(
        name='strided_pointwise_convolution_forgets_its_stride',
        breaks='A 1 x 1 convolution of stride 2 visits every second pixel.',
        file='mmseg_m2f/cpu/convolution/fused.py',
        old='pixels, matrix = _pixels(x, window[0])',
        new='pixels, matrix = _pixels(x, 1)',
        tests=('tests/cpu/test_convolution.py',),
    ),
    Mutant(
        name='shifted_windows_attend_across_the_border',
        breaks='Tokens that lie side by side only by the cyclic shift do not attend to each other.',
        file='mmseg_m2f/cpu/swin.py',
        old='_APART = -100.0',
        new='_APART = 0.0',
        tests=('tests/cpu/test_swin.py',),
    ),
)
