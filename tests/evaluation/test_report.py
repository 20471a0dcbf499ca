"""A report is one well-formed file without outside addresses, and shows the numbers it was given."""

import base64
import io
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from receipt_stand_ins import attacked, written
from stand_ins import images, tiny_classifier
from torch import nn

from lightning_paf.evaluation.report import Origin, write_report
from lightning_paf.evaluation.report_evidence import (
    attacked_again,
    names_of,
    receipt_examples,
    receipt_flips,
    result_of,
    varied,
)
from lightning_paf.evaluation.report_page import element, page
from lightning_paf.evaluation.report_pictures import Example, activations, curve, image_png, shares
from lightning_paf.evaluation.result import EvaluationResult, StageSummary, Verdict
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.statistics import exact_accuracy
from lightning_paf.nn.activations import PSSiLU, ReLU
from lightning_paf.nn.swap import swap_activations

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = "<script>alert('x')</script>\"&amp; \x00\x1b[31m"
THREAT = {"attack": "AutoAttack", "norm": "linf", "eps": "8/255", "eps_value": 8 / 255, "bounds": [0.0, 1.0]}


class Page(HTMLParser):
    """Refuses tags that are not closed in their order, and remembers what a page asks for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names)
        assert not [name for name in names if name.startswith("on")]
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def check(path):
    """The page, after the checks that every report must pass."""
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert text.startswith("<!doctype html>")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {*found.tags}
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "://" not in text
    assert "default-src 'none'" in text
    return found


def a_result(n=40):
    labels = np.arange(n) % 4
    verdicts = np.where(np.arange(n) < n // 2, Verdict.ROBUST, Verdict.BROKEN).astype(np.uint8)
    verdicts[-4:] = Verdict.CLEAN_ERROR
    stages = (StageSummary("clean", n, 4, n, 0, 0, 0.5), StageSummary("apgd-ce", n - 4, 16, 12345, 6789, 55, 3723.0))
    return EvaluationResult(
        "autoattack", THREAT, verdicts, 3723.5, np.arange(n), labels, stages=stages,
        fingerprints={"model": "ab" * 32}, seed=11, precision="bf16", total=50,
    )  # fmt: skip


def an_example(channels=3, **changes):
    clean = torch.full((channels, 4, 4), 0.25)
    made = Example(5, clean, clean + 0.03, label=1, predicted=2, stage="square")
    return replace(made, **changes)


def everything(path, **changes):
    model = tiny_classifier()
    swap_activations(model, PSSiLU)
    given = {
        "result": a_result(),
        "title": "run",
        "class_names": ["apple", "pear"],
        "examples": [an_example()],
        "examples_note": "A remark.",
        "model": model,
        "images": images()[0],
        "flips": np.array([[0, 3], [1, 0]]),
        "security_curve": [(0.0, exact_accuracy(30, 40)), (0.05, exact_accuracy(10, 40))],
        "curve_note": "Alarm: it rises.",
        "origin": Origin(
            {"dataset": "toy"}, {"receipt": "cd" * 32}, {"torch": "9.9"}, "lightning-paf verify R --ckpt C"
        ),
    }
    write_report(path, **given | changes)
    return check(path)


def test_a_complete_report_shows_every_part(tmp_path):
    found = everything(tmp_path / "deep" / "report.html")
    for words in (
        "run · autoattack", "50.0 %", "95 % interval [33.8, 66.2], 20 of 40", "90.0 %", "8/255 ≈ 0.0313725", "bf16",
        "40 of 50 asked for", "apgd-ce 36 16 12,400 6,789 1 h 2 min", "apple", "class 3", "Alarm: it rises.",
        "75.0 % [58.8, 87.3]", "pear → class 2 · sample 5 · broken by square", "A remark.", "4 broken samples",
        "PSSiLU", "ab" * 32, "cd" * 32, "torch 9.9", "lightning-paf verify R --ckpt C",
    ):  # fmt: skip
        assert words in found.text, words
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_a_result_alone_is_enough(tmp_path):
    result = EvaluationResult("pgd", THREAT, np.array([1, 2, 3, 0], np.uint8), 1.0)
    write_report(tmp_path / "r.html", result=result)
    found = check(tmp_path / "r.html")
    assert found.text.count("33.3 %") == 1
    assert "3 of 4 asked for" in found.text
    assert "There is no receipt" in found.text
    for absent in ("Attacks", "Classes", "Security curve", "Adversarial images", "Activations", "Fingerprints"):
        assert f" {absent} " not in found.text


def test_no_text_becomes_markup(tmp_path):
    result = a_result()
    result = replace(
        result,
        name=EVIL,
        attack={**THREAT, "attack": EVIL, "eps": EVIL, EVIL: {EVIL: [EVIL]}},
        stages=tuple(replace(stage, label=EVIL) for stage in result.stages),
        fingerprints={EVIL: EVIL},
        precision=EVIL,
    )
    found = everything(
        tmp_path / "r.html", result=result, title=EVIL, class_names=[EVIL] * 3, examples=[an_example(stage=EVIL)],
        examples_note=EVIL, curve_note=EVIL, origin=Origin({EVIL: EVIL}, {EVIL: EVIL}, {EVIL: EVIL}, EVIL),
    )  # fmt: skip
    assert found.text.count("<script>alert('x')</script>\"&amp; \ufffd\ufffd[31m") > 20
    assert "\x1b" not in (tmp_path / "r.html").read_text()


@settings(max_examples=30, deadline=None)
@given(st.text(), st.text())
def test_any_text_gives_a_well_formed_page(title, words):
    text = page(title, element("p", words, title=words))
    Page(text)
    text.encode("utf-8")
    assert "<p" in text


def pixels(png):
    return matplotlib.image.imread(io.BytesIO(png))[..., :3]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_image_keeps_its_pixels_as_squares(channels):
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
    write_report(tmp_path / "r.html", result=a_result(), examples=[an_example()])
    sources = check(tmp_path / "r.html").addresses
    shown = [pixels(base64.b64decode(source.partition(",")[2])).mean() for source in sources]
    assert shown == pytest.approx([0.25, 0.5 + 10 * 0.03, 0.28], abs=1 / 255)


def test_values_that_are_no_pixels_do_no_harm():
    image_png(torch.tensor([[[float("nan"), 2.0], [-1.0, float("inf")]]]))


@given(st.lists(st.integers(0, 50), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_a_bar_is_as_long_as_its_count(counts):
    kinds = zip(["robust", "broken", "error"], counts, strict=True)
    bar = shares([(kind, kind, count) for kind, count in kinds], width=100)
    lengths = {part.get("class"): float(part.get("width")) for part in bar}
    for kind, count in zip(["robust", "broken", "error"], counts, strict=True):
        assert lengths.get(f"fill-{kind}", 0) == pytest.approx(100 * count / max(1, sum(counts)), abs=1.01)


def test_a_curve_falls_where_the_accuracy_does():
    points = [(eps, exact_accuracy(correct, 10)) for eps, correct in ((0.0, 9), (0.1, 5), (0.2, 0))]
    line = next(part for part in curve(points, 0.1, "eps") if part.get("class") == "stroke-accent")
    x, y = np.array([pair.split(",") for pair in line.get("points").split()], float).T
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) > 0).all()  # downwards on a screen
    assert (y[1] - y[0]) / (y[2] - y[1]) == pytest.approx(4 / 5, rel=0.01)


def test_a_picture_of_the_curve_may_stand_for_its_points(tmp_path):
    found = everything(tmp_path / "r.html", security_curve=image_png(torch.rand(3, 4, 4)))
    assert "Security curve" in found.text


def test_activations_leave_the_model_as_it_was():
    model = tiny_classifier().train()
    swap_activations(model, PSSiLU)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    picture, numbers = activations(model, images()[0])
    assert picture.tag == "img"
    assert "PSSiLU" in "".join(numbers.itertext())
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_relu_has_infinite_curvature_and_no_parameters():
    model = tiny_classifier()
    swap_activations(model, ReLU)
    _, numbers = activations(model, images()[0])
    assert "∞" in "".join(numbers.itertext())
    assert "–" in "".join(numbers.itertext())


def test_a_model_without_activations_of_ours_has_none_to_show():
    assert activations(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(192, 3)), images()[0]) == []


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_examples_are_spread_over_the_classes(labels, count):
    labels = np.array(labels, np.int64)
    places = varied(labels, count)
    assert len(places) == len({*places.tolist()}) == min(count, len(labels))
    shown = np.bincount(labels[places], minlength=5)
    held = np.bincount(labels, minlength=5)
    spare = held > shown  # a class with more to show has at most one less than any other
    assert not spare.any() or shown[spare].min() >= shown.max() - 1


def test_images_of_a_receipt_are_those_that_fool_the_model(tmp_path):
    model, samples, judged = attacked()
    receipt = written(tmp_path / "r", model, samples, judged)
    examples = receipt_examples(receipt, samples, 6)
    assert len(examples) == min(6, receipt.manifest["counts"]["broken"]) > 2
    for example in examples:
        x, y = samples.fetch(np.array([example.id]))
        with torch.no_grad():
            assert int(model(example.adversarial[None]).argmax()) == example.predicted != example.label == int(y[0])
        assert torch.equal(example.clean, x[0])
        assert example.stage == "pgd"
    flips = receipt_flips(receipt, 10)
    assert flips.sum() == receipt.manifest["counts"]["broken"]
    assert np.diag(flips).sum() == 0
    result = result_of(receipt, "toy")
    assert (result.robust.correct, result.judged) == (receipt.manifest["counts"]["robust"], len(receipt))
    write_report(tmp_path / "r.html", result=result, examples=examples, flips=flips)
    assert "Time in the attack" not in check(tmp_path / "r.html").text


def test_images_can_be_made_again():
    from receipt_stand_ins import ATTACK

    model, samples, judged = attacked()
    result = EvaluationResult("pgd", ATTACK.describe(), judged.verdicts, 1.0)
    state = torch.get_rng_state()
    examples = attacked_again(result, model, ATTACK, samples, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert examples
    for example in examples:
        assert judged.verdicts[example.id] == Verdict.BROKEN
        assert (example.adversarial - example.clean).abs().max() <= ATTACK.radius + 1e-6
        assert example.predicted != example.label


def test_nothing_broken_gives_no_examples():
    x, y = images()
    result = EvaluationResult("pgd", THREAT, np.ones(8, np.uint8), 1.0)
    assert attacked_again(result, tiny_classifier(), None, Samples.of(x, y)) == []


def test_names_are_known_for_one_dataset():
    assert names_of("cifar10")[3] == "cat"
    assert names_of("digits") == ()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot serve as a report"):
        write_report(tmp_path / "file" / "r.html", result=a_result())


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_shows_it(tmp_path):
    everything(tmp_path / "r.html")
    shot = tmp_path / "shot.png"
    places = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", (tmp_path / "r.html").as_uri()]
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,2400"]
    subprocess.run([CHROMIUM, *options, *QUIET, *places], check=True, capture_output=True, timeout=300)
    shown = (255 * pixels(shot.read_bytes())).round().astype(int)
    style = (tmp_path / "r.html").read_text()
    colours = {
        name: bytes.fromhex(code) for name, code in re.findall(r"--(\w+): #(\w{6})", style)[:9]
    }  # the light ones
    seen = {tuple(colour) for colour in shown[::2, ::2].reshape(-1, 3)}
    for name in ("robust", "broken", "error", "card", "page"):  # the bar, and the cards on the page
        assert tuple(colours[name]) in seen, name
    longest = (shown == [*colours["robust"]]).all(2).sum(1).max()
    assert longest == pytest.approx(0.5 * 1088, rel=0.1)  # half of the samples are robust
