"""The Triton kernels behind ``triton.py``; imported when first used, as Triton is optional.

A program computes one head of a block of queries. Each thread has a vector of channels of up to 16
bytes. The position, weight and bilinear shares of a sample are computed once per vector, not once
per channel. Softmax, positions and sums are float32.

Training at many scales compiles each kernel once: the sizes of the maps come as a tuple of floats,
which Triton does not specialize on, and the numbers of queries and tokens as unspecialized
integers. The numbers of heads, levels, points and channels are compiled in.
"""

from typing import no_type_check

import triton
import triton.language as tl

UNSPECIALIZED = ('num_queries', 'num_tokens')


@triton.jit
@no_type_check  # for the shape checker of the tests: Triton reads the source
def _place(num_queries, num_heads: tl.constexpr, block: tl.constexpr):
    """Return the program's image, head and queries, and which queries exist.

    Beyond the last query it is repeated. Heads vary fastest: the heads of a query lie side by side
    in offsets and logits and share cache lines.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(num_queries, block)
    image = (program // num_heads // blocks).to(tl.int64)
    query = (program // num_heads % blocks) * block + tl.arange(0, block)
    return image, program % num_heads, tl.minimum(query, num_queries - 1), query < num_queries


@triton.jit
@no_type_check
def _inputs(  # noqa: PLR0913
    reference_points, offsets, logits, num_queries, offset_stride, logit_stride,
    num_heads: tl.constexpr, num_samples: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Return the program's place, the rows of its queries and the addresses of their inputs."""
    image, head, query, is_real = _place(num_queries, num_heads, block)
    row = image * num_queries + query
    offset = offsets + row * offset_stride + head * (2 * num_samples)
    logit = logits + row * logit_stride + head * num_samples
    reference_x = tl.load(reference_points + 2 * query).to(tl.float32)
    reference_y = tl.load(reference_points + 2 * query + 1).to(tl.float32)
    return image, head, row, is_real, offset, logit, (reference_x, reference_y)


@triton.jit
@no_type_check
def _softmax(logit, column, num_samples: tl.constexpr):
    """Return each query's weights, its largest logit, and 1 / the sum of the exponentials."""
    tile = tl.load(logit[:, None] + column, mask=column < num_samples, other=float('-inf'))
    tile = tile.to(tl.float32)
    largest = tl.max(tile, axis=1)
    tile = tl.exp(tile - largest[:, None])
    scale = 1 / tl.sum(tile, axis=1)
    return tile * scale[:, None], largest, scale


@triton.jit
@no_type_check
def _extent(extents, level, num_levels: tl.constexpr):
    """Return height and width of a level; a tuple cannot be indexed by a number of run time."""
    # The cast makes a tensor of the bare number that the interpreter has.
    height, width = tl.cast(extents[0], tl.float32), tl.cast(extents[1], tl.float32)
    for other in tl.static_range(1, num_levels):
        height = tl.where(level == other, extents[2 * other], height)
        width = tl.where(level == other, extents[2 * other + 1], width)
    return height, width


@triton.jit
@no_type_check
def _bilinear(offset, reference, height, width):
    """Return for one sample per query its upper left token, its shares and which pixels exist."""
    x = reference[0] * width + tl.load(offset).to(tl.float32) - 0.5
    y = reference[1] * height + tl.load(offset + 1).to(tl.float32) - 0.5
    left, top = tl.floor(x), tl.floor(y)
    column, row = left.to(tl.int32), top.to(tl.int32)
    # A negative number is a large unsigned one: one comparison tests both ends.
    columns, rows = width.to(tl.uint32), height.to(tl.uint32)
    has_left = column.to(tl.uint32, bitcast=True) < columns
    has_right = (column + 1).to(tl.uint32, bitcast=True) < columns
    has_top = row.to(tl.uint32, bitcast=True) < rows
    has_bottom = (row + 1).to(tl.uint32, bitcast=True) < rows
    token = row * width.to(tl.int32) + column
    inside = has_top & has_left, has_top & has_right, has_bottom & has_left, has_bottom & has_right
    return token, x - left, y - top, inside


@triton.jit
@no_type_check
def _pixels(pointer, line, step: tl.constexpr, inside):
    """Load the channels of the four pixels around a sample as float32; 0 outside the map."""
    below = pointer + line
    top_left = tl.load(pointer, mask=inside[0][:, None], other=0)
    top_right = tl.load(pointer + step, mask=inside[1][:, None], other=0)
    bottom_left = tl.load(below, mask=inside[2][:, None], other=0)
    bottom_right = tl.load(below + step, mask=inside[3][:, None], other=0)
    return (
        top_left.to(tl.float32),
        top_right.to(tl.float32),
        bottom_left.to(tl.float32),
        bottom_right.to(tl.float32),
    )


@triton.jit
@no_type_check
def _shares(x, y, weight):
    """Return the weights of the four pixels around a sample."""
    bottom, top = y * weight, (1 - y) * weight
    return top * (1 - x), top * x, bottom * (1 - x), bottom * x


@triton.jit(do_not_specialize=UNSPECIALIZED)
@no_type_check
def forward_kernel(  # noqa: PLR0913
    value: tl.tensor, reference_points: tl.tensor, offsets: tl.tensor, logits: tl.tensor,
    out: tl.tensor, extents: tl.tuple, num_queries: tl.tensor, num_tokens: tl.tensor,
    offset_stride: tl.tensor, logit_stride: tl.tensor, num_heads: tl.constexpr,
    head_dim: tl.constexpr, num_levels: tl.constexpr, num_points: tl.constexpr,
    columns: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    """Compute the output of one head for a block of queries."""
    image, head, row, is_real, offset, logit, reference = _inputs(
        reference_points, offsets, logits, num_queries, offset_stride, logit_stride,
        num_heads, num_levels * num_points, block,
    )  # fmt: skip
    column = tl.max_contiguous(tl.arange(0, columns), 4)[None, :]
    _, largest, scale = _softmax(logit, column, num_levels * num_points)
    step: tl.constexpr = num_heads * head_dim
    channel = head * head_dim + tl.arange(0, head_dim)[None, :]
    tokens = value + image * num_tokens * step
    result = tl.zeros((block, head_dim), tl.float32)
    # A loop at run time: of an unrolled one, the compiler moves all loads to the front and spills.
    for level in range(num_levels):
        height, width = _extent(extents, level, num_levels)
        line = width.to(tl.int32) * step
        for point in tl.static_range(num_points):
            sample = level * num_points + point
            token, x, y, inside = _bilinear(offset + 2 * sample, reference, height, width)
            pixel = tokens + (token * step)[:, None] + channel
            pixels = _pixels(pixel, line, step, inside)
            weight = tl.exp(tl.load(logit + sample).to(tl.float32) - largest) * scale
            shares = _shares(x, y, weight)
            for corner in tl.static_range(4):
                result += shares[corner][:, None] * pixels[corner]
        tokens += height.to(tl.int32) * line
    target = out + row[:, None] * step + channel
    tl.store(target, result.to(out.dtype.element_ty), mask=is_real[:, None])


@triton.jit
@no_type_check
def _dots(pixels, grad):
    """Multiply the gradient with each of the four pixels and sum over channels."""
    return (
        tl.sum(pixels[0] * grad, axis=1),
        tl.sum(pixels[1] * grad, axis=1),
        tl.sum(pixels[2] * grad, axis=1),
        tl.sum(pixels[3] * grad, axis=1),
    )


@triton.jit
@no_type_check
def _slopes(dots, x, y):
    """Interpolate the pixels' products with the gradient; return the value and its slopes."""
    top_slope, bottom_slope = dots[1] - dots[0], dots[3] - dots[2]
    top, bottom = dots[0] + x * top_slope, dots[2] + x * bottom_slope
    slope_y = bottom - top
    return top + y * slope_y, top_slope + y * (bottom_slope - top_slope), slope_y


@triton.jit
@no_type_check
def _scatter(pointer, line, step: tl.constexpr, inside, shares, grad):
    """Add a sample's gradient to those of its four pixels, by their weights."""
    below = pointer + line
    top_left, top_right, bottom_left, bottom_right = shares
    tl.atomic_add(pointer, top_left[:, None] * grad, inside[0][:, None], 'relaxed')
    tl.atomic_add(pointer + step, top_right[:, None] * grad, inside[1][:, None], 'relaxed')
    tl.atomic_add(below, bottom_left[:, None] * grad, inside[2][:, None], 'relaxed')
    tl.atomic_add(below + step, bottom_right[:, None] * grad, inside[3][:, None], 'relaxed')


@triton.jit
@no_type_check
def _store(pointer, column, width: tl.constexpr, tile, is_real):
    """Store the first columns of a tile, one row per query."""
    mask = is_real[:, None] & (column < width)
    tl.store(pointer[:, None] + column, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=UNSPECIALIZED)
@no_type_check
def backward_kernel(  # noqa: PLR0913
    grad_out: tl.tensor, value: tl.tensor, reference_points: tl.tensor, offsets: tl.tensor,
    logits: tl.tensor, grad_value: tl.tensor, grad_offsets: tl.tensor, grad_logits: tl.tensor,
    extents: tl.tuple, num_queries: tl.tensor, num_tokens: tl.tensor, offset_stride: tl.tensor,
    logit_stride: tl.tensor, num_heads: tl.constexpr, head_dim: tl.constexpr,
    num_levels: tl.constexpr, num_points: tl.constexpr, columns: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    """Compute the gradients of one head for a block of queries; ``grad_value`` starts as zeros.

    Channels come in vectors of 4, as atomic additions take them: half types loaded by 8 would have
    to pass through shared memory. The gradients of samples are collected in tiles of the same
    layout, so that no shuffle is needed and they are stored as vectors.
    """
    image, head, row, is_real, offset, logit, reference = _inputs(
        reference_points, offsets, logits, num_queries, offset_stride, logit_stride,
        num_heads, num_levels * num_points, block,
    )  # fmt: skip
    column = tl.max_contiguous(tl.arange(0, columns), 4)[None, :]
    weights, largest, scale = _softmax(logit, column, num_levels * num_points)
    step: tl.constexpr = num_heads * head_dim
    channel = head * head_dim + tl.max_contiguous(tl.arange(0, head_dim), 4)[None, :]
    grad = tl.load(grad_out + row[:, None] * step + channel, mask=is_real[:, None], other=0)
    tokens = image * num_tokens * step
    row = (row * num_heads + head) * (num_levels * num_points)
    products = tl.zeros((block, columns), tl.float32)
    for level in range(num_levels):
        height, width = _extent(extents, level, num_levels)
        line = width.to(tl.int32) * step
        slopes = tl.zeros((block, columns), tl.float32)
        for point in tl.static_range(num_points):
            sample = level * num_points + point
            token, x, y, inside = _bilinear(offset + 2 * sample, reference, height, width)
            pixel = tokens + (token * step)[:, None] + channel
            pixels = _pixels(value + pixel, line, step, inside)
            weight = tl.exp(tl.load(logit + sample).to(tl.float32) - largest) * scale
            _scatter(grad_value + pixel, line, step, inside, _shares(x, y, weight), grad)
            product, slope_x, slope_y = _slopes(_dots(pixels, grad), x, y)
            products = tl.where(column == sample, product[:, None], products)
            slopes = tl.where(column == 2 * point, (weight * slope_x)[:, None], slopes)
            slopes = tl.where(column == 2 * point + 1, (weight * slope_y)[:, None], slopes)
        first = grad_offsets + 2 * (row + level * num_points)
        _store(first, column, 2 * num_points, slopes, is_real)
        tokens += height.to(tl.int32) * line
    products *= weights
    slopes = products - weights * tl.sum(products, axis=1)[:, None]
    _store(grad_logits + row, column, num_levels * num_points, slopes, is_real)
