"""The walker against programs whose bytes and operations are known by arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.performance.plan import hlo, programs, traffic
from dera_jax.performance.plan.chips import CHIPS, parse_slice, slices
from dera_jax.performance.plan.hlo import Shape

LOOP = """
HloModule hand_written, is_scheduled=true

%sliced (p.0: f32[8,256,128], p.1: s32[]) -> f32[256,128] {
  %p.0 = f32[8,256,128]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %one = f32[1,256,128]{2,1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,256,128}
  ROOT %flat = f32[256,128]{1,0:T(8,128)} bitcast(%one)
}

%updated (q.0: f32[8,256,128], q.1: f32[1,256,128], q.2: s32[]) -> f32[8,256,128] {
  %q.0 = f32[8,256,128]{2,1,0:T(8,128)} parameter(0)
  %q.1 = f32[1,256,128]{2,1,0:T(8,128)} parameter(1)
  %q.2 = s32[]{:T(128)} parameter(2)
  %none = s32[]{:T(128)} constant(0)
  ROOT %put = f32[8,256,128]{2,1,0:T(8,128)} dynamic-update-slice(%q.0, %q.1, %q.2, %none, %none)
}

%body (state: (s32[], f32[8,256,128], f32[64,256])) -> (s32[], f32[8,256,128], f32[64,256]) {
  %state = STATE parameter(0)
  %i = s32[]{:T(128)S(2)} get-tuple-element(%state), index=0
  %stack = f32[8,256,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=1
  %x = f32[64,256]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=2
  %weights = f32[256,128]{1,0:T(8,128)S(1)} fusion(%stack, %i), kind=kLoop, calls=%sliced
  %y = f32[64,128]{1,0:T(8,128)S(1)} dot(%x, %weights), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %all = f32[64,128]{1,0:T(8,128)S(1)} all-reduce(%y), replica_groups=[2,4]<=[8], to_apply=%add
  %new = f32[1,256,128]{2,1,0:T(8,128)S(1)} bitcast(%weights)
  %kept = f32[8,256,128]{2,1,0:T(8,128)} fusion(%stack, %new, %i), kind=kLoop, calls=%updated
  %step = s32[]{:T(128)S(2)} constant(1)
  %next = s32[]{:T(128)S(2)} add(%i, %step)
  ROOT %out = STATE tuple(%next, %kept, %x)
}

%condition (given: (s32[], f32[8,256,128], f32[64,256])) -> pred[] {
  %given = STATE parameter(0)
  %count = s32[]{:T(128)S(2)} get-tuple-element(%given), index=0
  %limit = s32[]{:T(128)S(2)} constant(8)
  ROOT %less = pred[]{:T(512)S(2)} compare(%count, %limit), direction=LT
}

ENTRY %main (a: f32[8,256,128], b: f32[64,256]) -> f32[8,256,128] {
  %a = f32[8,256,128]{2,1,0:T(8,128)} parameter(0)
  %b = f32[64,256]{1,0:T(8,128)} parameter(1)
  %start = s32[]{:T(128)S(2)} constant(3)
  %fetch = (f32[64,256]{1,0:T(8,128)S(1)}, f32[64,256]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%b)
  %near = f32[64,256]{1,0:T(8,128)S(1)} copy-done(%fetch)
  %begin = STATE tuple(%start, %a, %near)
  %loop = STATE while(%begin), condition=%condition, body=%body
  ROOT %result = f32[8,256,128]{2,1,0:T(8,128)} get-tuple-element(%loop), index=1
}
""".replace("STATE", "(s32[]{:T(128)S(2)}, f32[8,256,128]{2,1,0:T(8,128)}, f32[64,256]{1,0:T(8,128)S(1)})")
"""Five of eight layers' weights go to fast memory, are multiplied and put back."""


def test_a_loop_in_place_by_hand():
    program = hlo.parse(LOOP)
    walk = traffic.Walk(program)
    layer, x = 256 * 128 * 4, 64 * 256 * 4
    assert program.argument_bytes == 8 * layer + x
    (loop,) = walk.loops
    # From the counter's start at 3 to the limit of 8; a layer is read, and written where it was.
    assert loop.trips == 5
    assert (loop.body.read, loop.body.written) == (layer, layer)
    assert walk.cost.read == 5 * layer + x  # the copy into fast memory
    assert walk.cost.written == 5 * layer
    assert walk.cost.flops == 5 * 2 * 64 * 256 * 128
    (reduced,) = walk.cost.collectives
    assert (reduced.kind, reduced.group, reduced.count, reduced.nbytes) == ("all-reduce", 4, 5, 64 * 128 * 4)
    assert reduced.sent == 2 * 3 / 4 * 64 * 128 * 4
    assert walk.cost.unknown == ()


def test_a_loop_whose_trips_are_not_told_is_named():
    walk = traffic.Walk(hlo.parse(LOOP.replace("constant(3)", "parameter(2)")))
    assert walk.loops[0].trips is None
    assert walk.cost.unknown == ("loop",)
    assert walk.cost.flops == 2 * 64 * 256 * 128


@pytest.mark.parametrize(
    ("shape", "padded"),
    [
        (Shape("bf16", (16, 2048, 128), "2,1,0:T(8,128)(2,1)"), 16 * 2048 * 128 * 2),
        (Shape("bf16", (4096, 4000), "0,1:T(8,128)(2,1)"), 4096 * 4000 * 2),
        (
            Shape("bf16", (4000, 4096), "0,1:T(8,128)(2,1)"),
            4096 * 4096 * 2,
        ),  # 4000 fills 32 lanes' worth of tiles
        (Shape("f32", (3, 5), "1,0:T(8,128)"), 8 * 128 * 4),
        (Shape("s32", (16,), "0:T(128)"), 128 * 4),
        (Shape("pred", (16,), "0:T(512)(128)(4,1)"), 512),
        (Shape("u4", (4096, 1024), "1,0:T(64,128)(8,1)E(4)"), 4096 * 1024 // 2),
        (Shape("u4", (16,)), 16),  # a byte each where nothing says that they are packed
        (Shape("f32", ()), 4),
    ],
)
def test_tiles_are_whole(shape, padded):
    assert shape.padded == shape.hbm == padded


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}", 4),
    ],
)
def test_how_many_devices_take_part(groups, size):
    walk = traffic.Walk(hlo.parse(LOOP.replace("replica_groups=[2,4]<=[8]", groups)))
    assert walk.cost.collectives[0].group == size


@pytest.mark.parametrize(
    ("left", "right", "line", "flops"),
    [
        ("16,64", "64,96", "f32[16,96] convolution(%l, %r), dim_labels=bf_io->bf", 2 * 16 * 64 * 96),
        # A batch of 16 products, as TPUs write it.
        (
            "16,4,64",
            "16,64,96",
            "f32[16,4,96] convolution(%l, %r), window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0io->0bf",
            2 * 16 * 4 * 64 * 96,
        ),
        # Two of three taps are in padding.
        (
            "1,1,64",
            "3,64,96",
            "f32[1,1,96] convolution(%l, %r), window={size=3 pad=2_0}, dim_labels=b0f_0io->b0f",
            2 * 64 * 96,
        ),
    ],
)
def test_operations_of_convolutions(left, right, line, flops):
    text = f"""ENTRY %main (l: f32[1]) -> f32[1] {{
  %l = f32[{left}] parameter(0)
  %r = f32[{right}] parameter(1)
  ROOT %out = {line}
}}"""
    assert traffic.Walk(hlo.parse(text)).cost.flops == flops


def _layers(x, weights):
    return jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), y.sum()), x, weights)


def test_operations_of_a_scan_compiled_for_this_machine():
    compiled = jax.jit(_layers).lower(jnp.ones((8, 64)), jnp.ones((12, 64, 64))).compile()
    walk = traffic.Walk(hlo.parse(compiled.as_text()))
    if walk.cost.flops:  # small products may become calls of a library
        assert walk.cost.flops == 12 * 2 * 8 * 64 * 64
    assert 12 in [loop.trips for loop in walk.loops]


def test_bytes_of_a_scan_compiled_for_a_tpu():
    pytest.importorskip("libtpu")
    mesh = programs.tpu_mesh(parse_slice("v5e:1x1"), (1, 1))
    whole = jax.NamedSharding(mesh, jax.P())
    x = jax.ShapeDtypeStruct((16, 2048), jnp.bfloat16, sharding=whole)
    weights = jax.ShapeDtypeStruct((12, 2048, 2048), jnp.bfloat16, sharding=whole)
    compiled = jax.jit(_layers).lower(x, weights).compile()
    program = hlo.parse(compiled.as_text())
    cost = traffic.Walk(program).cost
    assert program.argument_bytes == compiled.memory_analysis().argument_size_in_bytes
    assert cost.flops == 12 * 2 * 16 * 2048**2
    # Each layer's weights once, and the few kB of what goes in and comes out.
    assert 1 <= cost.moved / (12 * 2048**2 * 2) < 1.01
    # XLA's own figure counts the loop's body once.
    assert compiled.cost_analysis()["flops"] < cost.flops / 2


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="expected text with an ENTRY computation, found 'nothing'"):
        hlo.parse("nothing")


def test_slices_by_their_names():
    assert parse_slice("v5litepod-8") == parse_slice("v5e:2x4")
    assert parse_slice("v4-8").name == "v4:2x2x1"  # its number counts cores
    assert parse_slice("v6e-1").devices == 1
    assert parse_slice("tpu7x:2x2x1").devices == 8  # two to a chip
    for chip in CHIPS.values():
        sizes = [int(np.prod(each.shape)) for each in slices(chip)]
        assert sizes == sorted(set(sizes))
    with pytest.raises(ValueError, match=r"expected one of v5e:1x1\|.*v5litepod-N.*; got 'v5e:3x3'"):
        parse_slice("v5e:3x3")
    with pytest.raises(ValueError, match=r"expected one of v4:2x2x1\|.*v5e:1x1\|.*; got 'v9:2x2'"):
        parse_slice("v9:2x2")


def test_the_longer_of_bytes_and_operations():
    v5e = parse_slice("v5e:2x4")
    assert v5e.seconds(819e9, 1.0) == 1.0
    assert v5e.seconds(1.0, 2 * 197e12) == 2.0
    assert parse_slice("tpu7x:2x2x1").seconds(7380e9 / 2, 1.0) == 1.0
