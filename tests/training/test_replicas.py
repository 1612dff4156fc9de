"""A bit that differs between replicas of a parameter is found, and nothing else."""

import pathlib
import random

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from cases import runs, trainer_cases
from prottrans_jax import partitioning
from prottrans_jax.training import replicas, train_state

SCHEMES = {
    "data_parallel": dict(model=1),
    "tensor_parallel": dict(model=2),
    "2d": dict(model=2),
}


@pytest.fixture(scope="module", params=SCHEMES)
def run(request):
    """Parameters of a small T5 on 4 devices, and their check."""
    partitioner = partitioning.Partitioner(
        scheme=request.param, num_devices=4, **SCHEMES[request.param]
    )
    plan = runs.plan(
        **trainer_cases.arguments(pathlib.Path("unused"), partitioner=partitioner)
    )
    params = train_state.initialize(plan, seed=3).params
    check = replicas.ReplicaCheck(
        partitioner.mesh, plan.shapes.params, plan.shardings.params
    )
    return params, check


def flipped(array, device, rng):
    """The array with one bit changed in the replica of one device."""
    parts = []
    for shard in array.addressable_shards:
        host = np.asarray(shard.data)
        if shard.device == device:
            content = bytearray(host.tobytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            host = np.frombuffer(bytes(content), host.dtype).reshape(host.shape)
        parts.append(jax.device_put(host, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def faults(check, params):
    return check.faults(jax.device_get(check.fold(params)))


def with_replicas(params):
    """Names and arrays of which two devices hold the same part."""
    named = jax.tree_util.tree_leaves_with_path(params)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in named
        if len({s.index.__repr__() for s in leaf.addressable_shards}) < 4
    ]


def test_every_single_flipped_bit_is_found_at_its_parameter(run):
    params, check = run
    rng = random.Random(0)
    leaves, tree = jax.tree.flatten(params)
    chosen = with_replicas(params)
    places = {id(leaf): place for place, leaf in enumerate(leaves)}
    for _ in range(40):
        name, leaf = rng.choice(chosen)
        device = rng.choice(jax.devices()[:4])
        changed = list(leaves)
        changed[places[id(leaf)]] = flipped(leaf, device, rng)
        (fault,) = faults(check, jax.tree.unflatten(tree, changed))
        assert fault.parameter == name and device in fault.devices
        # With two replicas either may be the wrong one.
        assert len(fault.devices) == (1 if fault.count > 2 else 2)


def test_equal_replicas_are_never_reported(run):
    params, check = run
    for seed in range(20):
        other = jax.tree.map(lambda x, seed=seed: x * (1 + seed), params)
        assert faults(check, other) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_every_bit_of_every_type_counts(dtype):
    mesh = partitioning.Partitioner(num_devices=4).mesh
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    host = np.asarray(np.arange(15).reshape(5, 3) % 2, jnp.dtype(dtype))
    array = jax.device_put(host, sharding)
    check = replicas.ReplicaCheck(mesh, {"x": array}, {"x": sharding})
    device = jax.devices()[2]
    for position in range(host.size):
        for bit in range(1 if dtype == "bool" else 8 * host.itemsize):
            word = np.dtype(f"u{host.itemsize}")
            other = host.view(word).copy()
            other.reshape(-1)[position] ^= word.type(1 << bit)
            parts = [
                jax.device_put(other.view(host.dtype) if d == device else host, d)
                for d in jax.devices()[:4]
            ]
            changed = jax.make_array_from_single_device_arrays(
                host.shape, sharding, parts
            )
            (fault,) = faults(check, {"x": changed})
            assert fault.devices == (device,)


def test_parameters_without_replicas_are_not_compared():
    mesh = partitioning.Partitioner(num_devices=1).mesh
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shape = jax.ShapeDtypeStruct((3,), np.float32)
    check = replicas.ReplicaCheck(mesh, {"x": shape}, {"x": sharding})
    assert not check.compares


def test_host_device_and_parameter_are_named():
    first, second = jax.devices()[:2]
    text = replicas.describe(
        [
            replicas.Fault("decoder/a", (second,), 3),
            replicas.Fault("decoder/b", (second,), 3),
        ],
        ["tpu-7, pid 12"],
    )
    assert text.startswith("device 1 (cpu) of process 0 (tpu-7, pid 12): 2 parameter")
    assert "decoder/a, decoder/b" in text and "other 2 of 3 replicas" in text
    text = replicas.describe(
        [replicas.Fault("decoder/a", (first, second), 2)], ["tpu-7, pid 12"]
    )
    assert " or device 1 (cpu)" in text and "differ between 2 replicas" in text
