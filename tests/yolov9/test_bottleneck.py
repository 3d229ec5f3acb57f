"""The bottleneck study: probes know what is there, depth is counted, PlainNet forgets first."""

import csv
import json
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from yolov9 import bottleneck
from yolov9.bottlenecks import report
from yolov9.bottlenecks.networks import FIGURE_2, NETWORKS, VARIANTS, Network, Paths, path_lengths
from yolov9.bottlenecks.probe import probe
from yolov9.bottlenecks.scenes import drawn, read, scene, to_tensor, without_blur
from yolov9.bottlenecks.study import Curve, Point, Settings, measure
from yolov9.nn.model import build


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def study():
    """Two networks at 25 and 49 convolutions, three seeds, two ways of scaling."""
    settings = Settings(
        networks=("plainnet", "gelan"), depths=(25, 49), seeds=3, variants=("fresh", "batch"), size=32, width=16
    )
    return measure(settings, drawn(4, 32))


class TestProbe:
    def test_reads_the_picture_itself_from_a_mixture_of_its_colours(self):
        images = to_tensor(drawn(2, 32))
        mixed = torch.einsum("oc,nchw->nohw", torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), images)
        found = probe(mixed, images, neighbourhood=1)
        assert found.r2 > 0.99
        assert torch.allclose(found.reconstruction, images, atol=0.1)

    def test_finds_nothing_in_noise(self):
        noise = torch.randn(4, 8, 64, 64, generator=torch.Generator().manual_seed(0))
        assert abs(probe(noise, to_tensor(drawn(4, 64))).r2) < 0.03

    def test_features_that_are_constant_or_of_any_size_do_no_harm(self):
        images = to_tensor(drawn(2, 32))
        features = torch.cat((images * 1e-20, images[:, :1] * 1e20, torch.full_like(images, 7.0)), 1)
        assert probe(features, images, 1).r2 > 0.99
        assert probe(torch.zeros_like(images), images).r2 == pytest.approx(0, abs=0.03)

    def test_is_judged_on_a_picture_that_it_has_not_seen(self):
        """Features that say which picture it is and where in it, and nothing of what is there, are worth nothing."""
        images = to_tensor(drawn(4, 32))
        y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
        places = torch.stack([torch.ones_like(x), x, y, x * y, x * x, y * y])
        told = torch.zeros(4, 4, 6, 32, 32)
        for number in range(4):
            told[number, number] = places
        assert probe(told.flatten(1, 2), images, 1).r2 < 0.01
        assert probe(torch.cat((told.flatten(1, 2), images), 1), images, 1).r2 > 0.9

    def test_agrees_with_a_regression_that_is_written_out(self):
        """Three pictures, fitted on the first two and judged on the last."""
        images = to_tensor(drawn(3, 32))
        features = torch.randn(3, 6, 32, 32, generator=torch.Generator().manual_seed(0)) * 5 + 3
        features[:, :3] += 4 * images
        found = probe(features, images, 1, ridge=0.01)
        x = features.permute(0, 2, 3, 1).reshape(3, -1, 6).double().numpy()
        y = images.permute(0, 2, 3, 1).reshape(3, -1, 3).double().numpy()
        x /= x.std((0, 1))
        z, colours = x[:2].reshape(-1, 6), y[:2].reshape(-1, 3)
        middle, mean = z.mean(0), colours.mean(0)
        z = z - middle
        weights = np.linalg.solve(z.T @ z / len(z) + 0.01 * np.eye(6), z.T @ (colours - mean) / len(z))
        expected = np.clip((x[2] - middle) @ weights + mean, 0, 1)
        np.testing.assert_allclose(found.reconstruction[2].permute(1, 2, 0).reshape(-1, 3), expected, atol=1e-4)

    def test_a_wider_neighbourhood_sees_what_lies_beside(self):
        images = to_tensor(drawn(4, 32))
        shifted = torch.roll(images, 1, dims=3)
        assert probe(shifted, images, 3).r2 > probe(shifted, images, 1).r2 + 0.05

    def test_a_hidden_layer_finds_what_is_not_linear(self):
        """Brightness cut at the middle and folded: a line cannot be fitted to it, a bent one can."""
        images = to_tensor(drawn(4, 64))
        folded = (images.mean(1, keepdim=True) - 0.5).abs() * torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
        features = torch.cat((folded, (images.mean(1, keepdim=True) > 0.5).float()), 1)
        linear, bent = (probe(features, images, 1, hidden=units) for units in (0, 64))
        assert bent.r2 > linear.r2 + 0.02
        assert torch.equal(bent.reconstruction, probe(features, images, 1, hidden=64).reconstruction)
        assert abs(probe(torch.zeros_like(images), images, hidden=8).r2) < 0.03

    @pytest.mark.parametrize(("count", "message"), [(2, "of one colour"), (1, "two pictures")])
    def test_pictures_that_say_nothing_are_refused(self, count, message):
        with pytest.raises(ValueError, match=message):
            probe(torch.zeros(count, 1, 32, 32), torch.full((count, 3, 32, 32), 0.5))


class TestNetworks:
    @pytest.mark.parametrize(
        ("name", "paths"),
        [
            ("plainnet", Paths(1, 1, 1)),
            ("resnet", Paths(2, 0, 2)),
            ("resnet-v2", Paths(2, 0, 2)),
            ("cspnet", Paths(longest=4, shortest=2, longest_3x3=2)),
            ("gelan", Paths(longest=12, shortest=2, longest_3x3=6)),
            ("gelan-conv", Paths(longest=6, shortest=2, longest_3x3=4)),
        ],
    )
    def test_ways_through_a_block_are_counted(self, name, paths):
        assert path_lengths(NETWORKS[name].block(16), 16) == paths

    @pytest.mark.parametrize(("name", "paths"), [("gelan-t", Paths(156, 12, 109)), ("gelan-c", Paths(108, 12, 57))])
    def test_ways_through_real_models_are_counted_alike(self, name, paths):
        """So deep are the models that are used: docs/bottleneck.md says it."""
        assert path_lengths(build(name).eval(), 3, side=64) == paths

    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_features_come_at_every_depth_in_one_shape_and_finite(self, name, variant):
        network = Network(name, 16, 50, variant, "silu", seed=0)
        given = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        found = list(network.features(given))
        assert [f.depth for f in found] == network.depths
        assert abs(network.depths[-1] - 50) <= network.block_paths.longest / 2
        assert {tuple(f.values.shape) for f in found} == {(2, 16, 32, 32)}
        assert all(f.values.isfinite().all() and f.values.std() > 0 for f in found)

    def test_scaling_between_blocks_changes_a_relu_network_by_a_factor_only(self):
        network = Network("gelan", 16, 25, "he", "relu", seed=1)
        given = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        *_, last = network.features(given)
        with torch.no_grad():
            plain = network.stem(given)
            for block in network.blocks:
                plain = block(plain)
        assert torch.allclose(plain / plain.std(), last.values / last.values.std(), atol=1e-4)

    def test_weights_depend_on_the_seed_alone(self):
        first, again, other = (Network("resnet", 16, 9, "fresh", "relu", seed) for seed in (3, 3, 4))
        weights = [torch.cat([p.flatten() for p in n.parameters()]) for n in (first, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_a_shallow_network_is_the_beginning_of_a_deep_one(self):
        given = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        shallow, deep = (list(Network("plainnet", 16, d, "fresh", "relu", 0).features(given)) for d in (3, 9))
        assert torch.equal(shallow[-1].values, deep[2].values)

    def test_a_width_that_blocks_cannot_divide_is_refused(self):
        with pytest.raises(ValueError, match="width 24"):
            Network("gelan", 24, 9, "fresh", "relu", 0)


class TestStudy:
    @pytest.mark.parametrize("variant", ["fresh", "batch"])
    def test_plainnet_forgets_and_gelan_keeps_more(self, study, variant):
        plain, gelan = study.curve("plainnet", variant).points, study.curve("gelan", variant).points
        assert plain[0].median > 0.9
        assert plain[-1].median < 0.15
        assert plain[-1].median < plain[1].median < plain[0].median
        assert min(gelan[-1].r2) > max(plain[-1].r2)
        assert statistics.median(gelan[-3].r2) > statistics.median(plain[-3].r2) + 0.2

    def test_what_activations_lose_is_told_from_what_the_probe_cannot_reach(self, study):
        """Without activations shortcuts lose nothing, and what PlainNet mixes is still there to a good part."""
        plain, gelan = (study.curve(name, "fresh").points[-2] for name in ("plainnet", "gelan"))
        assert gelan.control > 0.98
        assert plain.median + 0.2 < plain.control < gelan.control

    def test_details_go_before_surfaces(self):
        usual = Settings(networks=("plainnet",), variants=("fresh",), depths=(5,), seeds=2, size=32, width=16)
        whole, detail = (
            measure(s, drawn(4, 32)).curves[0].points[-1].median for s in (usual, replace(usual, detail=True))
        )
        assert 0.05 < detail < whole - 0.1

    def test_linear_networks_have_no_control(self):
        settings = Settings(networks=("gelan",), variants=("fresh",), depths=(13,), seeds=1, size=32, width=16,
                            activation="none")  # fmt: skip
        (curve,) = measure(settings, drawn(2, 32)).curves
        assert [p.control for p in curve.points] == [None, None]
        assert curve.points[-1].median > 0.98

    def test_every_seed_is_measured_at_every_depth(self, study):
        for curve in study.curves:
            assert [len(p.r2) for p in curve.points] == [3] * len(curve.points)
            assert len(set(curve.points[-1].r2)) == 3
            assert {*curve.cells} == {25, 49}
            cell = curve.cells[49]
            assert cell.feature_map.shape == (32, 32)
            assert cell.reconstruction.shape == (32, 32, 3)
            assert cell.r2 == curve.points[-1].r2[0]

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"networks": ["alexnet"]}, "unknown network 'alexnet'"),
            ({"networks": []}, "at least one"),
            ({"depths": [0, 50]}, "depths from 1"),
            ({"width": 20}, "width: 20"),
            ({"size": 16}, "size: 16"),
            ({"seeds": 0}, "seeds: 0"),
            ({"neighbourhood": 2}, "neighbourhood: 2"),
            ({"ridge": 0.0}, "ridge: 0"),
            ({"hidden": -1}, "hidden: -1"),
        ],
    )
    def test_settings_that_cannot_be_are_named(self, setting, message):
        with pytest.raises(ValueError, match=message):
            Settings(**setting)

    def test_half_depth_lies_between_the_points(self):
        points = [Point(d, Paths(d, d, d), [r2]) for d, r2 in ((1, 1.0), (11, 0.6), (21, 0.4), (31, 0.0))]
        assert report.half_depth(Curve("plainnet", "fresh", 0, points)) == pytest.approx(16)
        assert report.half_depth(Curve("plainnet", "fresh", 0, points[:2])) is None


class TestScenes:
    def test_are_the_same_every_time_and_differ_among_themselves(self):
        assert np.array_equal(scene(48, 1), scene(48, 1))
        first, second = drawn(2, 48)
        assert np.abs(first.astype(int) - second).mean() > 5
        assert first.shape == (48, 48, 3)

    def test_a_picture_without_its_blur_has_edges_and_no_surfaces(self):
        picture = np.zeros((1, 48, 48, 3), np.uint8)
        picture[:, :, 24:] = 255
        edges = without_blur(to_tensor(picture))
        assert torch.allclose(edges[..., :20], torch.tensor(0.5), atol=1e-6)
        assert torch.allclose(edges[..., 28:], torch.tensor(0.5), atol=1e-6)
        assert edges[..., 24].min() > 0.7
        assert edges[..., 23].max() < 0.3

    def test_of_a_picture_the_middle_square_is_taken(self, tmp_path):
        wide = np.zeros((50, 150, 3), np.uint8)
        wide[:, 50:100] = 200
        Image.fromarray(wide).save(tmp_path / "wide.png")
        (square,) = read([tmp_path / "wide.png"], 32)
        assert square.shape == (32, 32, 3)
        assert square.min() > 150


class TestCommand:
    def test_writes_pictures_numbers_and_a_report(self, tmp_path, capsys):
        for number, name in enumerate(("mine.png", "yours.png")):
            Image.fromarray(scene(64, number)).save(tmp_path / name)
        status = bottleneck.main(
            ["--picture", str(tmp_path / "mine.png"), str(tmp_path / "yours.png"), "--out", str(tmp_path / "out"),
             "--size", "32", "--width", "16",
             "--depths", "13", "--seeds", "2", "--variants", "he", "--threads", "1", "--networks", *FIGURE_2]
        )  # fmt: skip
        out = tmp_path / "out"
        printed = capsys.readouterr()
        assert status == 0
        assert str(out / "report.md") in printed.out
        assert "12/12 he GELAN control" in printed.err
        written = {p.name for p in out.iterdir()}
        figures = {"curve.png", "feature-maps-he.png", "reconstructions-he.png"}
        assert written == figures | {"report.md", "results.json", "results.csv"}
        text = (out / "report.md").read_text()
        assert all(name in text for name in figures)
        assert "(mine.png, yours.png)" in text
        assert text.count("| GELAN |") == 3  # what depth means, what was found, the control
        results = json.loads((out / "results.json").read_text())
        assert [c["network"] for c in results["curves"]] == [*FIGURE_2]
        assert [p["depth"] for p in results["curves"][3]["points"]] == [1, 13]
        rows = list(csv.DictReader((out / "results.csv").open()))
        assert len(rows) == sum(len(p["r2"]) + 1 for c in results["curves"] for p in c["points"])
        assert {(r["activation"], r["seed"]) for r in rows} == {("relu", "0"), ("relu", "1"), ("none", "0")}
        for name in figures:
            with Image.open(out / name) as image:
                assert min(image.size) > 250

    def test_other_networks_and_probes(self, tmp_path):
        status = bottleneck.main(
            ["--out", str(tmp_path), "--threads", "1", "--size", "32", "--width", "16", "--depths", "7", "--seeds", "1",
             "--variants", "fresh", "--networks", "gelan-res", "resnet-v2", "--activation", "silu", "--neighbourhood",
             "1", "--ridge", "1e-2", "--hidden", "32", "--detail"]
        )  # fmt: skip
        assert status == 0
        words = " ".join((tmp_path / "report.md").read_text().split())
        assert "a **probe** with a hidden layer (32 units" in words
        assert "with SiLU after their convolutions and with weights drawn at random, once." in words
        assert "16 features in the 1x1 positions" in words
        assert "its **detail**" in words
        assert "| ResNet v2 | 7 | 7 | 1 |" in words

    def test_one_picture_is_too_few(self, tmp_path, capsys):
        Image.fromarray(scene(64, 7)).save(tmp_path / "mine.png")
        assert bottleneck.main(["--picture", str(tmp_path / "mine.png"), "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.startswith("error: two pictures are needed")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--picture", "nowhere.png"], "nowhere.png"),
            (["--width", "20"], "width: 20"),
            (["--depths", "0"], "depths from 1"),
        ],
    )
    def test_bad_input_is_one_sentence(self, arguments, message, tmp_path, capsys):
        assert bottleneck.main([*arguments, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
