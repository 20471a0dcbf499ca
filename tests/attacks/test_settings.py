"""Settings of attacks: their checks, and how they are described."""

import math
from fractions import Fraction

import pytest
from torch import nn

from lightning_paf.attacks import (
    APGD,
    FAB,
    FGSM,
    ILCM,
    JSMA,
    MIFGSM,
    NFGSM,
    OPT,
    PGD,
    RSFGSM,
    ZOO,
    AdamPGD,
    AutoAttack,
    Boundary,
    CarliniWagner,
    DeepFool,
    EnsembleMIFGSM,
    OnePixel,
    ReferenceAutoAttack,
    Restarts,
    SignOPT,
    SingleStep,
    Square,
    UniversalPerturbation,
    WorstOf,
    radius_text,
)

AT_LEAST_1 = [
    *((cls, "steps") for cls in (PGD, AdamPGD, APGD, FAB, MIFGSM, DeepFool, ILCM, CarliniWagner)),
    *((cls, "batch_size") for cls in (APGD, FAB, Square, AutoAttack, ReferenceAutoAttack, OnePixel)),
    *((cls, "queries") for cls in (Square, Boundary, OPT, SignOPT)),
    *((cls, "targets") for cls in (APGD, FAB)),
    *[(APGD, "restarts"), (APGD, "eot"), (Boundary, "starts"), (DeepFool, "candidates"), (CarliniWagner, "searches")],
    *[(UniversalPerturbation, "passes"), (OnePixel, "pixels"), (OnePixel, "generations")],
]
POSITIVE = [
    *((cls, "step_size") for cls in (PGD, SingleStep, NFGSM, RSFGSM, MIFGSM, ILCM)),
    *[(AdamPGD, "lr"), (SingleStep, "clip"), (DeepFool, "overshoot"), (CarliniWagner, "lr"), (OPT, "width")],
    *[(CarliniWagner, "initial_c"), (ZOO, "smoothing"), (ZOO, "c"), (ZOO, "lr"), (OPT, "alpha")],
]


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        *((cls, {name: 0}, f"{name} must be at least 1, got 0") for cls, name in AT_LEAST_1),
        *((cls, {name: 0}, f"{name} must be positive and finite, got 0") for cls, name in POSITIVE),
        (PGD, {"step_size": Fraction(-1, 255)}, "step_size must be positive"),
        (PGD, {"start": "zero"}, "start must be uniform, gaussian or none"),
        (FGSM, {"norm": "l0"}, "norm must be one of linf, l2, l1"),
        (FGSM, {"mode": "test"}, "mode must be eval or train"),
        (FGSM, {"bounds": (1.0, 0.0)}, "bounds must be increasing"),
        (NFGSM, {"noise": -0.5}, "noise must be at least 0, got -0.5"),
        (MIFGSM, {"momentum": -1}, "momentum must be at least 0, got -1"),
        *(
            (cls, {"norm": "l1"}, "got 'l1'. Pass ReferenceAutoAttack for l1")
            for cls in (APGD, FAB, Square, AutoAttack)
        ),
        (APGD, {"search_loss": "margin"}, "search_loss must be one of ce, dlr, dlr-targeted"),
        (Square, {"p_init": 0}, r"p_init must be a fraction in \(0, 1\]"),
        (DeepFool, {"norm": "l1"}, "norm of DeepFool must be l2 or linf"),
        (CarliniWagner, {"confidence": -1}, "confidence must be at least 0, got -1"),
        (ZOO, {"queries": 1}, "queries must be at least 2, got 1"),
        (JSMA, {"entries": 1}, "entries must be at least 2, got 1"),
        (OnePixel, {"population": 2}, "population must be at least 4, got 2"),
        (UniversalPerturbation, {"rate": 0}, r"rate must be a fraction in \(0, 1\], got 0"),
        (EnsembleMIFGSM, {"surrogates": []}, "at least one network"),
        *(
            (EnsembleMIFGSM, {"surrogates": [nn.Flatten()] * 2, "weights": weights}, "must be 2 numbers")
            for weights in ([1.0], [1.0, -1.0], [0.0, 0.0])
        ),
        (WorstOf, {"attacks": []}, "must hold at least one attack"),
        (WorstOf, {"attacks": [FGSM(), FGSM(norm="l2")]}, "must agree in norm"),
        (WorstOf, {"attacks": [FGSM(), FGSM(mode="train")]}, "must agree in mode"),
        (WorstOf, {"attacks": [FGSM(), FGSM(bounds=None)]}, "must agree in bounds"),
        (Restarts, {"attack": FGSM(), "n": 0}, "n must be at least 1, got 0"),
        *(
            (cls, options, message)
            for cls in (AutoAttack, ReferenceAutoAttack)
            for options, message in (
                ({"version": "plus"}, "version must be one of standard"),
                ({"version": "custom"}, "attacks must be listed with version=custom"),
                ({"attacks": ["square"]}, "attacks must be listed with version=custom"),
                ({"version": "custom", "attacks": ["pgd"]}, "attacks must be among apgd-ce, .*, got pgd"),
                ({"eps": 8}, "eps must be at most 1 times the pixel range in linf, got 8"),
            )
        ),
        (AutoAttack, {"version": "rand"}, "got 'rand'. Pass ReferenceAutoAttack"),
        (AutoAttack, {"version": "custom", "attacks": ["square", "square"]}, "attacks must be distinct"),
        (AutoAttack, {"search_precision": "fp16"}, "search_precision must be fp32, bf16 or auto"),
    ],
)
def test_invalid_settings(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


@pytest.mark.parametrize("eps", [0, 0.0, -0.1, Fraction(0), math.nan, math.inf])
def test_eps_must_be_positive(eps):
    with pytest.raises(ValueError, match="eps must be positive and finite"):
        FGSM(eps)


@pytest.mark.parametrize(
    ("eps", "norm"), [(8, "linf"), (8.0, "linf"), (Fraction(256, 255), "linf"), (128, "l2"), (3060, "l1")]
)
def test_eps_in_grey_levels_is_rejected(eps, norm):
    with pytest.raises(ValueError, match=rf"pixel range in {norm}, got .*/255"):
        FGSM(eps, norm=norm)


@pytest.mark.parametrize("eps", ["8/255", None, True])
def test_eps_must_be_a_number(eps):
    with pytest.raises(TypeError, match=r"Fraction\(8, 255\)"):
        FGSM(eps)


@pytest.mark.parametrize(
    ("attack", "radius"),
    [
        *((FGSM(eps, norm=norm), eps) for eps, norm in ((1, "linf"), (3.0, "l2"), (12, "l1"), (255, "l1"))),
        (FGSM(8, bounds=None), 8),
        (NFGSM(0.1), pytest.approx(0.3)),
        (WorstOf([FGSM(0.1), NFGSM(0.1)]), pytest.approx(0.3)),
        (JSMA(1200), 1200),
        (UniversalPerturbation(100, norm="l1"), 100),
    ],
)
def test_radius(attack, radius):
    assert attack.radius == radius


@pytest.mark.parametrize(
    ("radius", "text"),
    [
        (Fraction(8, 255), "8/255"),
        (Fraction(12, 255), "12/255"),
        (Fraction(1, 2), "1/2"),
        (Fraction(1), "1"),
        (Fraction(1, 102), "2.5/255"),
        (Fraction(1, 510), "0.5/255"),
        (Fraction(1, 10), "1/10"),
        (Fraction(1, 34), "7.5/255"),
        (Fraction(1, 7), "1/7"),
        (Fraction(1, 17 * 7), "1/119"),
        (0.031, "0.031"),
        (1, "1"),
    ],
)
def test_radius_text(radius, text):
    assert radius_text(radius) == text


@pytest.mark.parametrize(
    ("attack", "label"),
    [
        *((APGD(search_loss=loss), f"apgd-{label}") for loss, label in (("ce", "ce"), ("dlr", "dlr"))),
        (APGD(search_loss="dlr-targeted"), "apgd-t"),
        (FAB(), "fab-t"),
        (Square(), "square"),
        (PGD(), "pgd"),
    ],
)
def test_label(attack, label):
    assert attack.label == label


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (PGD(Fraction(4, 255)), {"eps": "4/255", "eps_value": 4 / 255}),
        (APGD(search_loss="dlr-targeted"), {"targets": 9, "eps": "8/255"}),
        (FAB(norm="l2", eps=0.5, steps=7), {"steps": 7, "targets": 9, "batch_size": 250}),
        (Square(queries=7), {"queries": 7, "p_init": 0.8, "batch_size": 250}),
        (
            SingleStep(noise=2, clip=None),
            {"noise": 2, "step_size": "eps", "clip": None, "radius": pytest.approx(24 / 255)},
        ),
        (RSFGSM(), {"step_size": "1.25 eps"}),
        (Restarts(FGSM(0.1), 3), {"restarts": 3, "attacks": [FGSM(0.1).describe()]}),
        (AutoAttack(seed=3), {"version": "standard", "attacks": ["apgd-ce", "apgd-t", "fab-t", "square"]}),
        (ReferenceAutoAttack(), {"seed": 0, "attacks": ["apgd-ce", "apgd-t", "fab-t", "square"]}),
    ],
)
def test_description(attack, expected):
    described = attack.describe()
    assert {name: described[name] for name in expected} == expected
    assert ("loss" in described) != attack.fixed_loss


def test_description_of_autoattack_omits_settings_of_the_evaluation_and_that_of_the_reference_names_the_package():
    assert not {"seed", "search_precision"} & AutoAttack(seed=3, search_precision="bf16").describe().keys()
    assert ReferenceAutoAttack().describe()["package"].startswith("pyautoattack 0.")


def test_defaults_of_pgd_are_those_of_the_paper_rounded_to_grey_levels():
    assert PGD().describe() == {
        "attack": "PGD",
        "norm": "linf",
        "eps": "8/255",
        "eps_value": 8 / 255,
        "mode": "eval",
        "bounds": [0.0, 1.0],
        "loss": "cross_entropy",
        "step_size": "2/255",
        "steps": 10,
        "start": "uniform",
        "clamp_start": True,
        "best": False,
    }
