"""A report is one well-formed page without external resources, and shows the numbers of its result."""

import base64
import io
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers.evidence_fakes import attacked, written
from helpers.fakes import images, tiny_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_paf.evaluation import Samples, report
from lightning_paf.evaluation.outcomes import Outcome
from lightning_paf.evaluation.report import Supplement
from lightning_paf.evaluation.report.figures import Example, activation_figure, image_png
from lightning_paf.evaluation.report.report import (
    MAX_CLASSES,
    result_of,
    spread_over_classes,
    supplement_of,
)
from lightning_paf.evaluation.result import EvaluationResult, SubAttackSummary
from lightning_paf.evaluation.statistics import exact_accuracy
from lightning_paf.nn.activations import PSSiLU, ReLU
from lightning_paf.nn.swap import swap_activations
from lightning_paf.specs import known_class_names

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = "<script>alert('x')</script>\"&amp; {{ 7 * 7 }} \x00\x1b[31m"
THREAT = {"attack": "AutoAttack", "norm": "linf", "eps": "8/255", "eps_value": 8 / 255, "bounds": [0.0, 1.0]}


class Page(HTMLParser):
    """Refuses tags that are not closed in order, and keeps the addresses of a page."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.addresses, self.words, self.bars = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        named = dict(attributes)
        assert len(named) == len(attributes)
        assert not [name for name in named if name.startswith("on")]
        assert tag != "img" or named["alt"]
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if named.get("class") == "bar":
            self.bars.append([named["aria-label"]])
        if "flex-grow" in named.get("style", ""):
            self.bars[-1].append((named["class"], int(named["style"].removeprefix("flex-grow: "))))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def check(path):
    """The page, after the checks that every report must pass."""
    text, found = path.read_text(encoding="utf-8"), Page(path)
    assert text.startswith("<!doctype html>")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {*found.tags}
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert not [word for word in ("url(", "@import", "://") if word in text]
    assert "default-src 'none'" in text
    return found


def a_result(n=40):
    labels = np.arange(n) % 4
    outcomes = np.where(np.arange(n) < n // 2, Outcome.ROBUST, Outcome.FOOLED).astype(np.uint8)
    outcomes[-4:] = Outcome.MISCLASSIFIED
    sub_attacks = (
        SubAttackSummary("clean", n, 4, n, 0, 0, 0.5),
        SubAttackSummary("apgd-ce", n - 4, 16, 12345, 6789, 55, 3723.0),
    )
    return EvaluationResult(
        "autoattack", THREAT, outcomes, 3723.5, np.arange(n), labels, sub_attacks=sub_attacks,
        fingerprints={"model": "ab" * 32}, seed=11, precision="bf16", total=50,
    )  # fmt: skip


def an_example(channels=3, **changes):
    clean = torch.full((channels, 4, 4), 0.25)
    return replace(Example(5, clean, clean + 0.03, label=1, predicted=2, sub_attack="square"), **changes)


def everything(path, result=None, **changes):
    model = tiny_classifier()
    swap_activations(model, PSSiLU)
    given = {
        "title": "run",
        "class_names": ["apple", "pear"],
        "examples": [an_example()],
        "model": model,
        "images": images()[0],
        "flips": np.array([[0, 3], [1, 0]]),
        "curve": [(0.0, exact_accuracy(30, 40)), (0.05, exact_accuracy(10, 40))],
        "curve_note": "Alarm: it rises.",
        "facts": {"dataset": "toy", "torch": "9.9"},
        "hashes": {"evidence": "cd" * 32},
        "verify": "lightning-paf verify R --ckpt C",
    }
    report.write(result or a_result(), path, Supplement(**given | changes))
    return check(path)


def test_a_complete_report_shows_every_part(tmp_path):
    found = everything(tmp_path / "deep" / "report.html")
    for words in (
        "run · autoattack", "20 of 40 images are classified correctly under AutoAttack with ℓ∞ perturbations", "50.0 %",
        "95 % interval [33.8, 66.2], 20 of 40", "90.0 %", "8/255 ≈ 0.0313725", "bf16", "0 to 1", "40 of 50",
        "A stop rule ended the evaluation after 40 of 50 samples", "clean 90.0 % 40 – 40 0 0.5 s",
        "apgd-ce 50.0 % 36 16 12,400 6,789 1 h 02 min", "all 12,440 6,789 1 h 02 min", "apple", "class 3",
        "Alarm: it rises.", "0.05 25.0 %", "pear → class 2 · sample 5 · fooled by square", "4 fooled samples",
        "PSSiLU", "ab" * 32, "cd" * 32, "torch 9.9", "lightning-paf verify R --ckpt C",
    ):  # fmt: skip
        assert words in found.text, words
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_a_result_alone_is_enough(tmp_path):
    result = EvaluationResult("pgd", THREAT, np.array([1, 2, 3, 0], np.uint8), 1.0)
    report.write(result, tmp_path / "r.html")
    found = check(tmp_path / "r.html")
    assert found.text.count("33.3 %") == 1
    assert "samples evaluated 3 of 4" in found.text
    assert "There is no evidence" in found.text
    absent = "Sub-attacks, Classes, Security curve, Adversarial examples, Predictions, Activations, Fingerprints"
    assert not [words for words in absent.split(", ") if words in found.text]


def test_no_text_becomes_markup(tmp_path):
    result = a_result()
    result = replace(
        result,
        name=EVIL,
        attack={**THREAT, "attack": EVIL, "eps": EVIL, EVIL: {EVIL: [EVIL]}},
        sub_attacks=tuple(replace(part, label=EVIL) for part in result.sub_attacks),
        fingerprints={EVIL: EVIL},
        precision=EVIL,
    )
    found = everything(
        tmp_path / "r.html", result, title=EVIL, class_names=[EVIL] * 3, examples=[an_example(sub_attack=EVIL)],
        curve_note=EVIL, facts={EVIL: EVIL}, hashes={EVIL + "2": EVIL}, verify=EVIL,
    )  # fmt: skip
    assert found.text.count("<script>alert('x')</script>\"&amp; {{ 7 * 7 }} \ufffd\ufffd[31m") > 20
    assert "\x1b" not in (tmp_path / "r.html").read_text()


@settings(max_examples=6, deadline=None)
@given(st.text(), st.text())
def test_any_text_gives_a_well_formed_page(tmp_path_factory, title, words):
    path = tmp_path_factory.mktemp("any") / "r.html"
    report.write(a_result(), path, Supplement(title, facts={words: words}))
    check(path)


def pixels(png):
    return matplotlib.image.imread(io.BytesIO(png))[..., :3]


def decoded(address):
    return pixels(base64.b64decode(address.partition(",")[2]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pixels_of_an_image_are_squares(channels):
    image = torch.rand(channels, 5, 7, generator=torch.Generator().manual_seed(0))
    shown = pixels(image_png(image))
    zoom = shown.shape[0] // 5
    assert shown.shape == (5 * zoom, 7 * zoom, 3)
    assert shown.shape[0] >= 128
    expected = image[:3] if channels >= 3 else image.mean(0).expand(3, -1, -1)
    for corner in (0, zoom - 1):
        np.testing.assert_allclose(
            shown[corner::zoom, corner::zoom].transpose(2, 0, 1), expected, atol=0.5 / 255 + 1e-6
        )


def test_the_perturbation_is_shown_ten_times_as_large(tmp_path):
    report.write(a_result(), tmp_path / "r.html", Supplement(examples=[an_example()]))
    shown = [decoded(address).mean() for address in check(tmp_path / "r.html").addresses]
    assert shown == pytest.approx([0.25, 0.5 + 10 * 0.03, 0.28], abs=1 / 255)


def test_values_outside_the_pixel_range_are_drawn():
    image_png(torch.tensor([[[float("nan"), 2.0], [-1.0, float("inf")]]]))


def test_bars_have_the_length_of_their_counts(tmp_path):
    total, clean, attack, *classes = everything(tmp_path / "r.html").bars
    label = "robust: 20, fooled: 16, misclassified: 4"
    assert total == attack == [label, ("robust", 20), ("fooled", 16), ("misclassified", 4)]
    assert clean == ["robust: 36, fooled: 0, misclassified: 4", ("robust", 36), ("misclassified", 4)]
    one = ["robust: 5, fooled: 4, misclassified: 1", ("robust", 5), ("fooled", 4), ("misclassified", 1)]
    assert classes == [one] * 4


def test_a_png_of_the_curve_replaces_its_points(tmp_path):
    png = image_png(torch.rand(3, 130, 140))
    found = everything(tmp_path / "r.html", curve=png)
    assert "Security curve" in found.text
    assert "25.0 %" not in found.text
    assert any(np.array_equal(decoded(address), pixels(png)) for address in found.addresses)


def test_a_class_has_its_name_or_number_and_undefined_logits_have_no_class(tmp_path):
    names = {-1: "no class", 0: "apple", 1: "pear", 2: "class 2"}
    found = everything(tmp_path / "r.html", examples=[an_example(predicted=label) for label in names])
    assert all(f"pear → {name} · sample 5" in found.text for name in names.values())


def test_of_many_classes_those_with_most_fooled_samples_are_shown(tmp_path):
    flips = np.zeros((1000, 1000), np.int64)
    flips[7, 993], flips[993, 7], flips[20:60, 60] = 50, 40, 1
    found = everything(tmp_path / "r.html", flips=flips)
    assert f"130 fooled samples, for the {MAX_CLASSES} classes" in found.text
    assert "class 7 · " in found.text
    assert found.text.count("class 993") == 2


def test_drawing_activations_leaves_the_model_as_found():
    model = tiny_classifier().train()
    swap_activations(model, PSSiLU)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = activation_figure(model, images()[0])
    assert found["kinds"] == "PSSiLU"
    assert [row[:2] for row in found["rows"]] == [("net.activation", "PSSiLU")]
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_activations_without_parameters_and_models_without_activation_modules():
    model = tiny_classifier()
    swap_activations(model, ReLU)
    assert activation_figure(model, images()[0])["rows"] == [("net.activation", "ReLU", "–", "–", "1", "∞", "0")]
    assert activation_figure(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(192, 3)), images()[0]) is None


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_examples_are_spread_over_the_classes(labels, count):
    labels = np.array(labels, np.int64)
    chosen = spread_over_classes(labels, count)
    assert len(chosen) == len({*chosen.tolist()}) == min(count, len(labels))
    shown = np.bincount(labels[chosen], minlength=5)
    spare = np.bincount(labels, minlength=5) > shown  # such a class has at most one less than any other
    assert not spare.any() or shown[spare].min() >= shown.max() - 1


def test_examples_from_the_evidence_fool_the_model(tmp_path):
    model, samples, result = attacked()
    content = written(tmp_path / "e", samples, result)
    supplement = supplement_of("toy", "", (), None, (tmp_path / "e", content), model, samples)
    assert len(supplement.examples) == min(12, content.fooled.sum()) > 2
    for example in supplement.examples:
        x, y = samples.fetch(np.array([example.id]))
        with torch.no_grad():
            assert int(model(example.adversarial[None]).argmax()) == example.predicted != example.label == int(y[0])
        assert torch.equal(example.clean, x[0])
        assert example.sub_attack == "pgd"
    assert supplement.flips.sum() == content.fooled.sum()
    assert np.diag(supplement.flips).sum() == 0
    result = result_of(content, "toy")
    assert (result.robust.correct, result.evaluated) == (np.count_nonzero(content.outcomes == 1), len(content))
    report.write(result, tmp_path / "r.html", supplement)
    assert f"lightning-paf verify {tmp_path / 'e'} --ckpt CHECKPOINT" in check(tmp_path / "r.html").text
    x, y = samples.fetch(samples.ids)
    with pytest.raises(ValueError, match="must be those of the evidence"):
        supplement_of("toy", "", (), None, (tmp_path / "e", content), model, Samples.of(1 - x, y))


def test_classes_of_cifar10_have_names():
    assert known_class_names("cifar10")[3] == "cat"
    assert known_class_names("digits") == known_class_names("folder") == ()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be used as a report"):
        report.write(a_result(), tmp_path / "file" / "r.html")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_shows_it(tmp_path):
    everything(tmp_path / "r.html")
    shot = tmp_path / "shot.png"
    paths = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", (tmp_path / "r.html").as_uri()]
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,2400"]
    subprocess.run([CHROMIUM, *options, *QUIET, *paths], check=True, capture_output=True, timeout=300)
    shown = (255 * pixels(shot.read_bytes())).round().astype(int)
    longest = (shown == [0x00, 0x72, 0xB2]).all(2).sum(1).max()  # the colour of robust samples
    assert longest == pytest.approx(0.5 * 1048, rel=0.05)  # half of the samples are robust
