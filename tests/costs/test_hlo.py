# ruff: noqa: E501  (HLO text has long lines)
"""Costs read from compiled programs, against counts by hand."""

import functools

import jax
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import pytest

from prottrans_jax.costs import hlo, hlo_costs

LAYERS, BATCH, WIDTH = 7, 16, 24


@pytest.fixture(scope="module")
def module():
    """A scan of 7 products, batch over 4 devices, contraction over 2."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def spec(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    @functools.partial(
        jax.jit,
        in_shardings=(spec("data", "model"), spec(None, "model", None)),
        out_shardings=spec("data", "model"),
    )
    def run(x, kernels):
        def body(x, kernel):
            x = jax.lax.with_sharding_constraint(jnp.tanh(x @ kernel), spec("data"))
            return jax.lax.with_sharding_constraint(x, spec("data", "model")), None

        return jax.lax.scan(body, x, kernels)[0]

    shapes = ((BATCH, WIDTH), (LAYERS, WIDTH, WIDTH))
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.Module(run.lower(*args).compile().as_text())


def test_products_of_a_scanned_layer_count_once_per_layer(module):
    local = 2 * (BATCH // 4) * (WIDTH // 2) * WIDTH
    assert hlo_costs.costs(module).flops == LAYERS * local
    assert hlo_costs.costs(module, loops_run=False).flops == local
    assert list(hlo_costs.costs(module).trip_counts.values()) == [LAYERS]


def test_collectives_are_counted_with_bytes(module):
    reduces = hlo_costs.costs(module).collectives["all-reduce"]
    payload = LAYERS * (BATCH // 4) * WIDTH * 4
    assert reduces.count == LAYERS
    assert reduces.payload_bytes == payload
    # A ring of two: each sends half, twice.
    assert reduces.wire_bytes == payload


# As XLA:TPU writes: loop length in the condition, fused reduce-scatter, on-chip buffers.
TEXT = """\
HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (input: f32[32,8]) -> f32[4,8] {
  %input = f32[32,8]{1,0:T(8,128)} parameter(0)
  %ar = f32[32,8]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[4,8]{1,0:T(8,128)} dynamic-slice(%ar, %zero, %zero), dynamic_slice_sizes={4,8}
}

%slices (stack: f32[5,32,8], at: s32[]) -> f32[1,32,8] {
  %stack = f32[5,32,8]{2,1,0:T(8,128)} parameter(0)
  %at = s32[]{:T(128)} parameter(1)
  ROOT %layer = f32[1,32,8]{2,1,0:T(8,128)} dynamic-slice(%stack, %at, %at, %at), dynamic_slice_sizes={1,32,8}
}

%body (p: (s32[], f32[5,32,8])) -> (s32[], f32[5,32,8]) {
  %p = (s32[]{:T(128)}, f32[5,32,8]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %w = f32[5,32,8]{2,1,0:T(8,128)} get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %kernel = f32[1,32,8]{2,1,0:T(8,128)S(1)} fusion(%w, %i), kind=kLoop, calls=%slices
  %flat = f32[32,8]{1,0:T(8,128)S(1)} bitcast(%kernel)
  %scattered = f32[4,8]{1,0:T(8,128)S(1)} fusion(%flat), kind=kCustom, calls=%all-reduce-scatter.1
  %gathered = f32[4,16]{1,0:T(8,128)S(1)} all-gather(%scattered), replica_groups=[4,2]<=[8], dimensions={1}
  %product = f32[4,4]{1,0:T(8,128)S(1)} convolution(%gathered, %gathered), dim_labels=bf_oi->bf
  ROOT %out = (s32[]{:T(128)}, f32[5,32,8]{2,1,0:T(8,128)}) tuple(%next, %w)
}

%condition (p: (s32[], f32[5,32,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %p = (s32[]{:T(128)}, f32[5,32,8]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %more = pred[]{:T(128)} compare(%i, %limit), direction=LT
}

ENTRY %main (w: f32[5,32,8]) -> (s32[], f32[5,32,8]) {
  %w = f32[5,32,8]{2,1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %first = (s32[]{:T(128)}, f32[5,32,8]{2,1,0:T(8,128)}) tuple(%zero, %w)
  ROOT %loop = (s32[]{:T(128)}, f32[5,32,8]{2,1,0:T(8,128)}) while(%first), condition=%condition, body=%body
}
"""


def test_tpu_text_is_read_as_the_compiler_means_it():
    costs = hlo_costs.costs(hlo.Module(TEXT))
    assert costs.trip_counts == {"body": 5}
    assert costs.flops == 5 * 2 * 4 * 4 * 16
    # 8 devices reduce 1,024 bytes each and keep an eighth.
    assert costs.collectives["reduce-scatter"] == hlo_costs.Collective(
        5, 5 * 1024, 5 * 896
    )
    # 2 devices hold 128 bytes each and send it to the other.
    assert costs.collectives["all-gather"] == hlo_costs.Collective(5, 5 * 256, 5 * 128)
    # One slice of the stack is read a turn (and the counter, three words); what stays on
    # the chip does not count.
    assert costs.bytes == 5 * (32 * 8 * 4 + 4 + 3 * 4)


# A gather that starts before a loop and goes on in fusions of its body.
OVERLAPPED = """\
%begin (x: f32[4,8]) -> (f32[4,8], f32[8,8]) {
  %x = f32[4,8] parameter(0)
  %g = f32[8,8] all-gather(%x), channel_id=3, replica_groups=[1,2]<=[2], dimensions={0}
  ROOT %t = (f32[4,8], f32[8,8]) tuple(%x, %g)
}

%async_collective_fusion.7 (x: f32[4,8], g: f32[8,8]) -> (f32[4,8], f32[8,8]) {
  %x = f32[4,8] parameter(0)
  %g = f32[8,8] parameter(1)
  %again = f32[8,8] all-gather(%x), channel_id=3, replica_groups=[1,2]<=[2], dimensions={0}
  ROOT %t = (f32[4,8], f32[8,8]) tuple(%x, %again)
}

%body (p: (u32[], f32[4,8], f32[8,8])) -> (u32[], f32[4,8], f32[8,8]) {
  %p = (u32[], f32[4,8], f32[8,8]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %x = f32[4,8] get-tuple-element(%p), index=1
  %g = f32[8,8] get-tuple-element(%p), index=2
  %two = u32[] constant(2)
  %next = u32[]{:S(6)} add(%i, %two)
  %kept = u32[]{:S(6)} copy(%next)
  %f = (f32[4,8], f32[8,8]) fusion(%x, %g), kind=kOutput, output_to_operand_aliasing={{0}: (0, {}), {1}: (1, {})}, calls=%async_collective_fusion.7
  %y = f32[4,8] get-tuple-element(%f), index=0
  %h = f32[8,8] get-tuple-element(%f), index=1
  %near = (f32[4,8]{1,0:S(1)}, f32[4,8], u32[]{:S(2)}) copy-start(%y)
  %there = f32[4,8]{1,0:S(1)} copy-done(%near)
  ROOT %out = (u32[], f32[4,8], f32[8,8]) tuple(%kept, %y, %h)
}

%condition (p: (u32[], f32[4,8], f32[8,8])) -> pred[] {
  %limit = u32[] constant(9)
  %p = (u32[], f32[4,8], f32[8,8]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  ROOT %more = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[4,8]) -> (u32[], f32[4,8], f32[8,8]) {
  %x = f32[4,8]{1,0:S(1)} parameter(0)
  %one = u32[] constant(1)
  %b = (f32[4,8]{1,0:S(1)}, f32[8,8]{1,0:S(1)}) fusion(%x), kind=kCustom, calls=%begin
  %y = f32[4,8] get-tuple-element(%b), index=0
  %g = f32[8,8] get-tuple-element(%b), index=1
  %first = (u32[], f32[4,8], f32[8,8]) tuple(%one, %y, %g)
  ROOT %loop = (u32[], f32[4,8], f32[8,8]) while(%first), condition=%condition, body=%body
}
"""


def test_collective_that_overlaps_with_a_loop_counts_once():
    costs = hlo_costs.costs(hlo.Module(OVERLAPPED))
    assert costs.trip_counts == {"body": 4}  # 1, 3, 5, 7
    assert costs.collectives == {"all-gather": hlo_costs.Collective(1, 256, 128)}
    # A turn copies 128 bytes onto the chip and reads the counter and its step; the
    # buffers of the gather pass through.
    assert costs.bytes == 4 * (128 + 8)


def test_padding_positions_of_a_convolution_do_not_count():
    text = """\
ENTRY %main (x: f32[2,3,5], k: f32[3,5,7]) -> f32[2,3,7] {
  %x = f32[2,3,5] parameter(0)
  %k = f32[3,5,7] parameter(1)
  ROOT %c = f32[2,3,7] convolution(%x, %k), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f
}
"""
    # Of 3 x 3 (position, tap) pairs the two at the ends meet padding.
    assert hlo_costs.costs(hlo.Module(text)).flops == 2 * 2 * 5 * 7 * (9 - 2)


def test_text_that_is_not_hlo_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.Module("module @jit_f {}")
