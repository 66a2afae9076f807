"""Report pages as headless Chromium lays them out, on a wide screen and on a phone."""

import html
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from launch import report

REPOSITORY = pathlib.Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1400,900",
)  # fmt: skip
WIDTHS = (1280, 390)  # pixels

# Written to the end of a page: its findings go to the page around it, as an iframe may be narrower than any window.
_EXAMINE = """
<script>
addEventListener("load", () => {
  const found = [], box = element => element.getBoundingClientRect();
  const root = document.documentElement, cards = [...document.querySelectorAll(".card")];
  if (root.scrollWidth > innerWidth) found.push(`the page is ${root.scrollWidth} wide in ${innerWidth}`);
  for (const card of cards) {
    const name = card.querySelector("h2").textContent, outer = box(card), parts = [...card.children].map(box);
    const edges = [outer.top, ...parts.flatMap(part => [part.top, part.bottom]), outer.bottom];
    for (let i = 0; i < edges.length; i += 2) {
      const empty = edges[i + 1] - edges[i];
      if (empty > 60 && empty > outer.height / 4) found.push(`${name}: ${empty} of ${outer.height} are empty`);
    }
    if (innerWidth > 1000 && outer.width < 600 && !cards.some(c => c !== card && box(c).top === outer.top))
      found.push(`${name}: nothing beside it`);
    for (const svg of card.querySelectorAll("svg")) {
      const inner = box(svg), scroll = box(svg.closest(".scroll") || svg);
      if (inner.width < 100 || inner.height < 50) found.push(`${name}: a picture of ${inner.width} × ${inner.height}`);
      if (scroll.left < outer.left || scroll.right > outer.right || inner.bottom > outer.bottom)
        found.push(`${name}: the picture leaves its card`);
      if (innerWidth > 1000 && inner.right > outer.right) found.push(`${name}: the picture scrolls`);
      for (const text of svg.querySelectorAll("text")) {
        const label = box(text);
        if (label.left < inner.left - 1 || label.right > inner.right + 1 || label.top < inner.top - 1
            || label.bottom > inner.bottom + 1) found.push(`${name}: ${text.textContent} is cut`);
        if (parseFloat(getComputedStyle(text).fontSize) * inner.width / svg.viewBox.baseVal.width < 7)
          found.push(`${name}: ${text.textContent} is too small`);
      }
    }
  }
  parent.postMessage({width: innerWidth, pictures: document.querySelectorAll("svg").length, found}, "*");
});
</script>
"""
_FRAMES = """<!doctype html><pre></pre>
<script>addEventListener("message", e => document.querySelector("pre").append(JSON.stringify(e.data), "\\n"));</script>
"""


def examine(page, directory):
    """What Chromium finds at each width: dictionaries with the number of pictures, and complaints."""
    copy, frames = directory / "examined.html", directory / "frames.html"
    copy.write_text(page.read_text() + _EXAMINE)
    frames.write_text(
        _FRAMES
        + "".join(f'<iframe src="{copy.name}" style="width: {w}px; height: 800px; border: 0"></iframe>' for w in WIDTHS)
    )
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={directory / 'profile'}", "--dump-dom", frames.as_uri()]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    texts = re.search(r"<pre>(.*?)</pre>", dump, re.DOTALL)[1].splitlines()
    return {findings.pop("width"): findings for findings in map(json.loads, map(html.unescape, texts))}


def with_layers(summary, paths):
    """A summary of a network with other layers, of int4, int8 and bf16 in turn."""
    formats = (("int4", 4), ("int8", 8), ("bf16", 16))
    layers = [
        summary["layers"][0]
        | {
            "path": path,
            "format": formats[i % 3][0],
            "bits": formats[i % 3][1],
            "channels": 8 + i % 9,
            "kernel": [i % 4],
        }
        for i, path in enumerate(paths)
    ]
    decisions = [{"name": f"{path}.format", "options": ["int4", "int8", "bf16"]} for path in paths]
    return summary | {"layers": layers, "decisions": decisions}


def with_architecture(summary):
    """A summary of a network whose architecture was searched too."""
    layers = [layer | {"channels": 8} for layer in summary["layers"]]
    shares = {"bits": 1.2, "channels": -0.2, "kernels": 0.3, "depth": 0.01}
    return summary | {
        "decisions": [*summary["decisions"], {"name": "stage.width", "options": ["1", "2"]}],
        "genome": [*summary["genome"][:1] * len(layers), 1],
        "scores": [[0.0, -1.0, -2.0]] * len(layers) + [[0.0, 0.1]],
        "base": {"format": "int4", "cost": 1.0, "log_shares": shares, "layers": layers},
        "rank_correlations": {"channels": {"rho": -0.3, "layers": 60}, "kernels": {"rho": None, "layers": 2}},
    }


@pytest.fixture
def finished_run(tmp_path):
    """The directory of a finished FLIQS run with a baseline."""
    return shutil.copytree(REPOSITORY / "tests" / "golden" / "earlier_run", tmp_path / "run")


@pytest.fixture
def run_of_60_layers(finished_run):
    """As `finished_run`, with sixty layers with long paths, an architecture, and names that are no plain text."""
    paths = [
        f"encoder/layers_{i}/{path}"
        for i in range(12)
        for path in (
            "self_attention/query", "self_attention/value", "self_attention/attention_output_projection",
            "mlp/Dense_0", "mlp/Dense_1",
        )
    ]  # fmt: skip
    for directory in (finished_run, finished_run / "uniform-int4"):
        path = directory / "summary.json"
        path.write_text(json.dumps(with_architecture(with_layers(json.loads(path.read_text()), paths))))
    path = finished_run / "summary.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"name": "FLIQS <int_s> $x_1$ for $2 or less, of fifty letters"})
    )
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    (finished_run / "metrics.jsonl").write_text(
        "".join(json.dumps(line | {"policy": [[0.5, 0.3, 0.2]] * (len(paths) + 1)}) + "\n" for line in lines)
    )
    return finished_run


@pytest.fixture
def apq_experiment(tmp_path):
    """The directory of a finished APQ experiment."""
    directory = tmp_path / "apq"
    directory.mkdir()
    shutil.copy(REPOSITORY / "benchmarks" / "results" / "apq_digits.json", directory / "summary.json")
    return directory


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on PATH")
@pytest.mark.parametrize("directory", ["finished_run", "run_of_60_layers", "apq_experiment"])
def test_pages_are_whole_on_a_wide_screen_and_on_a_phone(directory, request, tmp_path):
    directory = request.getfixturevalue(directory)
    report.main([str(directory)])
    findings = examine(directory / "report.html", tmp_path)
    pictures = (directory / "report.html").read_text().count("<svg")
    assert findings == {width: {"pictures": pictures, "found": []} for width in WIDTHS}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on PATH")
def test_a_bad_page_is_found(finished_run, tmp_path):
    report.main([str(finished_run)])
    page = finished_run / "report.html"
    page.write_text(page.read_text().replace("</style>", ".card { min-height: 1900px; width: 1500px }</style>"))
    for width, findings in examine(page, tmp_path).items():
        assert any("the page is" in complaint for complaint in findings["found"]), width
        assert any("are empty" in complaint for complaint in findings["found"]), width
