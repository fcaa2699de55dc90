"""Where arrays live: a device mesh with the axes `data` and `fsdp`.

A batch is split over all devices. A parameter is split over `fsdp`, along the largest of its axes
that `fsdp` divides. Optimizer states and followers have the shapes and path endings of their
player's parameters, so they are split in the same way. Layers that are stacked for a loop are each
split as one layer alone; the axis of layers is never split.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fewstep.models.network import STACKED, Network

AXES = ("data", "fsdp")
# Axes of the same devices where a batch has fewer rows than devices: rows, and lines of an image.
SHARES = ("rows", "lines")
# Time to exchange keys and values of a row, as a share of the time to compute the row: a DiT-B,
# links of 400 GB/s, devices of 400 TFLOP/s.
EXCHANGE = 0.2
# Matches paths of arrays [depth, ...] that stack layers.
LAYERS = rf"(^|/){STACKED}/"
# Smaller arrays stay whole: splitting a bias saves nothing and costs a collective.
SMALLEST_SPLIT = 2**12


def make_mesh(data: int = -1, fsdp: int = 1, fsdp_across_slices: bool = False) -> Mesh:
    """A mesh over all devices. One of the sizes may be -1, which takes the remaining devices.

    Fast links connect the devices of a slice: a TPU slice, or a host of GPUs. `data` spans slices.
    `fsdp` exchanges parameters in every layer, so it stays inside a slice unless
    fsdp_across_slices.

    Raises ValueError if the sizes do not fit the devices or their slices.
    """
    sizes = mesh_sizes(data, fsdp, jax.device_count())
    grid = device_grid(group_by_slice(jax.devices()), *sizes, fsdp_across_slices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(data: int, fsdp: int, count: int) -> tuple[int, int]:
    """The sizes of both axes, -1 replaced by the remainder of `count`. Raises ValueError."""
    sizes = {"data": data, "fsdp": fsdp}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1 or fixed < 1 or count % fixed or (not free and fixed != count):
        raise ValueError(
            f"mesh.data={data} and mesh.fsdp={fsdp} do not fill {count} device(s); their product "
            f"must be {count}; set one of them to -1 to take the remaining devices"
        )
    for name in free:
        sizes[name] = count // fixed
    return sizes["data"], sizes["fsdp"]


def group_by_slice(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices of each slice, in the order of their processes."""
    slices: dict[int, list[jax.Device]] = {}
    for device in sorted(devices, key=lambda device: (device.process_index, device.id)):
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    return list(slices.values())


def slice_mesh_sizes(size: int, count: int, fsdp: int, fsdp_across_slices: bool) -> tuple[int, int]:
    """Sizes of both axes within each of `count` slices of `size` devices.

    Raises ValueError if fsdp spans slices without fsdp_across_slices.
    """
    if size % fsdp == 0:
        return size // fsdp, fsdp
    if fsdp % size == 0 and fsdp_across_slices:
        return 1, size
    raise ValueError(
        f"mesh.fsdp={fsdp} does not fit into slices (TPU slices, or hosts of GPUs) of {size} "
        f"device(s), of which there are {count}; use a divisor of {size}, or a multiple with "
        "mesh.fsdp_across_slices=True, which is slow if links between slices are"
    )


def device_grid(
    slices: Sequence[Sequence[jax.Device]], data: int, fsdp: int, fsdp_across_slices: bool
) -> np.ndarray:
    """The devices as an array [data, fsdp]; rows of one slice are neighbours, by process.

    So the rows of a batch lie in the order of the processes that read them, if each row of devices
    belongs to one process. Where fsdp spans processes of a TPU slice, the links between chips
    decide, and the batch may have the same rows in another order.

    Raises ValueError for slices of different sizes, or if fsdp spans slices without
    fsdp_across_slices.
    """
    size = len(slices[0])
    if any(len(own) != size for own in slices):
        raise ValueError(
            f"the slices (TPU slices, or hosts of GPUs) have {[*map(len, slices)]} devices, and a "
            "mesh needs equally many in each; start the job on slices of one size"
        )
    inside = slice_mesh_sizes(size, len(slices), fsdp, fsdp_across_slices)
    # jax.make_mesh knows the physical links inside a slice, and refuses several slices.
    grids = [jax.make_mesh(inside, AXES, devices=own).devices for own in slices]
    return np.concatenate([*map(sort_rows, grids)], axis=0).reshape(data, fsdp)


def sort_rows(grid: np.ndarray) -> np.ndarray:
    """The rows of devices of a grid in the order of their processes.

    Rows and columns keep their devices, so collectives stay in the same groups.
    """
    first = [min(device.process_index for device in row) for row in grid]
    return grid[np.argsort(first, kind="stable")]


def describe_topology() -> str:
    """Slices, hosts and devices of the job, in words."""
    slices, hosts = group_by_slice(jax.devices()), jax.process_count()
    return (
        f"{len(slices)} slice(s) of {'/'.join(map(str, sorted({*map(len, slices)})))} device(s), "
        f"{hosts} process(es) of {jax.local_device_count()}"
    )


def batch_sharding(mesh: Mesh, stacked: bool = False) -> NamedSharding:
    """Splits the first axis over all devices; the second one of stacked batches."""
    return NamedSharding(mesh, PartitionSpec(None, AXES) if stacked else PartitionSpec(AXES))


def spread(network: Network, mesh: Mesh) -> Network:
    """The network with its inputs and outputs split evenly over all devices of the mesh.

    Without this, XLA may compute whole batches everywhere, or split the features of a row, where a
    loss cuts or joins batches (bootstrap rows, both sides of guidance). Rows are split, and padded
    where devices cannot have equal shares. If there are fewer rows than devices, the lines of
    images are split too, if the network allows it (`count_row_devices`). Devices that share an
    image exchange the keys and values of attention.
    """

    put = jax.lax.with_sharding_constraint

    def shardings(rows: int) -> tuple[NamedSharding, NamedSharding]:
        count = count_row_devices(rows, mesh.size, network.token_rows)
        if count == mesh.size:
            return batch_sharding(mesh), batch_sharding(mesh)
        shares = Mesh(mesh.devices.reshape(count, -1), SHARES)
        return (
            NamedSharding(shares, PartitionSpec(SHARES[0])),
            NamedSharding(shares, PartitionSpec(*SHARES)),
        )

    def apply(
        params: Any, x: Array, t: Array, s: Array, condition: Mapping[str, Array], **mode: Any
    ) -> Array:
        row_sharding, image_sharding = shardings(x.shape[0])
        x, (t, s, condition) = put(x, image_sharding), put((t, s, condition), row_sharding)
        return put(network.apply(params, x, t, s, condition, **mode), image_sharding)

    def features(
        params: Any,
        x: Array,
        t: Array,
        s: Array,
        condition: Mapping[str, Array],
        names: Sequence[str],
        **mode: Any,
    ) -> tuple[Array, dict[str, Array]]:
        row_sharding, image_sharding = shardings(x.shape[0])
        x, (t, s, condition) = put(x, image_sharding), put((t, s, condition), row_sharding)
        output, hidden = network.features(params, x, t, s, condition, names, **mode)
        return put(output, image_sharding), put(hidden, row_sharding)

    if mesh.size == 1:
        return network
    return network._replace(apply=apply, features=network.features and features)


def count_row_devices(rows: int, devices: int, lines: int) -> int:
    """Number of devices to split rows over; the factor that remains splits the lines of each image.

    Minimizes the cost of a device, which computes its parts of rows and exchanges keys and values.
    """

    def cost(count: int) -> float:
        parts = devices // count
        return -(-rows // count) * (1.0 / parts + (EXCHANGE if parts > 1 else 0.0))

    parts = [n for n in range(1, devices + 1) if devices % n == 0 and lines % n == 0]
    return min((devices // n for n in parts), key=cost)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raises ValueError unless the devices can have equal shares of each micro-batch."""
    if micro_batches < 1:
        raise ValueError(f"micro_batches={micro_batches} must be 1 or more")
    shares = mesh.size * micro_batches
    if batch_size % shares:
        parts = f" x {micro_batches} micro_batches" if micro_batches > 1 else ""
        nearest = {batch_size // shares * shares or shares, -(-batch_size // shares) * shares}
        raise ValueError(
            f"batch_size={batch_size} is not divisible by the {mesh.size} devices of the mesh"
            f"{parts}; use {' or '.join(map(str, sorted(nearest)))}"
        )


def parameter_spec(path: str, shape: Sequence[int], fsdp: int) -> PartitionSpec:
    """The spec of one array: splits its largest divisible axis over fsdp, if the array is large."""
    if re.search(LAYERS, path):
        return PartitionSpec(None, *parameter_spec("", shape[1:], fsdp))
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not divisible or int(np.prod(shape)) < SMALLEST_SPLIT:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[AXES[1] if axis == largest else None for axis in range(len(shape))])


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a tree of arrays or shapes."""

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh.shape[AXES[1]]))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def with_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Shapes and dtypes of a tree, with the sharding of each leaf."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch as global arrays split over the mesh. batch: this process's rows of it."""
    return put_rows(batch, batch_sharding(mesh))


def put_batches(source: Iterator[Any], count: int, mesh: Mesh) -> Any:
    """The next `count` batches, stacked on a new first axis, as global arrays."""
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *itertools.islice(source, count))
    return put_rows(stacked, batch_sharding(mesh, stacked=True))


def put_rows(rows: Any, sharding: NamedSharding) -> Any:
    """Arrays of this process's rows as global arrays; one process puts all of them at once."""
    if jax.process_count() == 1:
        return jax.device_put(rows, sharding)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), rows)
