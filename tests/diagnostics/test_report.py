import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from pyro_gram.diagnostics import paper, verdicts
from pyro_gram.diagnostics.plots.captions import CAPTIONS
from pyro_gram.diagnostics.report import Report, Row, Section, result_rows, write_report

LEAK, RIGHT, COLLAPSE = verdicts.leak(0.99, 0.1), verdicts.accuracy(0.95), verdicts.collapse(0.01, 3.0)


class Page(HTMLParser):
    """Parse a page, and collect its tags, the targets of its links, and the tags that are still open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "data", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def picture(path, width=4.0):
    figure = Figure(figsize=(width, 3))
    figure.subplots().plot([0, 1])
    figure.savefig(path, dpi=20)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return picture(folder / "a.png", 6), picture(folder / "b.png", 4)


@pytest.fixture
def page(tmp_path, pictures):
    def write(**changes):
        by_name = {v.name: v for v in (RIGHT, LEAK, COLLAPSE)}
        sections = [
            Section.from_figure("leak", pictures[0], by_name),
            Section.from_figure("training", pictures[1], by_name),
            Section.without_figure("landscape", "every trajectory of this model is the same"),
        ]
        base = {
            "title": "a <b>run</b> & more",
            "summary": "Trained.",
            "verdicts": [RIGHT, LEAK, COLLAPSE],
            "rows": [Row("Right first sample", "0.950", "0.997"), Row("Violations", "3")],
            "sections": sections,
            "details": {"Settings": {"text": "</pre><script>alert(1)</script>"}},
        }
        write_report(tmp_path / "report.html", Report(**{**base, **changes}))
        return (tmp_path / "report.html").read_text()

    return write


def test_the_page_is_well_formed_and_needs_no_network(page):
    text = page()
    parsed_page = Page(text)
    assert parsed_page.open == []
    assert len(parsed_page.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in parsed_page.sources)
    assert "script" not in parsed_page.tags
    assert not re.search(r"@import|url\(|<link", text)
    assert 'name="viewport"' in text


def test_texts_are_escaped(page):
    text = page()
    assert "a &lt;b&gt;run&lt;/b&gt; &amp; more" in text
    assert "<script>" not in text


def test_each_question_has_the_level_of_its_worst_verdict(page):
    text = page()
    answers, guide = text.index("Can its answers be trusted?"), text.index("Can its guide be trusted?")
    assert text[answers:].split("</p>")[0].count("do not trust") == 1
    assert text[guide:].split("</p>")[0].count("do not trust") == 1
    text = page(verdicts=[RIGHT])
    assert "Can its guide be trusted?" not in text
    assert text[text.index("Can its answers be trusted?") :].split("</p>")[0].count(">good<") == 1


def test_every_verdict_comes_with_its_threshold_and_its_meaning(page):
    text = page()
    for verdict in (LEAK, RIGHT, COLLAPSE):
        assert verdict.threshold in text
        assert verdict.meaning.split(":")[0] in text


def test_every_figure_has_its_caption_or_the_reason_why_it_is_missing(page):
    text = page()
    for name in ("leak", "training", "landscape"):
        assert CAPTIONS[name].title in text
    assert "Not shown: every trajectory of this model is the same." in text
    assert text.count('class="wide"') == 1  # the wide picture scrolls sideways on a telephone; the other one fits


def test_every_verdict_is_shown_by_a_figure():
    metrics = {"sample_accuracy": 1.0, "posterior_accuracy": 1.0, "kl": 1.0, "reconstruction": 1.0, "excess": 1.0}
    metrics |= {"inception_score": 1.0, "inception_score_real": 1.0, "nearest_distance": 1.0, "unsettled": 0.0}
    metrics |= {"nearest_distance_real": 1.0, "coverage": 1.0, "coverage_limit": 1.0}
    weights = {"pairs": 1, "both_trusted": 0, "agree": 0, "believed": {"neither": 0}, "khat_above": 0, "khat_limit": 0}
    weights |= {"ess_median": 1, "guide_samples": 1}
    results = verdicts.from_metrics(metrics, {"recent_accuracy": 1.0, "peak_accuracy": 1.0}, {"tested": 0}, 1.0)
    results += [verdicts.estimate(weights), verdicts.importance_weights(weights), verdicts.agreement(weights)]
    results += [
        verdicts.likelihood(0.0, None, 0.0, 0.0),
        verdicts.ranks({"a": 0.0}, 1.0, 1),
        verdicts.diversity(0.0, 1),
    ]
    assert {name for caption in CAPTIONS.values() for name in caption.verdicts} == {v.name for v in results}


def test_the_column_of_the_paper_appears_only_with_a_number_of_the_paper(page):
    assert "0.997" in page()
    assert "arXiv" not in page(rows=[Row("Right first sample", "0.950")])


def test_rows_hold_the_papers_numbers_of_the_same_problem_and_model():
    metrics = {"sample_accuracy": 0.9, "coverage": 0.8, "coverage_se": 0.01, "violations": 3, "own_figure": 1.5}
    rows = {row.label: row for row in result_rows(metrics, "nqueens8", "gram", all_inputs=True)}
    assert rows["Coverage of all solutions"] == Row("Coverage of all solutions", "0.800", "0.903")
    assert rows["Accuracy, all samples"].paper == "0.997"
    assert rows["Own figure"].value == "1.500"
    assert "Coverage se" not in rows
    for model, number in (("trm", "0.361"), ("direct", "0.137"), ("vae", "")):
        other = {row.label: row for row in result_rows(metrics, "nqueens8", model, all_inputs=True)}
        assert other["Coverage of all solutions"].paper == number
    without = result_rows(metrics, "", "gram", all_inputs=True)
    assert not any(row.paper for row in without)


def test_sums_are_compared_only_if_over_all_inputs():
    numbers = [
        result_rows({"violations": 3}, "coloring8", "gram", all_inputs=all_inputs)[0].paper
        for all_inputs in (True, False)
    ]
    assert numbers == ["2.7", ""]


def test_published_returns_the_numbers_that_the_paper_prints():
    assert paper.published("coloring8") == {"violations": 2.7, "coverage": pytest.approx(0.858)}
    assert paper.published("mnist")["frechet_distance"] == 73.3
    assert paper.published("sudoku", "trm") == {"sample_accuracy": pytest.approx(0.874)}
    assert paper.published("coloring12") == {}


def test_votes_are_not_compared_with_the_paper():
    for problem in ("nqueens8", "nqueens10", "sudoku", "coloring8", "sudoku_uncond"):
        for model in ("gram", "trm", "hrm", "looped"):
            assert "vote_accuracy" not in paper.published(problem, model)
    metrics = {"sample_accuracy": 0.9, "vote_accuracy": 1.0}
    numbers = {row.label: row.paper for row in result_rows(metrics, "nqueens8", "gram", all_inputs=True)}
    assert numbers == {"Accuracy, all samples": "0.997", "Accuracy, most frequent sample": ""}


def test_a_failed_report_leaves_the_old_one(page, tmp_path):
    before = page()
    with pytest.raises(FileNotFoundError):
        page(sections=[Section("gone", "", tmp_path / "gone.png")])
    assert (tmp_path / "report.html").read_text() == before
