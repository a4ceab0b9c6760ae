"""What a run says at its end, in the terminal and on its page, and of a strategy with a hole."""

import csv
import html
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from conftest import make_once
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich.console import Console
from toy import WILD, enter_toy

from ray_ft.cli import main
from ray_ft.config import Config, load_config
from ray_ft.cross_validation import cross_validate, rebuild_ensemble
from ray_ft.data.packing import Part
from ray_ft.domains.raw import DOMAIN
from ray_ft.drawing import add_titles, name_dots, number_dots, use_log
from ray_ft.errors import RunFolderError, UserError
from ray_ft.objectives import TargetAxes, find_objective
from ray_ft.objectives.regression import build_objective
from ray_ft.objectives.regression_presentation import draw_density, draw_scatter
from ray_ft.report.figures import draw_depth, draw_search, style_candidate
from ray_ft.report.page import Findings, draw_plates, escape_mathtext, fill_page, load_findings, wrap_name, write_report
from ray_ft.report.terminal import render_summary
from ray_ft.report.using import list_ways, say_obstacle
from ray_ft.report.words import (
    Unit,
    choose_unit,
    describe_shape,
    list_beside,
    list_search,
    say_changes,
    say_depth,
    say_lowest,
    unit_of,
)  # fmt: skip
from ray_ft.results.records import Verdict, load_judged
from ray_ft.runs.folder import RunFolder
from ray_ft.statistics.comparison import Comparison


@pytest.mark.parametrize(
    ("lowest", "exponent"),
    [(0.002, -3), (2.0, 0), (4e-7, -6), (12345.0, 3), (4.82e-4, -3), (0.05, -3), (0.1, 0), (1e-4, -3)],
)
def test_units_are_powers_of_a_thousand_that_show_three_digits_of_the_lowest(lowest: float, exponent: int) -> None:
    unit = choose_unit([lowest * 1e4, lowest, 0.0])
    assert unit == Unit(exponent)
    assert 0.1 <= unit.scale(lowest) < 100
    assert unit.write(lowest) == f"{lowest / 10.0**exponent:.3f}"


def test_scores_of_zero_have_the_unit_one() -> None:
    assert choose_unit([0.0, 0.0]) == Unit(0)


@pytest.fixture
def findings(toy_config: Config, tmp_path: Path) -> Findings:
    cross_validate(toy_config, tmp_path / "run", inline=True)
    return load_findings(RunFolder(tmp_path / "run"))


def test_what_is_said_of_a_choice_needs_one(findings: Findings) -> None:
    """Of one strategy there was none to pick from."""
    summary, unit, text = findings.summary, findings.unit, io.StringIO()
    assert "Corrected for having been picked" in say_lowest(summary, unit)
    single = summary.model_copy(update={"strategies": {summary.lowest: summary.strategies[summary.lowest]}})
    assert "orrected for having been picked" not in say_lowest(single, unit)
    Console(file=text, width=160).print(render_summary(single, findings.run))
    assert "orrected for having been picked" not in text.getvalue()
    changes = "".join(say_changes(summary, unit))
    assert "so this ranks recipes" in changes
    for name, row in summary.strategies.items():
        assert (f"{name} is not settled: {'; '.join(row.unsettled_because)}" in changes) == (not row.settled)


def test_a_column_of_which_no_row_has_anything_is_left_out(findings: Findings) -> None:
    summary, unit = findings.summary, findings.unit
    rows = {name: row.model_copy(update={"guide_score": None}) for name, row in summary.strategies.items()}
    some = rows | {"top": summary.strategies["top"].model_copy(update={"guide_score": unit.factor**-1})}
    headers, cells = list_search(summary.model_copy(update={"strategies": some}), unit)
    place = headers.index("recipe's score")
    assert [cells[name][place] for name in ("last", "top")] == ["", "1.000"]
    none = summary.model_copy(update={"strategies": rows})
    without = list_search(none, unit)
    assert without[0] == [header for header in headers if header != "recipe's score"]
    assert without[1]["last"] == [cell for i, cell in enumerate(cells["last"]) if i != place]
    text = io.StringIO()
    Console(file=text, width=200).print(render_summary(none, findings.run))
    assert "recipe's score" not in text.getvalue()
    measured = summary.model_copy(update={"strategies": {}, "baselines": {}})
    assert list_beside(measured) == ([], {})


def pair(first: str, second: str, ratio: float, *unsettled: str) -> Comparison:
    """A comparison of which the test is sure; a ratio of 2 or a half is a verdict, one near 1 is none but that."""
    sure = {True: (1.0, 0.0, 0.0), False: (0.0, 0.0, 1.0)}[ratio < 1]
    told = (0.0, 1.0, 0.0) if ratio == 1.0 else (0.5, 0.0, 0.5) if 0.6 < ratio < 1.6 else sure
    return Comparison(
        first=first, second=second, difference=ratio - 1, interval=(0.9 * ratio - 1, 1.1 * ratio - 1), ratio=ratio,
        ratio_interval=(0.9 * ratio, 1.1 * ratio), p_value=1e-3, p_adjusted=1e-3 if max(told[0], told[2]) == 1 else 0.5,
        rope=0.01, probabilities=told, n_repeats=None, unsettled=unsettled,
    )  # fmt: skip


def test_few_folds_are_said_to_be_few_where_nothing_is_known(findings: Findings) -> None:
    lowest = findings.summary.lowest
    other = next(name for name in findings.summary.strategies if name != lowest)
    for ratio, n_folds, n_repeats, said in (
        (0.8, 3, 1, True),
        (0.8, 5, 1, False),
        (0.8, 3, 4, False),
        (0.4, 3, 1, False),
    ):
        few = {"comparisons": (pair(lowest, other, ratio),), "n_folds": n_folds, "n_repeats": n_repeats}
        summary = findings.summary.model_copy(update=few)
        assert ("3 folds tell only a large difference" in "".join(say_changes(summary, findings.unit))) == said


FALL = "falls from last to {} by 50 % [44 %, 55 %]"
DEPTHS = (  # scores; ratios of last to half, of last to all, and of half to all
    ((2, 2, 2), (1.0, 1.0, 1.0), "late layers pay: last is as good as all"),
    ((1, 2, 2), (0.5, 0.5, 1.0), "late layers pay: last is better than all"),
    ((2, 2, 1), (1.0, 2.0, 2.0), f"early layers pay: the mse {FALL.format('all')}"),
    ((2, 1, 1), (2.0, 2.0, 1.0), f"later layers pay: the mse {FALL.format('half')}, and all is no better"),
    ((2, 1, 2), (2.0, 1.0, 0.5), f"later layers pay: the mse {FALL.format('half')}, and all is worse"),
    (
        (2, 1.2, 1), (2.0, 2.0, 1.2), f"the mse {FALL.format('all')}, but how early the layers are that pay is open: "
        "no evidence of a difference between all and half",
    ),
    ((1.2, 1.2, 1), (1.0, 1.2, 1.2), "no verdict on early layers: no evidence of a difference between all and last"),
    ((1, 1.2, 1.2), (0.8, 0.8, 1.0), "no verdict on early layers: no evidence of a difference between last and all"),
)  # fmt: skip


def test_early_or_late_layers_pay_where_that_is_known(findings: Findings) -> None:
    row, chain = findings.summary.strategies["last"], ("last", "half", "all")
    for scores, ratios, said in DEPTHS:
        rows = {
            name: row.model_copy(update={"score_mean": float(score), "layers": (n, 9)})
            for name, score, n in zip(chain, scores, (1, 4, 9), strict=True)
        }
        rows["norms"] = row.model_copy(update={"score_mean": 0.1, "layers": None})
        rows = {"worse": rows["last"].model_copy(update={"score_mean": 99.0}), **rows}
        made = tuple(pair(*names, ratio) for names, ratio in zip(combinations(chain, 2), ratios, strict=True))
        summary = findings.summary.model_copy(update={"strategies": rows, "comparisons": made})
        assert summary.by_depth == chain
        assert list(say_depth(summary, Unit(0))) == [said]
        figure = draw_depth(summary, Unit(0))
        assert figure is not None
        names = [text.get_text() for text in figure.axes[0].get_xticklabels()]
        assert names == ["last\n1 of 9", "half\n4 of 9", "all\n9 of 9"]
        np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), scores)


def test_two_depths_do_not_say_that_early_layers_pay(findings: Findings) -> None:
    """What more than the last layers bring may be brought by those next to them."""
    row = findings.summary.strategies["last"]
    rows = {
        name: row.model_copy(update={"score_mean": score, "layers": (n, 9)})
        for name, score, n in (("last", 2.0, 1), ("all", 1.0, 9))
    }
    update = {"strategies": rows, "comparisons": (pair("last", "all", 2.0),)}
    (said,) = say_depth(findings.summary.model_copy(update=update), Unit(0))
    assert said == f"more than the last layers pay: the mse {FALL.format('all')}"


def test_what_is_not_settled_or_of_one_depth_says_nothing_of_depth(findings: Findings) -> None:
    summary, text = findings.summary, io.StringIO()
    assert [summary.strategies[name].layers for name in ("last", "top")] == [(1, 4), (2, 4)]
    unsure = summary.model_copy(update={"comparisons": (pair("last", "top", 2.0, "last"),)})
    lower = {"score_mean": 0.5 * (unsure.strategies["last"].score_mean or 0.0)}
    top = unsure.strategies["top"].model_copy(update=lower)
    unsure = unsure.model_copy(update={"strategies": unsure.strategies | {"top": top}})
    (said,) = say_depth(unsure, Unit(0))
    assert said == "no verdict on early layers: no verdict between top and last, as last is not settled"
    Console(file=text, width=200).print(render_summary(summary, findings.run))
    assert f"depth     {next(say_depth(summary, findings.unit))}" in text.getvalue()
    assert "depth" in {name for name, *_ in draw_plates(findings)}
    single = summary.model_copy(update={"strategies": {"last": summary.strategies["last"]}})
    assert not list(say_depth(single, Unit(0)))
    assert draw_depth(single, Unit(0)) is None


def test_baselines_and_limits_of_the_training_parts_are_what_they_say(findings: Findings) -> None:
    summary = findings.summary
    near_zero = {name: row.model_copy(update={"score_mean": 1e-15}) for name, row in summary.baselines.items()}
    assert unit_of(summary.model_copy(update={"baselines": near_zero})) == findings.unit
    assert describe_shape(summary) == "30 samples, 3 folds × 2 seeds"
    limited = summary.model_copy(update={"test_share": 10 / 8})
    assert describe_shape(limited) == "30 samples, 3 folds × 2 seeds, training parts of 8"


def test_the_search_shows_how_candidates_ended(findings: Findings) -> None:
    verdicts = {spec.name: Verdict("completed", 5, "", 0.0) for spec in findings.plan}
    verdicts |= {"top-000": Verdict("stopped", 1, "", 0.0), "top-001": Verdict("failed", 0, "", 0.0)}
    figure = draw_search(findings.summary, findings.plan, verdicts, findings.curves, findings.unit)
    assert figure is not None
    stopped, failed, *_ = figure.axes[0].lines
    assert stopped.get_fillstyle() == "none"
    assert stopped.get_ydata()[0] == pytest.approx(
        findings.unit.scale(findings.curves["top-000"].guide[:2].mean((1, 2)).min())
    )
    assert failed.get_marker() == "x"
    assert isinstance(figure.axes[0].xaxis.get_minor_formatter(), NullFormatter), "within a decade they would overlap"
    assert [text.get_text() for text in figure.legends[0].texts][-3:] == ["stopped by ASHA", "recipe", "failed"]
    row = findings.summary.strategies["top"]
    many = findings.summary.model_copy(update={"strategies": {f"s{i}": row for i in range(12)}})
    styles = [style_candidate(many, name, "completed") for name in many.strategies]
    assert len({(style["color"], style["marker"]) for style in styles}) == 12
    nested = replace(findings, summary=findings.summary.model_copy(update={"protocol": "nested"}))
    captions = {name: caption for name, _, caption, _ in draw_plates(nested)}
    assert "lowest mean loss of the inner parts" in captions["search"]


def test_the_table_shows_a_hole_and_how_members_trained(toy_folder: Path) -> None:
    config = load_config(toy_folder / "toy.yaml", {"strategies.wild": WILD, "cv.strategies": ["wild", "top"]})
    run = RunFolder(toy_folder / "run")
    summary = cross_validate(config, run.root, inline=True)
    text = io.StringIO()
    Console(file=text, width=160).print(render_summary(summary, run))
    assert "no candidate completed" in text.getvalue()
    assert "failed: wild-000 (DivergedError" in text.getvalue()
    assert "members trained looped, float32" in text.getvalue()
    assert (
        "winner    none: no strategy beats gain-offset, so do not use this model; top is the lowest" in text.getvalue()
    )
    rows = {row["strategy"]: row for row in csv.DictReader(run.leaderboard.read_text().splitlines())}
    assert rows["wild"]["score_mean"] == ""
    assert float(rows["top"]["score_mean"]) == summary.strategies["top"].score_mean
    assert {verdict.state for name, verdict in load_judged(run)[1].items() if name.startswith("wild")} == {"failed"}


def test_an_axis_without_anything_above_zero_is_no_logarithm() -> None:
    axes = Figure().add_subplot()
    axes.plot([1, 2], [0, 0])
    use_log(axes)
    assert axes.get_yscale() == "linear"


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with a strategy that failed, another that was searched, and a name to be escaped."""
    return make_once(tmp_path_factory, "reported", report_run) / "run/report.html"


def report_run(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        enter_toy(folder, patch)
        values = {"strategies.wild": WILD, "cv.strategies": ["wild", "top"], "data.inputs": "<b>x</b>.npy"}
        Path("<b>x<").mkdir()  # a slash in the name makes it a path
        Path("x.npy").rename("<b>x</b>.npy")
        cross_validate(load_config("toy.yaml", values), "run", inline=True)
        write_report("run")


class Outline(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.open: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)
            self.open.append("")


def test_the_page_answers_and_needs_nothing_else(reported: Path) -> None:
    text, outline = reported.read_text(), Outline()
    outline.feed(text)
    assert outline.headings[:4] == ["How to use it", "Which strategy", "How sure", "What would change the answer"]
    plates = {"Every member", "Paired differences", "Learning", "Search", "Predicted against measured"}
    assert plates <= set(outline.headings)
    assert "The worst sample" not in outline.headings, "three numbers are no curve"
    assert all(link.startswith(("data:", "#")) for link in outline.links), "nothing is fetched"
    assert outline.tags["script"] == 1
    headline = "No strategy beats gain-offset, so do not use this model; top is the lowest of them."
    assert text.index(headline) < text.index("How to use it") < text.index("Do not use this ensemble")
    assert text.count("so do not use this model") == 1, "it is said once"
    assert "no candidate completed" in text
    assert "3 of 3 candidates of wild failed: it may be better than it looks" in text
    assert "&lt;b&gt;x&lt;/b&gt;.npy" in text
    assert not outline.tags["b"], "what the user wrote is text"
    saved = {path.name for path in (reported.parent / "figures").iterdir()}
    assert {"members.png", "members.svg", "search.png", "errors.svg"} <= saved
    assert outline.tags["figure"] == len(saved) / 2


def test_the_page_says_how_to_use_the_ensemble(findings: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first way is typed as it stands; its output takes the place of no file."""
    summary, run, card = findings.summary, findings.run, findings.card
    assert card is not None
    assert "no strategy beats" in say_obstacle(summary.model_copy(update={"winner": None}), card, run.root)
    won = summary.model_copy(update={"winner": summary.lowest})
    assert "no ensemble" in say_obstacle(won, None, run.root)
    assert say_obstacle(won, card, run.root) == ""
    command, python, http = list_ways(won, run, card)
    monkeypatch.chdir(run.root.parent)
    x = np.load("x.npy")
    np.save("new.npy", x)
    before = set(Path().iterdir())
    monkeypatch.setattr(sys, "argv", shlex.split(command.lines[0]))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    (written,) = set(Path().iterdir()) - before
    named: dict[str, Any] = {}
    exec("\n".join(python.lines), named)
    np.testing.assert_allclose(np.load(written)["mean"], named["prediction"].mean)
    asked = shlex.split(http.lines[1])
    assert not Path(asked[asked.index("-o") + 1]).exists()
    assert http.lines[0] == f"ray-ft serve {run.root}"
    ragged = card.model_copy(update={"inputs": (Part("nodes", (-1, 2), "float"),)})
    assert [way.title for way in list_ways(won, run, ragged)] == ["Python"]
    packed = card.model_copy(update={"inputs": (Part("a", (2,), "float"), Part("b", (4,), "float"))})
    assert [way.note for way in list_ways(won, run, packed)] == ["new.npz holds the arrays a, b.", ""]


@pytest.mark.parametrize("shape", [(), (3,), (20,), (2, 20)])
def test_figures_are_chosen_by_the_shape_of_the_target(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(40, *shape)).astype(np.float32)
    blind = targets + 0.1 * rng.normal(size=targets.shape).astype(np.float32)
    targets.reshape(40, -1)[0, 0] = np.nan
    objective, fold_of = find_objective("mse").settle(targets), np.arange(40) % 4
    answer, axes = objective.answers.answer_blind(blind, targets, fold_of, 0.9), DOMAIN.name_axes(shape, (0.0, 1.0))
    responses, show = {"blind ensemble": blind, "zero-shot": 0 * blind}, objective.presentation
    caption, figure = show.draw_predictions(axes, responses, targets, answer)
    assert "of 90 %" in caption
    (names,) = [*number_dots(figure).values()][:1] or [()]
    own = {name: np.asarray(array[1]) for name, array in answer.quantities.items()}
    sample = show.draw_sample(axes, np.asarray(targets[1]), np.asarray(blind[1]), own)
    errors = show.draw_errors(axes, responses, targets)
    if len(shape) == 0 or shape == (3,):
        assert names[0].startswith("sample 1: measured"), "the first has no label"
        assert len(names) == 39
        assert sample is None
    else:
        assert all(panel.images for panel in figure.axes), "how many fall where"
        assert sample is not None
        assert len(sample.axes) == len(axes.channels)
        assert len(sample.axes[0].collections) == 2, "interval and band"
    assert (errors is None) == (shape == ())
    few = objective.answers.answer_blind(blind[:8], targets[:8], fold_of[:8], 0.9)
    assert (few.quantities, few.measures) == ({}, {})
    responses = {name: own[:8] for name, own in responses.items()}
    assert "too few" in show.draw_predictions(axes, responses, targets[:8], few)[0]


def test_intervals_of_training_samples_are_by_the_errors_of_other_folds() -> None:
    """By hand, sample by sample: the rank of CV+ among the sizes of the other folds' errors."""
    rng = np.random.default_rng(1)
    blind, targets, fold_of = rng.normal(size=50), rng.normal(size=50), rng.integers(0, 5, 50)
    answer = find_objective("mse").answers.answer_blind(blind, targets, fold_of, 0.8)
    for i in range(50):
        sizes = np.sort(np.abs(targets - blind)[fold_of != fold_of[i]])
        width = sizes[int(np.ceil(0.8 * (len(sizes) + 1))) - 1]
        np.testing.assert_allclose(answer.quantities["lower"][i], blind[i] - width, rtol=1e-5)
        np.testing.assert_allclose(answer.quantities["upper"][i], blind[i] + width, rtol=1e-5)
    inside = np.abs(targets - blind) <= answer.quantities["upper"] - blind
    assert answer.measures["coverage"] == pytest.approx(inside.mean())


def test_dots_bear_their_names() -> None:
    figure, text = Figure(), io.StringIO()
    (dots,) = figure.add_subplot().plot([1, 2], [3, 4], "o")
    name_dots(dots, ["a < b", "c"])
    names = number_dots(figure)
    figure.savefig(text, format="svg")
    svg = add_titles(text.getvalue(), names)
    assert re.findall(r"<use class=\"dot\" [^>]*><title>(.*?)</title></use>", svg) == ["a &lt; b", "c"]


PROBE = """<script>
const table = document.querySelector("table");
const read = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
const press = (i) => table.tHead.rows[0].cells[i].querySelector("button").click();
const found = { width: innerWidth, page: document.documentElement.scrollWidth };
const boxes = [...document.querySelectorAll(".scroll")];
found.cut = boxes.filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.textContent.trim());
found.tallest = Math.max(...[...document.querySelectorAll("tbody tr")].map((row) => row.offsetHeight));
found.line = parseFloat(getComputedStyle(document.querySelector("td")).lineHeight);
found.names = boxes.map((box) => {
  box.scrollLeft = 10000;
  return box.querySelector("td").getBoundingClientRect().left - box.getBoundingClientRect().left;
});
boxes.forEach((box) => { box.scrollLeft = 0; });
press(1);
found.rising = read();
press(1);
found.falling = read();
found.sorted = [...table.tHead.rows[0].cells].map((cell) => cell.getAttribute("aria-sort"));
const [dot, next] = document.querySelectorAll("#members .dot");
dot?.focus();
dot?.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
found.told = [document.getElementById("tip").textContent, next?.getAttribute("aria-label")];
parent.postMessage(JSON.stringify(found), "*");
</script></body>"""
FRAME = """<title></title><script>onmessage = (event) => { document.title = event.data; };</script>
<iframe src="page.html" style="width: WIDTHpx; height: 800px; border: 0"></iframe>"""


def measure_page(page: str, width: int, folder: Path) -> Any:
    """What the probe finds in a page; in a frame, as a window of the browser has 500 pixels at the least."""
    (folder / "page.html").write_text(page.replace("</body>", PROBE))
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    command += ["--virtual-time-budget=4000", "--dump-dom", (folder / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return json.loads(html.unescape(dom.partition("<title>")[2].partition("</title>")[0]))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_fits_a_phone_and_its_tables_sort(reported: Path, tmp_path: Path) -> None:
    found = measure_page(reported.read_text(), 420, tmp_path)
    assert found["page"] <= found["width"] <= 420
    assert found["tallest"] < 4 * found["line"], "no row is tall and mostly empty"
    assert found["cut"]
    assert max(map(abs, found["names"])) < 1, "names stay in sight where their table scrolls"
    assert found["rising"][-1] == found["falling"][-1] == "wild", "what has no score stays last"
    assert found["rising"][:-1] == found["falling"][-2::-1]
    assert found["sorted"].count("descending") == 1
    assert found["sorted"].count(None) == len(found["sorted"]) - 1
    assert found["told"][0] == found["told"][1]
    assert "fold" in found["told"][0]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_no_table_is_cut_on_a_small_laptop(findings: Findings, tmp_path: Path) -> None:
    """Long names, large numbers, and strategies that lack much."""
    large = {"score_std": 213.771, "best_epoch_mean": 1018.751, "optimism": 1018.751, "fold_std": 1018.751}
    large |= {"seed_std": 1018.751, "n_trained_params": 123456789, "trained_share": 1.0, "settled": False}
    large |= {"unsettled_because": ("still improving, and much else that takes a while to be said",) * 4}
    scores = {"last": 0.132, "top": 1018.751}
    rows = {
        name: row.model_copy(update=large | {"score_mean": scores[name]})
        for name, row in findings.summary.strategies.items()
    }
    wide = {
        "difference": -604.455,
        "interval": (-1057.262, 1050.729),
        "ratio": 0.0785,
        "ratio_interval": (0.0959, 6430.0),
    }
    pairs = [pair.model_copy(update=wide) for pair in findings.summary.comparisons]
    summary = findings.summary.model_copy(update={"strategies": rows, "comparisons": tuple(pairs)})
    page = fill_page(replace(findings, summary=summary), [])
    page = re.sub(r"(?<=<td>)(top|last)\b", rf"{wrap_name('norms_and_biases_of_the')}_\1", page)
    found = measure_page(page, 1280, tmp_path)
    assert found["width"] == 1280
    assert not found["cut"]
    assert found["tallest"] < 3 * found["line"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("options", [[], ["--blink-settings=preferredColorScheme=0"]], ids=["light", "dark"])
def test_a_browser_opens_the_page_without_complaint(reported: Path, options: list[str], tmp_path: Path) -> None:
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path}/profile", *options, f"--screenshot={tmp_path}/page.png", reported.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in result.stderr
    corner = matplotlib.image.imread(tmp_path / "page.png")[5, 5, :3].mean()
    assert corner < 0.2 if options else corner > 0.8


def test_a_run_that_is_not_finished_or_damaged_has_no_report(toy_config: Config, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"a finished run holds summary\.json"):
        write_report(tmp_path)
    run = RunFolder(tmp_path / "run")
    cross_validate(toy_config, run.root, inline=True)
    run.blind.write_bytes(run.blind.read_bytes()[:100])
    with pytest.raises(RunFolderError, match=r"damaged; write it again with: ray-ft ensemble"):
        write_report(run.root)
    run.summary.write_text(run.summary.read_text()[:-20])
    with pytest.raises(RunFolderError, match="must be a summary as this release writes it"):
        write_report(run.root)


def test_a_damaged_or_missing_file_is_named_in_one_line(toy_config: Config, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    summary = cross_validate(toy_config, run.root, inline=True)
    chosen = run.candidate(f"{summary.lowest}-{summary.strategies[summary.lowest].chosen_candidates[0][0]:03d}")
    commands = {run.splits: write_report, run.plan: write_report, run.config: write_report}
    read_again = (run.provenance, run.verdicts, chosen.members, chosen.predictions)
    commands |= dict.fromkeys(read_again, partial(rebuild_ensemble, trust=True))
    for path, command in commands.items():
        whole = path.read_bytes()
        for damage in (b"{}", b"[1", None):
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            with pytest.raises(UserError) as caught:
                command(run.root)
            assert "\n" not in str(caught.value) or path == run.config  # whose problems are listed
            assert path.name in str(caught.value) or path.parent.name in str(caught.value)
        path.write_bytes(whole)
    chosen.result.write_text("[1")
    with pytest.raises(RunFolderError, match="missing or damaged"):
        rebuild_ensemble(run.root, trust=True)
    run.provenance.write_text("{}")
    with pytest.raises(RunFolderError, match="a run holds its provenance"):
        cross_validate(toy_config, run.root, inline=True)


def test_a_report_that_cannot_be_written_says_so(toy_config: Config, tmp_path: Path) -> None:
    cross_validate(toy_config, tmp_path / "run", inline=True)
    (tmp_path / "run/figures").touch()
    with pytest.raises(RunFolderError, match=r"goes into its run's folder, got .*figures: File exists"):
        write_report(tmp_path / "run")


def test_values_without_labels_and_names_with_dollars_are_no_fault_of_a_figure() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(20, 3)).astype(np.float32)
    targets[:, 1] = np.nan
    objective = build_objective("mse")
    answer = objective.answers.answer_blind(targets + 0.1, targets, np.arange(20) % 5, 0.9)
    names = tuple(escape_mathtext(name) for name in ("cost $ of_$", "b", "$\\foo$"))
    for axes in (TargetAxes(("",), np.arange(3.0), "value", names), TargetAxes(names, np.arange(1.0), "value")):
        caption, figure = draw_scatter(axes, targets + 0.1, targets, answer)
        dots = number_dots(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg")
        assert "2 of 3 values are shown" in caption
        assert add_titles(text.getvalue(), dots).count('class="dot"') == 40, "dots of every panel have names"
    curves = np.repeat(targets[:, :, None], 30, 2)
    answer = objective.answers.answer_blind(curves + 0.1, curves, np.arange(20) % 5, 0.9)
    draw_density(TargetAxes(names, np.arange(30.0), "x"), curves + 0.1, curves, answer)[1].savefig(io.BytesIO())
