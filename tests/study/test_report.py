"""The report page, opened in a browser: what it shows is what was measured, and it runs nothing that a file says."""

import base64
import gzip
import html
import json
import re

import pytest
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.study.bd_rate import bd_rate
from aeic_lightning.study.claims import Answer, Claim, Needs, answers_by_set
from aeic_lightning.study.report.page import config_differences, write_report
from aeic_lightning.study.report.sections import Pictures, comparison
from aeic_lightning.study.results import Result, read_results, summary_rows, write_results
from aeic_lightning.study.study import Study, group, image_sets
from aeic_lightning.study.views import image_set_words
from tests.study.made_study import HOSTILE, IMAGES, LAMBDAS, made_study, measure

CLAIMS = [
    Claim("L_enc saves bits", {"depth": 1, "arm": "enc"}, {"depth": 1, "arm": "none"}, "lpips_lite0"),
    Claim("No distillation saves bits", {"depth": 1, "arm": "none"}, {"role": "teacher"}, "psnr"),
    Claim("Nobody measured this", {"arm": "nothing"}, {"role": "teacher"}, "psnr"),
]


@pytest.fixture(scope="module")
def study():
    return made_study()


@pytest.fixture(scope="module")
def files(tmp_path_factory, study):
    """The study as a result file with pictures, configs and events, an anchor, and a classifier's accuracy file."""
    root = tmp_path_factory.mktemp("study")
    written = []
    for i, result in enumerate(study):
        folder = root / f"run{i}"
        folder.mkdir()
        note = "</script><script>window.hacked=2</script>" if i % 2 else "plain"
        model = {"class_path": "m.System", "init_args": {"loss": {"rate": result.labels["lambda"]}, "note": note}}
        trainer = {"default_root_dir": f"runs/{i}", "max_steps": 280}
        config = {"trainer": trainer, "out": f"runs/{i}/x", "model": model}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        pictures = {}
        for number, (image, (height, width)) in enumerate(IMAGES.items()):
            pictures[image] = folder / f"{number}.png"
            Image.new("RGB", (width, height), (i, 99, 20 * number)).save(pictures[image])
            Image.new("RGB", (width, height), (200, 0, 20 * number)).save(folder / f"{number}_original.png")
        if result.labels.get("arm") == "enc" and result.labels["seed"] == 0:
            with SummaryWriter(folder) as writer:
                for step in range(10, 60, 10):
                    for tap, scale in (("encoder/y", 1.0), ("encoder/z", 2.0), ("decoder/l_0", 0.5)):
                        writer.add_scalar(f"train/distill/{tap}", scale / step, step)
        written.append(Result(**vars(result) | {"folder": folder, "pictures": pictures}))
    anchors = []
    for target in (0.1, 0.2, 0.4):
        anchor = measure("jpeg", None, None, 0.02 / target, 0, 4.0, estimate=False)
        labels = {"codec": "jpeg", "target": target}
        anchors.append(Result(**vars(anchor) | {"name": f"jpeg {target}", "kind": "anchor", "labels": labels}))
    write_results(root / "study.json", written)
    write_results(root / "anchors.json", anchors)
    classified = []
    for quality in (1, 2, 3):
        images = [{"name": f"digit{i}", "bytes": 20 * quality, "bpp": 0.04 * quality, "top1": float(i < quality),
                   "psnr": 15.0 + quality} for i in range(4)]  # fmt: skip
        labels = {"arm": "step2", "quality": quality, "reads": "y_hat"}
        classified.append(Result(f"step2_q{quality}", "run", labels, summary_rows(images, ["bytes"]), images=images))
    write_results(root / "accuracy.json", classified)
    return root


@pytest.fixture(scope="module")
def report(files):
    """The page of all of it."""
    out = files / "page.html"
    paths = [files / name for name in ("study.json", "anchors.json", "accuracy.json")]
    answered = answers_by_set(Study.read(paths), CLAIMS, resamples=20, needs=Needs(images=2))
    told = {"arms": {"none": "no distillation", "enc": f"plus L_enc {HOSTILE}", "absent": "of no result"}}
    told["images"] = {frozenset(IMAGES): "pictures that were made up"}
    write_report(paths, out, answered=answered, resamples=20, command=f"report {HOSTILE}", **told)
    return out


# ---------------------------------------------------------------------- in the browser


@pytest.fixture(scope="module")
def desktop(report, open_page):
    """The page on a desktop, its parts unfolded, and what went wrong there; shared, since it takes seconds to open."""
    page, problems = open_page(report)
    page.evaluate("for (const part of document.querySelectorAll('details.part')) part.open = true")
    page.wait_for_function("!document.querySelector('.plot:not(.js-plotly-plot)')")
    page.evaluate("new Promise((done) => setTimeout(done, 500))")  # the last toggle event
    return page, problems


def figures(report):
    """The plots of the page, as the page's script gets them."""
    packed = re.search(r'id="plots">(.*?)</script>', report.read_text(), re.S)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_every_plot_is_drawn_without_an_error_or_a_request(desktop, report):
    page, problems = desktop
    plots = page.locator(".plot").all()
    names = [plot.get_attribute("id") for plot in plots]
    assert sorted(names) == sorted(figures(report))
    for name, plot in zip(names, plots, strict=True):
        marks = plot.locator(".scatterlayer .point, .scatterlayer .js-line").count()
        assert marks > 0, name
    for start in ("answer", "set0-psnr", "set0-fid_lite0", "set0-bd0", "set0-cost-g_a", "set0-cost-encode",
                  "set1-psnr", "set1-top1", "taps-encoder", "taps-decoder", "paper0-lpips_alex"):  # fmt: skip
        assert start in names
    assert problems == []


def test_every_choice_draws_its_own_figure(desktop, report):
    page, problems = desktop
    variants = {name: plot["variants"] for name, plot in figures(report).items() if "variants" in plot}
    for select in page.locator("select[data-plots]").all():
        plots = select.get_attribute("data-plots").split()
        for option in select.locator("option").all_inner_texts():
            select.select_option(option)
            for name in plots:
                given = variants[name].get(option)
                assert page.locator(f"#{name}").is_visible() == (given is not None)
                if given is not None:
                    drawn = page.evaluate("id => document.getElementById(id).data.map(t => t.y)", name)
                    assert drawn == [trace["y"] for trace in given["data"]], option
    assert problems == []


def test_the_slider_moves_and_pictures_can_be_chosen(desktop):
    page, problems = desktop
    page.locator(".compare .image").first.select_option("cat")
    stage = page.locator(".stage").first
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()

    def covered():
        left = stage.locator(".left-picture")
        right = float(
            re.search(r"inset\(0(?:px)? (?:calc\()?([\d.]+)", left.evaluate("e => getComputedStyle(e).clipPath"))[1]
        )
        divider = stage.locator(".divider").bounding_box()
        return right, divider["x"] + divider["width"] / 2 - box["x"]

    before = covered()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    after = covered()
    assert before[1] == pytest.approx(box["width"] / 2, abs=2)
    assert after[1] == pytest.approx(box["width"] / 4, abs=3)
    assert after[0] > before[0], "the left picture is cut further"
    stage.locator("input").press("End")
    assert covered()[1] == pytest.approx(box["width"], abs=2)

    right = page.locator(".compare .right").first
    sources = set()
    for i in range(3):
        right.select_option(index=i)
        sources.add(stage.locator(".right-picture").get_attribute("src"))
        assert stage.locator(".right-picture").evaluate("async e => (await e.decode(), e.naturalWidth)") == 40
    assert len(sources) == 3
    page.locator(".compare .image").first.select_option(index=0)
    assert stage.locator(".right-picture").evaluate("async e => (await e.decode(), e.naturalWidth)") == 24
    assert problems == []


def test_legend_scale_and_hover(desktop):
    page, problems = desktop
    button = page.locator(".legend button", has_text="depth 1 · arm enc").first
    button.click()
    hidden = """name => document.getElementById("set0-psnr").data
        .filter(trace => trace.legendgroup === name && trace.visible === false).length"""
    assert page.evaluate(hidden, "depth 1 · arm enc") == 2, "the mean and the single seeds"
    assert page.evaluate(hidden, "teacher · depth 2") == 0
    button.click()
    assert page.evaluate(hidden, "depth 1 · arm enc") == 0
    kind = "document.getElementById('set0-psnr')._fullLayout.xaxis.type"
    assert page.evaluate(kind) == "log"
    page.locator(".log-rate").first.uncheck()
    assert page.evaluate(kind) == "linear"

    index = "document.getElementById('set0-psnr').data.findIndex(t => t.name === 'depth 1 · arm enc')"
    page.evaluate(f"Plotly.Fx.hover('set0-psnr', [{{curveNumber: {index}, pointNumber: 2}}])")
    said = page.locator("#set0-psnr .hoverlayer").text_content()
    assert HOSTILE[:20] in said, "the run, in letters"
    assert "python -m aeic_lightning fit" in said
    assert problems == []


def test_a_phone_can_read_it(report, open_page):
    page, problems = open_page(report, phone=True)
    assert page.locator("details.part[open]").count() == 0, "what few ask for is folded"
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing sticks out to the side"
    for plot in page.locator(".plot").all():
        assert plot.bounding_box()["width"] <= 390
    assert page.evaluate("document.getElementById('set0-psnr').layout.dragmode") is False, "a finger scrolls the page"
    page.locator(".compare .image").first.select_option("cat")
    stage = page.locator(".stage").first
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.touchscreen.tap(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    divider = stage.locator(".divider").bounding_box()
    assert divider["x"] + 1 - box["x"] == pytest.approx(0.75 * box["width"], abs=3)
    assert problems == []


def test_what_files_say_is_text(desktop):
    page, problems = desktop
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x']").count() == 0
    assert page.locator(".origin summary", has_text=HOSTILE).count() == 1
    assert page.locator("footer", has_text=HOSTILE).count() == 1
    options = page.locator(".compare .image option").all_inner_texts()
    assert sorted(options) == sorted(IMAGES)
    assert "</script><script>window.hacked=2</script>" in page.locator(".configs").inner_text()
    assert problems == []


# ---------------------------------------------------------------------- what it says


def cells(text: str) -> list[list[str]]:
    """Rows of a page's tables as text."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.S)
    strip = re.compile(r"<[^>]+>")
    return [
        [html.unescape(strip.sub("", c)).strip() for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", r, re.S)]
        for r in rows
    ]


def test_the_table_has_the_bd_rates(report, study):
    by_name = {c.name: c for c in group(study)}
    reference, test = by_name["teacher · depth 2"], by_name["depth 1 · arm none"]
    expected = bd_rate(reference.results, test.results, "psnr", resamples=20)
    assert expected.percent == pytest.approx(30, abs=3), "by construction"
    (row, *_) = [row for row in cells(report.read_text()) if row and row[0] == test.name and row[1].endswith("%")]
    assert row[1] == f"{expected.percent:+.1f} %"
    assert row[2] == f"{expected.interval[0]:+.1f} to {expected.interval[1]:+.1f}"
    assert row[4:7] == [f"{expected.by_interpolator[kind]:+.1f}" for kind in ("pchip", "akima", "cubic")]
    assert row[7:] == ["4", "2", "2", "bpp"]


def test_a_matrix_has_curves_by_metrics(report, study):
    rows = cells(report.read_text())
    head = next(i for i, row in enumerate(rows) if row[:2] == ["curve", "PSNR (dB)"])
    by_name = {c.name: c for c in group(study)}
    reference, test = by_name["teacher · depth 2"], by_name["depth 1 · arm none"]
    expected = bd_rate(reference.results, test.results, "psnr", resamples=20)
    (row,) = [row for row in rows[head + 1 : head + 6] if row[0] == test.name]
    assert row[1] == "{:+.1f} %{:+.1f} to {:+.1f}".format(expected.percent, *expected.interval)
    assert len(row) == len(rows[head])


def test_pictures_of_several_seeds_are_of_the_first(desktop):
    page, _ = desktop
    options = page.locator("#set0 .compare .right option").all_inner_texts()
    assert options[0] == "original"
    assert [option for option in options if "seed 1" in option] == []
    assert len([option for option in options if option.startswith("depth 1 · arm none")]) == len(LAMBDAS)


def test_arms_and_sets_of_images_are_explained(desktop):
    page, _ = desktop
    terms, said = (page.locator(f".about {tag}").all_inner_texts() for tag in ("dt", "dd"))
    assert terms == ["arm none", "arm enc", "set A"], "no arm that has no result"
    assert said[0] == "no distillation"
    assert said[1].startswith("plus L_enc <"), "words, not markup"
    assert said[2] == "pictures that were made up"


def test_a_sweep_says_what_its_sets_of_images_are(tmp_path, study):
    paths = [tmp_path / name for name in ("kodak_256x256.json", "validation.json")]
    for path, prefix in zip(paths, ("k", "v"), strict=True):
        images = [row | {"name": f"{prefix}{row['name']}"} for row in study[0].images]
        write_results(path, [Result(**vars(study[0]) | {"images": images})])
    said = {"kodak": "Kodak", "validation": "held out", "other": "not evaluated"}
    found = image_set_words({"images": said}, paths)
    assert found == {frozenset(f"k{n}" for n in IMAGES): "Kodak", frozenset(f"v{n}" for n in IMAGES): "held out"}


def test_the_slider_begins_with_the_teacher_and_a_student_of_its_rate(report, open_page):
    page, _ = open_page(report)
    page.evaluate("for (const part of document.querySelectorAll('details.part')) part.open = true")
    left, right = (page.locator(f"#set0 .compare .{side}").input_value() for side in ("left", "right"))
    assert left.startswith("teacher · ")
    assert right.startswith("depth ")

    def shown(side):
        return float(page.locator(f"#set0 .compare .{side}-said").inner_text().split(": ")[1].split(" ")[0])

    assert 0.03 <= shown("left") <= 0.06
    assert 0.8 <= shown("right") / shown("left") <= 1.25


def test_a_dark_screen_has_a_dark_page_and_paper_a_light_one(desktop):
    page, problems = desktop
    paper = """() => ["body", "th"].map((name) => getComputedStyle(document.querySelector(name)).backgroundColor)"""

    def inked(ink):
        """Plots are drawn again in a moment; the page's policy leaves no other way to wait."""
        seen = f"document.getElementById('set0-psnr').layout.font.color === '{ink}'"
        page.evaluate(
            f"new Promise((done) => {{ const look = () => {seen} ? done() : setTimeout(look, 20); look(); }})"
        )

    def comes_to(background, ink):
        inked(ink)
        assert page.evaluate(paper) == [background] * 2

    comes_to("rgb(255, 255, 255)", "#1c1f23")
    page.emulate_media(color_scheme="dark")
    comes_to("rgb(22, 25, 29)", "#e6e8eb")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    inked("#1c1f23")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    comes_to("rgb(22, 25, 29)", "#e6e8eb")
    page.emulate_media(color_scheme="light")
    comes_to("rgb(255, 255, 255)", "#1c1f23")
    assert problems == []


def test_refused_bd_rates_are_one_folded_line_with_the_reason(report):
    page = report.read_text()
    folded = re.findall(r'<details class="refused">(.*?)</details>', page, re.S)
    assert any("jpeg" in part and "less than the 50%" in part for part in map(html.unescape, folded))
    assert not any("refused" in cell for row in cells(page) for cell in row)


def test_the_first_screen_answers(desktop):
    page, _ = desktop
    answer = page.locator(".answer")
    figure = r"-1\d\.\d % bits at equal LPIPS.* \(95 % interval -.* %; 2 images, 2 seeds\)\."
    assert re.fullmatch(rf"L_enc saves bits: holds on set A\. {figure}", answer.locator(".lead").inner_text())
    box = answer.locator(".js-plotly-plot").bounding_box()
    assert box["y"] + box["height"] < page.viewport_size["height"], "question, answer and plot are the first screen"


def test_all_claims_stand_in_a_table(report):
    rows = [row for row in cells(report.read_text()) if row[0] in [claim.says for claim in CLAIMS]]
    assert [row[0] for row in rows] == [claim.says for claim in CLAIMS], "those without an answer too"
    assert rows[0][1].startswith("holds. -1")
    assert rows[1][1].startswith("does not hold. +")
    assert rows[2][1] == "not answered. No curve has arm=nothing."


def test_a_set_that_says_nothing_of_a_claim_keeps_the_letters_of_the_others(study, tmp_path):
    cut = [Result(**vars(r) | {"name": f"{r.name} cut", "images": r.images[:1]}) for r in study]
    called = [row | {"name": f"a {row['name']}"} for row in study[0].images]
    others = [Result(**vars(r) | {"name": f"{r.name} other", "images": called}) for r in study]
    write_results(tmp_path / "r.json", [*study, *cut, *others])
    sets = image_sets(read_results([tmp_path / "r.json"]))
    first, second = (Answer(claim, "holds", "Why.") for claim in CLAIMS[:2])
    answered = [(images.title, [said]) for images, said in zip(sets, (first, second, first), strict=True)]
    write_report([tmp_path / "r.json"], tmp_path / "r.html", answered=answered, resamples=0, max_images=0)
    (lead,) = re.findall(r'<p class="lead">(.*?)</p>', (tmp_path / "r.html").read_text(), re.S)
    assert re.findall(r"on set (\w)", lead) == ["A", "C"]
    assert f"{3 * len(study)} models" in (tmp_path / "r.html").read_text()


def test_a_page_of_six_screens(report, open_page):
    page, problems = open_page(report)
    assert page.locator("#set0").evaluate("e => e.tagName") == "SECTION", "one set of images is open"
    assert page.locator("#set1").evaluate("e => e.open") is False, "others are folded"
    assert page.evaluate("document.documentElement.scrollHeight") < 6 * page.viewport_size["height"]
    page.locator("nav a[href='#set1-curves']").click()
    page.wait_for_selector("#set1-top1.js-plotly-plot", timeout=10_000)
    assert page.locator("#set1-top1").is_visible(), "a link to what is folded opens it"
    assert problems == []


def test_points_are_means_over_seeds(report, study):
    page = report.read_text()
    lines = {trace["name"]: trace for trace in figures(report)["set0-psnr"]["data"] if "lines" in trace["mode"]}
    pair = [r for r in study if r.labels.get("arm") == "none" and r.labels["depth"] == 1 and r.labels["lambda"] == 4.0]
    line = lines["depth 1 · arm none"]
    assert line["x"][0] == pytest.approx(sum(r.value("bpp") for r in pair) / 2)
    assert line["y"][0] == pytest.approx(sum(r.value("psnr") for r in pair) / 2)
    assert line["x"] == sorted(line["x"])
    assert "2 images, 2 seeds" in page
    assert "45 patches" in page


def test_plots_over_the_encoders_cost_name_arms_as_arms(report):
    plots = figures(report)["set0-cost-g_a"]["variants"].values()
    assert {line["name"] for plot in plots for line in plot["data"]} == {"teacher", "arm none", "arm enc"}


def test_runs_of_a_classifier_make_a_curve(report):
    (line,) = figures(report)["set1-top1"]["data"]
    assert line["x"] == pytest.approx([0.04, 0.08, 0.12])
    assert line["y"] == pytest.approx([0.25, 0.5, 0.75])


def test_the_page_is_whole_and_fits(report):
    page = report.read_text()
    assert len(page) < 4e6
    assert not re.search(r'(?:src|href)="(?!data:|#)', page.split("<script>")[0])
    assert "Embedded as the PNG files" in page


def test_fewer_images_are_shown_where_not_all_fit(files, tmp_path, monkeypatch):
    def shown(budget):
        monkeypatch.setattr("aeic_lightning.study.report.page.PICTURE_BUDGET", budget)
        write_report([files / "study.json"], tmp_path / "page.html", resamples=0)
        found = re.search(r"(\d) of 2 images that the runs wrote", (tmp_path / "page.html").read_text())
        return int(found[1]) if found else 0

    pictures = Pictures(10**6)
    comparison(Study.read([files / "study.json"]).sets[0], pictures, 1)
    one = sum(map(len, pictures.embed()))
    assert [shown(budget) for budget in (10**6, one, 100)] == [2, 1, 0]


# ---------------------------------------------------------------------- configs, taps, pictures


def test_only_differing_settings_are_listed(files):
    keys, rows = config_differences(read_results([files / "study.json"])[:3])
    assert keys == ["model.init_args.loss.rate", "model.init_args.note"]
    assert [row for _, row in rows] == [
        ["0.5", "plain"],
        ["0.5", "</script><script>window.hacked=2</script>"],
        ["1.0", "plain"],
    ]


# ---------------------------------------------------------------------- metrics without a value


def test_no_axis_of_a_metric_that_is_refused_or_constant(study, open_page, tmp_path):
    """Refused in every result: named once, in no plot or column. The same value everywhere: an axis of its range."""
    made = []
    for r in study:
        rows = [row | {"same_class_lite2": 0.0} for row in r.images]
        refused = {"fid_lite0": {"value": None, "patches": 3, "refused": "3 patches, below min_patches=400"}}
        folder = tmp_path / f"run{len(made)}"
        if r.labels.get("arm") == "enc":
            with SummaryWriter(folder) as writer:
                writer.add_scalar(f"train/distill/{'encoder' if len(made) % 2 else 'decoder'}/y", 1.0, 1)
        fields = {"images": rows, "metrics": summary_rows(rows, ("bytes",)), "set_metrics": refused, "folder": folder}
        made.append(Result(**vars(r) | fields))
    write_results(tmp_path / "r.json", made)
    write_report([tmp_path / "r.json"], tmp_path / "r.html", resamples=0, max_images=0)
    text = (tmp_path / "r.html").read_text()
    assert "Refused in every result: fid_lite0 (3 patches, below min_patches=400)." in text
    assert "fid_lite0 ↓" not in text
    page, problems = open_page(tmp_path / "r.html")
    page.evaluate("for (const part of document.querySelectorAll('details.part')) part.open = true")
    page.wait_for_function("!document.querySelector('.plot:not(.js-plotly-plot)')")
    axis = "id => document.getElementById(id)._fullLayout.yaxis"
    page.locator("#set0-cost select").select_option("same top-1 class as the original, EfficientNet-Lite2, at lambda 1")
    for plot in ("set0-same_class_lite2", "set0-cost-encode"):
        low, high = page.evaluate(f"id => ({axis})(id).range", plot)
        assert -0.05 < low < high < 1.05, plot
        assert page.evaluate(f"id => ({axis})(id).tickformat", plot) == ".0%"
    page.locator("#taps select").select_option(index=0)
    shown = [page.evaluate(f"id => ({axis})(id).visible", f"taps-{side}") for side in ("encoder", "decoder")]
    assert sorted(shown) == [False, True], "the side that the run has no taps of"
    assert page.get_by_text("nothing to show here").count() == 1
    assert problems == []


# ---------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "-o", "page.html"], "nowhere"),
        (["study.json", "-o", "page.pdf"], "name a file that ends in .html"),
        (["study.json", "-o", "page.html", "--reference", "role=nobody"], "--reference role=nobody: no curve"),
        (["study.json", "-o", "page.html", "--resamples", "1"], "--resamples"),
        (["broken.json", "-o", "page.html"], "is no readable picture"),
    ],
)
def test_bad_input_is_one_line(files, tmp_path, monkeypatch, capsys, words, message):
    (files / "broken.png").write_bytes(b"no picture")
    one = Result(
        **vars(read_results([files / "study.json"])[0]) | {"folder": None, "pictures": {"cat": files / "broken.png"}}
    )
    write_results(files / "broken.json", [one])
    Image.new("RGB", (8, 8)).save(files / "broken_original.png")
    monkeypatch.chdir(files)
    words = [str(tmp_path / word) if word.startswith("page.") else word for word in words]
    assert main(["report", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_broken_picture_is_found_before_the_work(files, tmp_path, monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("no plot and no interval before the pictures are known to be readable")

    monkeypatch.setattr("aeic_lightning.study.report.plots.rate_curves", work)
    monkeypatch.setattr("aeic_lightning.study.study.bd_rate", work)
    (files / "late.png").write_bytes(b"no picture")
    first, *rest = read_results([files / "study.json"])
    pictures = first.pictures | {list(first.pictures)[-1]: files / "late.png"}
    write_results(files / "late.json", [Result(**vars(first) | {"folder": None, "pictures": pictures}), *rest])
    with pytest.raises(UserError, match="is no readable picture"):
        write_report([files / "late.json"], tmp_path / "page.html")
