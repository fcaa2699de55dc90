import pytest

from fewstep.training.cost.accelerators import ACCELERATORS, KINDS, accelerator_of, parse_target


@pytest.mark.parametrize(
    ("text", "name", "devices", "hosts", "slices"),
    [
        ("v4-8", "v4", 4, 1, 1),
        ("v4-32", "v4", 16, 4, 1),
        ("v5p-8", "v5p", 4, 1, 1),
        ("v5p-256", "v5p", 128, 32, 1),
        ("v5e-1", "v5e", 1, 1, 1),
        ("v5litepod-8", "v5e", 8, 1, 1),
        ("v5e-16", "v5e", 16, 4, 1),
        ("v6e-4", "v6e", 4, 1, 1),
        ("V6E-256", "v6e", 256, 64, 1),
        ("2xv4-32", "v4", 32, 8, 2),
        ("1xh200", "h200", 1, 1, 1),
        ("8xh100", "h100", 8, 1, 1),
        ("16xa100-80", "a100-80", 16, 2, 2),
        ("4xrtx-4090", "rtx-4090", 4, 1, 1),
        ("h100", "h100", None, 0, 1),
        ("a100-40", "a100-40", None, 0, 1),
    ],
)
def test_a_name_says_how_many_devices_and_hosts(text, name, devices, hosts, slices):
    found = parse_target(text)
    assert (found.name, found.devices, found.hosts, found.slices) == (name, devices, hosts, slices)
    assert found.accelerator is ACCELERATORS[name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h10", "--accelerator='h10' is not one of .*; did you mean 'h100'"),
        ("v4-12", "counts TensorCores, 2 per chip, .* use v4-8, v4-16"),
        ("v4-7", "use v4-8"),
        ("v5e-6", "counts chips, .* multiple of 4 chips; use v5e-4, v5e-8"),
        ("v4-0", "has no devices"),
        ("0xh100", "has no devices"),
        ("h100-8", "only TPUs have slices; 8 GPUs are 8xh100"),
        ("16xv4", "TPUs come as slices; name one, such as v4-8"),
        ("11xh100", "the same number of devices on each host, and hosts have 8; use 8xh100"),
    ],
)
def test_what_does_not_exist_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_target(text)


def test_peaks_are_those_of_the_dtype():
    h100, v4 = ACCELERATORS["h100"], ACCELERATORS["v4"]
    assert h100.peak_flops("bfloat16") == 989e12 and h100.peak_flops("float32") == 494.5e12
    assert v4.peak_flops("bfloat16") == v4.peak_flops("float32") == 275e12
    assert h100.room == 60 * 2**30 and v4.room == 0.95 * 32 * 2**30


def test_every_kind_of_device_stands_for_an_accelerator_and_parts_of_one_do_not():
    assert set(KINDS.values()) == set(ACCELERATORS)
    assert accelerator_of("TPU v5 lite") is ACCELERATORS["v5e"]
    for name, accelerator in ACCELERATORS.items():  # the kind of a plan
        assert accelerator_of(name) is accelerator
    for other in ("cpu", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""):
        assert accelerator_of(other) is None
