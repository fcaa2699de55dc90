"""Our FID Inception, and our reader of PyTorch's files, against PyTorch.

The reference is a transcription of the architecture in plain PyTorch and float64, layer by layer,
with explicit padding and unfolded batch normalisation. Its resize follows the rule of TensorFlow 1
pixel by pixel. Weights and statistics are random.
"""

from collections import OrderedDict

import chex
import jax
import numpy as np
import pytest

from fewstep.eval.features.inception import apply
from fewstep.eval.features.inception_weights import inception_params
from fewstep.weights.tensors import read_tensors

torch = pytest.importorskip("torch", reason="PyTorch is installed by `make parity`")
nn, functional = torch.nn, torch.nn.functional

pytestmark = pytest.mark.parity

TOLERANCE = 1e-3  # of the standard deviation of the reference


class Unit(nn.Module):
    def __init__(self, before, after, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


def mean_pool(x):
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class A(nn.Module):
    def __init__(self, before, pooled):
        super().__init__()
        self.branch1x1 = Unit(before, 64, 1)
        self.branch5x5_1 = Unit(before, 48, 1)
        self.branch5x5_2 = Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Unit(before, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)
        self.branch_pool = Unit(before, pooled, 1)

    def forward(self, x):
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(mean_pool(x))], 1)


class B(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch3x3 = Unit(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = Unit(288, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, stride=2)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class C(nn.Module):
    def __init__(self, width):
        super().__init__()
        flat, tall = {"padding": (0, 3)}, {"padding": (3, 0)}
        self.branch1x1 = Unit(768, 192, 1)
        self.branch7x7_1 = Unit(768, width, 1)
        self.branch7x7_2 = Unit(width, width, (1, 7), **flat)
        self.branch7x7_3 = Unit(width, 192, (7, 1), **tall)
        self.branch7x7dbl_1 = Unit(768, width, 1)
        self.branch7x7dbl_2 = Unit(width, width, (7, 1), **tall)
        self.branch7x7dbl_3 = Unit(width, width, (1, 7), **flat)
        self.branch7x7dbl_4 = Unit(width, width, (7, 1), **tall)
        self.branch7x7dbl_5 = Unit(width, 192, (1, 7), **flat)
        self.branch_pool = Unit(768, 192, 1)

    def forward(self, x):
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(mean_pool(x))], 1)


class D(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch3x3_1 = Unit(768, 192, 1)
        self.branch3x3_2 = Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Unit(768, 192, 1)
        self.branch7x7x3_2 = Unit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Unit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Unit(192, 192, 3, stride=2)

    def forward(self, x):
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([three, self.branch7x7x3_4(seven), functional.max_pool2d(x, 3, 2)], 1)


class E(nn.Module):
    def __init__(self, before, pool):
        super().__init__()
        self.pool = pool
        self.branch1x1 = Unit(before, 320, 1)
        self.branch3x3_1 = Unit(before, 384, 1)
        self.branch3x3_2a = Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Unit(before, 448, 1)
        self.branch3x3dbl_2 = Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Unit(before, 192, 1)

    def forward(self, x):
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ]
        return torch.cat(parts, 1)


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
        self.Mixed_6a = B()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = C(128), C(160), C(160), C(192)
        self.Mixed_7a = D()
        self.Mixed_7b = E(1280, mean_pool)
        self.Mixed_7c = E(2048, lambda x: functional.max_pool2d(x, 3, stride=1, padding=1))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, 2)
        x = functional.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean((2, 3))
        return features, self.fc(features), features @ self.fc.weight.T


def randomize(model, seed):
    """Random weights, and statistics near those of the activations on four images, layer by layer.

    Activations then stay of order 1 and tell images apart, and variances differ in size.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape, low, high):
        return low + (high - low) * torch.rand(shape, generator=generator)

    def normal(shape, scale):
        return scale * torch.randn(shape, generator=generator)

    def set_statistics(unit):
        def hook(conv, inputs, output):
            variance, mean = torch.var_mean(output, (0, 2, 3))
            variance *= uniform(mean.shape, 0.7, 1.5)
            unit.bn.running_var.copy_(variance)
            unit.bn.running_mean.copy_(mean + normal(mean.shape, 0.2) * variance.sqrt())

        return unit.conv.register_forward_hook(hook)

    hooks = []
    with torch.no_grad():
        for unit in (module for module in model.modules() if isinstance(module, Unit)):
            shape = unit.conv.weight.shape
            sizes = 10 ** uniform((shape[0], 1, 1, 1), -0.75, 0.0)
            unit.conv.weight.copy_(normal(shape, shape[1:].numel() ** -0.5) * sizes)
            unit.bn.weight.copy_(uniform(shape[0], 0.6, 1.2))
            unit.bn.bias.copy_(normal(shape[0], 0.2))
            hooks.append(set_statistics(unit))
        model.fc.weight.copy_(normal(model.fc.weight.shape, 0.03))
        model.fc.bias.copy_(normal(model.fc.bias.shape, 0.3))
        smooth, sharp = (network_input(random_images((side, side), seed)) for side in (32, 299))
        model.eval()(torch.cat([smooth, sharp]).float())
    for hook in hooks:
        hook.remove()
    return model


def random_images(size, seed):
    """Two images of 32 x 32 random patches, around a ramp down in one and to the right in one."""
    rows, columns = (np.arange(side) * 32 // side for side in size)
    noise = np.random.default_rng(seed).integers(-80, 81, (2, 32, 32, 3))[:, rows][:, :, columns]
    down, right = np.meshgrid(*(np.linspace(0, 255, side) for side in size), indexing="ij")
    return np.clip(np.stack([down, right])[..., None] + noise, 0, 255).astype(np.uint8)


def resize(images):
    """Pixel (i, j) of 299 x 299 is the bilinear value at (i H / 299, j W / 299).

    TensorFlow takes these places in float32, and their rounding can be seen in the features.
    """
    height, width = images.shape[1:3]
    row, column = (np.float32(side) / np.float32(299) for side in (height, width))
    out = np.empty((len(images), 299, 299, images.shape[3]))
    for i in range(299):
        top, down = divmod(float(np.float32(i) * row), 1.0)
        y0, y1 = int(top), min(int(top) + 1, height - 1)
        for j in range(299):
            left, right = divmod(float(np.float32(j) * column), 1.0)
            x0, x1 = int(left), min(int(left) + 1, width - 1)
            out[:, i, j] = (
                (1 - down) * (1 - right) * images[:, y0, x0]
                + (1 - down) * right * images[:, y0, x1]
                + down * (1 - right) * images[:, y1, x0]
                + down * right * images[:, y1, x1]
            )
    return out


def network_input(images):
    return torch.from_numpy((resize(images) - 128.0) / 128.0).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def reference():
    return randomize(Reference(), seed=0)


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(reference.state_dict(), path)
    return path


def evaluate(reference, images):
    with torch.no_grad():
        outputs = reference.double()(network_input(images))
    reference.float()
    return [output.numpy() for output in outputs]


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (299, 299)])
def test_equal_to_the_published_architecture(size, reference, weights):
    images = random_images(size, seed=1)
    params = inception_params(weights)
    ours = jax.jit(apply)(params, images)
    theirs = evaluate(reference, images)
    for name, actual, expected in zip(ours._fields, ours, theirs, strict=True):
        contrast = np.abs(expected[0] - expected[1]).mean()
        error = np.abs(actual - expected).max() / expected.std()
        print(f"{name}: error {error:.1e}, deviation {expected.std():.2f}, contrast {contrast:.2f}")
        assert 0.1 < expected.std() < 10.0
        assert contrast > 0.1 * expected.std()
        assert actual.dtype == np.float32
        assert error < TOLERANCE


def test_one_channel_is_repeated(weights):
    images = np.random.default_rng(2).integers(0, 256, (1, 28, 28, 1), np.uint8)
    params = inception_params(weights)
    ours = jax.jit(apply)(params, images)
    same = jax.jit(apply)(params, images.repeat(3, axis=3))
    np.testing.assert_allclose(ours.features, same.features, rtol=0, atol=1e-3)
    assert ours.features.shape == (1, 2048)
    assert ours.logits.shape == ours.logits_unbiased.shape == (1, 1008)


def test_only_images_are_taken(weights):
    params = inception_params(weights)
    with pytest.raises(ValueError, match="must be uint8"):
        apply(params, np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        apply(params, np.zeros((1, 8, 8, 4), np.uint8))


def test_the_older_format_gives_the_same_parameters(reference, weights, tmp_path):
    path = tmp_path / "older.pth"
    torch.save(reference.state_dict(), path, _use_new_zipfile_serialization=False)
    chex.assert_trees_all_equal(inception_params(path), inception_params(weights))


def test_other_tensors_are_refused_by_name(reference, tmp_path):
    tensors = dict(reference.state_dict())
    del tensors["Mixed_5b.branch1x1.conv.weight"]
    tensors["AuxLogits.fc.bias"] = torch.zeros(3)
    tensors["fc.bias"] = torch.zeros(1000)
    path = tmp_path / "other.pth"
    torch.save(tensors, path)
    with pytest.raises(ValueError) as error:
        inception_params(path)
    for part in (
        str(path),
        "1 missing, such as Mixed_5b.branch1x1.conv.weight",
        "1 unknown, such as AuxLogits.fc.bias",
        "1 of another shape, such as fc.bias",
    ):
        assert part in str(error.value)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="pt_inception-2015-12-05-6726825d.pth"):
        inception_params(tmp_path / "absent.pth")


def awkward_tensors():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    return OrderedDict(
        float32=base,
        float64=base.double(),
        float16=base.half(),
        bfloat16=base.bfloat16(),
        int64=torch.arange(5) - 2,
        int32=torch.arange(5, dtype=torch.int32),
        int16=torch.arange(5, dtype=torch.int16),
        int8=torch.arange(-2, 3, dtype=torch.int8),
        uint8=torch.arange(250, 255, dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        scalar=torch.tensor(3),
        empty=torch.zeros(0, 4),
        transposed=base.T,
        shared=base[1:3, ::2],
        expanded=base[0].expand(3, 6),
        parameter=nn.Parameter(base[2:]),
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_read_as_pytorch_saved_them(zipped, tmp_path):
    tensors = awkward_tensors()
    path = tmp_path / "tensors.pt"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    ours = read_tensors(path)
    assert list(ours) == list(tensors)
    for name, expected in tensors.items():
        assert str(ours[name].dtype) == str(expected.dtype).removeprefix("torch."), name
        assert ours[name].shape == tuple(expected.shape), name
        values = torch.from_numpy(ours[name].astype(np.float64))
        torch.testing.assert_close(values, expected.detach().double(), rtol=0, atol=0)


def test_a_whole_model_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="asks for torch.nn.modules.linear.Linear"):
        read_tensors(path)
