"""Features of named layers, centroids as a classifier, HOG."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_ray.clustering import nearest
from ssl_ray.errors import ConfigError
from ssl_ray.nets.clusters import Centroids
from ssl_ray.nets.columns import alexnet
from ssl_ray.nets.hog import HOG
from ssl_ray.nets.layers import layer_features, vectors_of
from ssl_ray.settings.nets import HOGConfig, LayerConfig

X = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))


class TestLayers:
    net = alexnet(0.25, 1, True, "batch", 1).eval()

    def test_a_named_layer_is_what_passes_there(self) -> None:
        by_hand = self.net.conv3(self.net.pool2(self.net.conv2(self.net.pool1(self.net.conv1(X)))))  # type: ignore[operator]
        whole = layer_features(self.net, X, LayerConfig(name="conv3", grid=None))
        assert torch.allclose(whole, by_hand.flatten(1))
        pooled = layer_features(self.net, X, LayerConfig(name="conv3", grid=2))
        assert torch.allclose(pooled, F.adaptive_avg_pool2d(by_hand, 2).flatten(1))
        most = layer_features(self.net, X, LayerConfig(name="conv3", grid=1, pool="max"))
        assert torch.allclose(most, by_hand.amax(dim=(2, 3)))

    def test_length_one(self) -> None:
        found = layer_features(self.net, X, LayerConfig(name="conv2", grid=2, normalise=True))
        assert torch.allclose(found.norm(dim=1), torch.ones(3))

    def test_without_a_name_it_is_the_backbones_own(self) -> None:
        assert torch.equal(layer_features(self.net, X, LayerConfig()), self.net(X))

    def test_tokens_are_averaged(self) -> None:
        assert vectors_of(torch.ones(2, 5, 7), LayerConfig()).shape == (2, 7)

    def test_an_unknown_layer_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"no layer 'conv_4'; the nearest are conv4"):
            layer_features(self.net, X, LayerConfig(name="conv_4"))

    def test_no_hook_stays(self) -> None:
        layer_features(self.net, X, LayerConfig(name="conv2"))
        assert all(not module._forward_hooks for module in self.net.modules())


class TestCentroids:
    def made(self, pca: bool, normalise: bool) -> Centroids:
        draw = torch.Generator().manual_seed(1)
        dim = 6 if pca else 10
        module = Centroids({"features": 10, "dim": dim, "k": 4, "pca": pca, "normalise": normalise})
        for name, buffer in module.named_buffers():
            if name != "variance":
                buffer.copy_(torch.randn(buffer.shape, generator=draw))
        module.variance.fill_(1.7)
        return module

    @pytest.mark.parametrize("pca", [True, False])
    @pytest.mark.parametrize("normalise", [True, False])
    def test_against_a_slow_transcription(self, pca: bool, normalise: bool) -> None:
        module, x = self.made(pca, normalise), torch.randn(50, 10)
        with torch.no_grad():
            found = module(x)
        points = (x - module.mean).double().numpy()
        if module.projection is not None:
            points = points @ module.projection.double().numpy()
        if normalise:
            points /= np.linalg.norm(points, axis=1, keepdims=True)
        points -= module.centre.double().numpy()
        centroids = module.centroids.double().numpy()
        distance = ((points[:, None] - centroids[None]) ** 2).sum(axis=2)
        assert np.allclose(found.numpy(), -distance / 3.4, atol=1e-4)
        density = np.exp(-distance / 3.4)
        assert np.allclose(found.softmax(dim=1).numpy(), density / density.sum(axis=1, keepdims=True), atol=1e-4)

    def test_the_largest_logit_is_the_nearest_centroid(self) -> None:
        module, x = self.made(False, False), torch.randn(500, 10)
        with torch.no_grad():
            assert np.array_equal(
                module(x).argmax(dim=1).numpy(), nearest(module.points(x).numpy(), module.centroids.numpy())[1]
            )

    def test_autocast_does_not_blur_it(self) -> None:
        module, x = self.made(False, False), torch.randn(50, 10)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            blurred = module(x)
        with torch.no_grad():
            assert torch.equal(blurred, module(x))


class TestHOG:
    def test_a_step_edge_points_across(self) -> None:
        image = torch.zeros(2, 3, 28, 28, dtype=torch.uint8)
        image[0, :, :, 14:] = 200
        image[1, :, 14:, :] = 200
        found = HOG(HOGConfig(cell=14, block=1))(image).reshape(2, 4, 9)
        assert found[0].sum(dim=0).argmax() != found[1].sum(dim=0).argmax()
        assert HOG(HOGConfig())(image).shape == (2, 324)

    def test_too_small_an_image(self) -> None:
        with pytest.raises(ConfigError, match=r"12 pixels hold no block of 2 x 2 cells of 7 pixels; lower hog.cell"):
            HOG(HOGConfig())(torch.zeros(1, 3, 12, 12, dtype=torch.uint8))

    def test_it_is_a_net_without_weights(self) -> None:
        assert not list(HOG(HOGConfig()).parameters())
        assert isinstance(HOG(HOGConfig()), nn.Module)
