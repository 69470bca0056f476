"""The form of the shape law: its optimum is one, and the paper's own exponents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.studies.law_tables import law_of
from sovit.errors import ConfigError
from sovit.jsonio import from_dict, to_dict
from sovit.laws.form import ShapeLaw, Term
from sovit.laws.paper import ANCHORS, PaperLaw, Sizes, paper_law
from sovit.variants import VARIANTS

ROOT = Path(__file__).parents[1]


def test_by_hand() -> None:
    term = Term(alpha=2, a=1, beta=3, b=1)
    law = ShapeLaw(width=term, depth=term, mlp_dim=term, c=0.5, xi=4, eps=0.25)
    # 2/2 + 2/4 + 2/8, then (3*2 + 3*4 + 3*8 + 4) / 16^0.5, then eps.
    assert law.predict([2, 4, 8], 16) == pytest.approx(1 + 0.5 + 0.25 + 46 / 4 + 0.25)
    assert law.exponents == pytest.approx([0.25] * 3)
    assert law.optimum(16) == pytest.approx([(2 * 4 / 3) ** 0.5] * 3)
    assert law.optimum([1, 16]).shape == (2, 3)
    assert law.predict(np.ones((5, 1, 3)), np.ones(7)).shape == (5, 7)


@given(st.floats(7, 13), st.sampled_from([0, 1, 2]), st.floats(0.5, 2).filter(lambda factor: abs(factor - 1) > 0.01))
def test_any_step_from_the_optimum_is_worse(log_compute: float, k: int, factor: float) -> None:
    law, t = law_of(), 10**log_compute
    best = law.optimum(t)
    other = best.copy()
    other[k] *= factor
    assert law.predict(other, t) > law.predict(best, t)


@given(st.floats(7, 13), st.floats(1.1, 100))
def test_the_optimum_grows_as_the_exponents_say(log_compute: float, tau: float) -> None:
    law, t = law_of(), 10**log_compute
    assert law.optimum(tau * t) / law.optimum(t) == pytest.approx(tau**law.exponents)


def test_a_dimension_that_only_helps_or_only_harms_has_no_optimum() -> None:
    found = law_of(alpha=(0, 0.03, 0.04), beta=(0.02, 0, 0.03))
    assert np.isnan(found.exponents).tolist() == [True, True, False]
    assert np.isnan(found.optimum(1e10)).tolist() == [True, True, False]


def test_json_there_and_back() -> None:
    law = law_of()
    assert from_dict(ShapeLaw, to_dict(law), "law.json") == law
    with pytest.raises(ConfigError, match=r"law\.json: width\.gamma: unknown field"):
        from_dict(ShapeLaw, {**to_dict(law), "width": {**to_dict(law)["width"], "gamma": 1}}, "law.json")


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_no_parameter_is_negative(value: float) -> None:
    term = Term(alpha=1, a=1, beta=1, b=1)
    with pytest.raises(ConfigError, match="xi is"):
        ShapeLaw(width=term, depth=term, mlp_dim=term, c=1, xi=value, eps=0)
    with pytest.raises(ConfigError, match="beta_depth is"):
        ShapeLaw(width=term, depth=Term(alpha=1, a=1, beta=value, b=1), mlp_dim=term, c=1, xi=0, eps=0)


def test_the_law_needs_no_torch() -> None:
    modules = sorted(path.stem for path in (ROOT / "sovit" / "laws").glob("*.py") if path.stem != "__init__")
    assert {"fit", "bootstrap", "paper"} <= set(modules)
    code = "import sys\nsys.modules['torch'] = None\n" + "".join(f"import sovit.laws.{name}\n" for name in modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The paper's.


def test_ten_times_the_compute_is_two_and_a_half_times_the_parameters() -> None:
    """What the paper says of its exponents; blocks only, which is nearly all of a large model."""
    law = paper_law("So400m")

    def parameters(width: float, depth: float, mlp_dim: float) -> float:
        return depth * (4 * width**2 + 2 * width * mlp_dim)

    assert parameters(*law.shape(10)) / parameters(*law.shape(1)) == pytest.approx(2.5, abs=0.15)
    assert law.shape(1) == ANCHORS["So400m"] == VARIANTS["So400m"][:3]


def implied_tau(law: PaperLaw, shape: Sizes) -> list[float]:
    """For each dimension the factor of compute that would lead from the anchor to this shape; one, if law it is."""
    return [(size / x) ** (3 / s) for size, x, s in zip(shape, law.anchor, law.exponents, strict=True)]


def test_the_published_exponents_do_not_give_the_published_shapes() -> None:
    law = paper_law()
    assert [round(tau) for tau in implied_tau(law, ANCHORS["So150m"])] == [155, 50, 98]
    assert [round(tau) for tau in implied_tau(law, ANCHORS["So400m"])] == [6092, 751, 2146]
    for figure in ("6,092", "751", "2,146", "155", "50", "98"):
        assert figure in law.caveat
    # The exponents that both shapes would have, for the MLP dimension's 0.6.
    for name in ("So150m", "So400m"):
        grown = np.log(np.array(ANCHORS[name]) / np.array(ANCHORS["x0"]))
        assert 0.6 * grown / grown[2] == pytest.approx([0.25, 0.385, 0.6], abs=0.01)


@given(st.floats(1e-3, 1e6))
def test_implied_compute_is_the_way_back(tau: float) -> None:
    assert implied_tau(paper_law(), paper_law().shape(tau)) == pytest.approx([tau] * 3)


def test_anchors_and_factors_that_are_none() -> None:
    with pytest.raises(ConfigError, match="no anchor is called 'B': known are x0, So150m, So400m"):
        paper_law("B")
    for tau in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="tau is"):
            paper_law().shape(tau)
