"""The way through the notebooks: kept in order, measured, linked; and the index that shows it."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from synthetic import comparison_record, diagnosis_record, results

from warp_nb.config import WarpConfig
from warp_nb.notebook.numbers import format_number
from warp_nb.report import guide
from warp_nb.report.catalogue import EXPERIMENTS
from warp_nb.report.index_page import index
from warp_nb.report.page import rendered

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
INDEX = FOLDER / "index.ipynb"
COMMITTED = sorted(path for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
ABOUT = {"sentence": "Что будет?", "needs": "CPU"}


def write(path: Path, *sources: str, **about: object) -> None:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new_markdown_cell(f"# Тетрадь *{path.stem}*, `lr`\n\n# Вторая"), *map(new_code_cell, sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel, "warp_nb": about}), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("index", "diagnosis", "exp5", "exp1", "lessons/lesson2", "lessons/lesson1"):
        write(tmp_path / f"{name}.ipynb", "x = 1", **ABOUT)
    return tmp_path


def said(path: Path) -> str:
    """All Markdown of a notebook, outputs among it."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [o.data.get("text/markdown", "") for c in cells for o in c.get("outputs", []) if "data" in o]
    return "\n".join([*(cell.source for cell in cells if cell.cell_type == "markdown"), *outputs])


def anchors(path: Path) -> set[str]:
    """What JupyterLab calls the headings of a notebook."""
    return {heading.strip().replace(" ", "-") for heading in re.findall(r"^#+ +(.+)$", said(path), re.MULTILINE)}


def test_lessons_come_first_then_experiments_then_the_diagnosis(folder: Path) -> None:
    found = guide.steps(folder)
    assert [row.path for row in found] == [
        "lessons/lesson1.ipynb",
        "lessons/lesson2.ipynb",
        "exp1.ipynb",
        "exp5.ipynb",
        "diagnosis.ipynb",
    ]
    assert found[0] == ("lessons/lesson1.ipynb", "Тетрадь lesson1, lr", "Что будет?", "не измерено", "CPU")
    assert guide.steps(folder / "nowhere") == []


def test_all_but_the_long_one_are_run_and_the_index_last(folder: Path) -> None:
    listed = [path.relative_to(folder).as_posix() for path in guide.chosen([], folder)]
    assert listed == ["lessons/lesson1.ipynb", "lessons/lesson2.ipynb", "exp1.ipynb", "diagnosis.ipynb", "index.ipynb"]
    assert guide.chosen([folder / "index.ipynb", folder / "exp5.ipynb"], folder) == [
        folder / "exp5.ipynb",
        folder / "index.ipynb",
    ]


@pytest.mark.parametrize(
    ("seconds", "cores", "text"),
    [(17.4, 2, "около 17 с на 2 ядрах"), (95, 8, "около 1,6 мин на 8 ядрах"), (1, 21, "около 1 с на 21 ядре")],
)
def test_a_duration_says_on_how_many_cores(seconds: float, cores: int, text: str) -> None:
    assert guide.about_duration(seconds, cores) == text


def test_the_way_is_escaped() -> None:
    text = rendered("way.html.j2", steps=[guide.Step('a"b.ipynb', "<b>", "<script>", "&", "x")])
    assert 'href="a&#34;b.ipynb">&lt;b&gt;</a>' in text
    assert "<script>" not in text and "<td>&amp;</td>" in text


def test_a_folder_without_notebooks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "README" in guide.way().data and "<table" not in guide.way().data


@pytest.mark.slow
def test_a_notebook_is_run_in_place_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, index = (tmp_path / f"{name}.ipynb" for name in ("good", "bad", "index"))
    progress = "import pathlib, sys\nprint('\\r50%|##\\r      \\r', end='', file=sys.stderr)\nprint(pathlib.Path.cwd())"
    write(good, progress, "1 + 1", seconds=1e6, cores=64, **ABOUT)
    write(bad, "raise ValueError('planted')", **ABOUT)
    write(index, "2 + 2")
    before = bad.read_bytes()
    assert guide.main([str(good), str(bad), "--folder", str(tmp_path)]) == 1
    assert "bad.ipynb: ValueError: planted" in capsys.readouterr().err
    assert bad.read_bytes() == before and not list(tmp_path.glob(".*"))
    text = good.read_text(encoding="utf-8")
    notebook = json.loads(text)
    about, (_, first, second) = notebook["metadata"]["warp_nb"], notebook["cells"]
    assert text == json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    assert {key: about[key] for key in ABOUT} == ABOUT and about["cores"] < 64 and 0 < about["seconds"] < 300
    assert [output["name"] for output in first["outputs"]] == ["stdout"] and "execution" not in first["metadata"]
    assert second["outputs"][0]["data"]["text/plain"] == ["2"]
    ran = nbformat.read(index, as_version=4)
    assert ran.cells[1].outputs[0].data["text/plain"] == "4" and "seconds" not in ran.metadata.get("warp_nb", {})


def test_a_notebook_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        guide.main([str(tmp_path / "exp9.ipynb"), "--folder", str(tmp_path)])
    assert stopped.value.code == 2


def test_every_committed_notebook_stands_on_the_way_with_its_sentence() -> None:
    found = guide.steps(FOLDER)
    assert {FOLDER / row.path for row in found} == set(COMMITTED) - {INDEX}
    for row in found:
        assert row.title and row.needs and re.search(r"[?.]$", row.sentence), row.path


def test_the_committed_index_shows_the_way_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    shown = [output.data for cell in nbformat.read(INDEX, as_version=4).cells for output in cell.get("outputs", [])]
    assert guide.way().data in [data.get("text/html") for data in shown], "make notebooks"
    assert guide.notation().data in [data.get("text/markdown") for data in shown], "make notebooks"


@pytest.mark.parametrize("place", ["reports", "reports/small"])
def test_links_of_the_reports_index_lead_to_the_notebooks(place: str) -> None:
    way = "" if place == "reports" else "../"
    found = results() | {"exp5": comparison_record(), "diagnosis": diagnosis_record()}
    shown = [one for one in EXPERIMENTS if one.reported]
    text = index("x", shown, found, steps=guide.steps(FOLDER), notebooks=f"{way}../notebooks/", shared=way)
    section = text.partition("<h2>Тетради</h2>")[2].partition("</table>")[0]
    links = [unescape(link) for link in re.findall(r'href="([^"]+)"', section)]
    assert {(ROOT / place / link).resolve() for link in links} == set(COMMITTED) - {INDEX}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_notebook_says_in_two_english_sentences_what_it_is(path: Path) -> None:
    """Below its title."""
    cell = nbformat.read(path, as_version=4).cells[0].source
    _, english, *_ = cell[cell.index("# ") :].split("\n\n")  # a badge may stand above the title
    words = english.removeprefix("**In English.** ")
    assert words != english
    assert len(re.findall(r"[.?](?= |$)", words)) == 2 and words.endswith(".") and len(words) > 100
    assert not re.search("[а-яё]", words, re.IGNORECASE)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", said(path)):
        if re.match(r"https?:|attachment:", target):
            continue
        place, _, heading = unquote(target).partition("#")
        file = (path.parent / place).resolve() if place else path
        assert file.exists(), target
        assert not heading or heading in anchors(file), target


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_link_of_a_term_lands_at_the_term(path: Path) -> None:
    """Only a link to the glossary as a whole leads to its top."""
    named = re.findall(r"\[([^\]]+)\]\([^)\s]*#Словарь\)", said(path))
    assert [name for name in named if not name.lower().startswith("словар")] == []


def test_the_table_of_notation_reads_our_defaults() -> None:
    head, _, *rows = guide.notation().data.splitlines()
    assert {row.count(" | ") for row in rows} == {head.count(" | ")}
    config, shown = WarpConfig(), {row.split(" | ")[1].strip("`"): row.split(" | ")[5].strip("| ") for row in rows}
    for name in ("I", "M", "T", "lr", "warmup_steps", "beta", "mu", "eta", "batch_size", "temperature"):
        assert shown[name] == format_number(getattr(config, name))


def test_the_glossary_and_the_algorithm_are_whole() -> None:
    text = said(INDEX)
    assert {"Словарь", "Обозначения"} <= anchors(INDEX)
    algorithm = text.partition("## Алгоритм 1")[2].partition("\n## ")[0]
    assert re.findall(r"^(\d+)\. ", algorithm, re.MULTILINE) == [str(line) for line in range(1, 15)]
    assert {len(found[1]) // 12 for found in re.finditer(r"^\d+\. ((?:&emsp;)*)", algorithm, re.MULTILINE)} == {
        0,
        1,
        2,
        3,
    }
    terms = re.findall(r"^#### (.+)\n\n\*(.+?)\* — (.+)\.$", text.partition("## Словарь")[2], re.MULTILINE)
    names = [name for name, _, _ in terms]
    assert len(names) == len(set(names)) and all(english and meaning for _, english, meaning in terms)
    assert len(names) == text.count("\n#### ") > 30
    for name in ("политика", "награда", "якорь", "KL", "EMA", "SLERP", "LITI", "маска", "сид", "фронт", "прогрев"):
        assert name in names
