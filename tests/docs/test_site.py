"""A small site, built as the large one is: code is run, faults of every kind fail the build, pages ask nothing outside.

`make docs` installs what builds it; without that these tests are skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="make docs installs it")
pytest.importorskip("material", reason="make docs installs it")
ROOT = Path(__file__).parents[2]
GOOD = r"""# Good

Formula $\mu = \frac{\alpha+1}{2\beta}$.

$$
Z = \sqrt{\pi/\beta}
$$

```python
x = 6 * 7
```

```python
print("the answer is", x)
```

```console
echo one | tr o 0
ls -d models
```

```sh run="no" title="Not run here: needs a cluster"
srun --nodes 8 touch was-run
```

```python source="none"
print("| a | b |\n|---|---|\n| 1 | 2 |")
```

```python
from matplotlib import pyplot as plt

plt.plot([1, 2])
plt.title("a line")
```
"""
BAD = {
    "raises": "```python\n1 / 0\n```\n",
    "command": "```console\nfalse | cat\necho later\n```\n",
    "link": "[gone](nowhere.md)\n",
    "anchor": "[gone](index.md#nowhere)\n",
    "unsaid": '```sh run="no"\nls\n```\n',
    "address": "[gone](https://nowhere)\n",
    "outside": '<script src="https://example.org/x.js"></script>\n',
    "figure": "```python\nfrom matplotlib import pyplot as plt\nplt.close()\n```\n",
}
SAID = {
    "raises": "ZeroDivisionError", "command": "unexpected code 1", "link": "'nowhere.md'", "anchor": "#nowhere",
    "unsaid": "title that begins", "address": "no address", "outside": "a request to outside",
    "figure": "no figure is open",
}  # fmt: skip


def build(folder: Path, pages: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The site of these pages, with the configuration of the real one but for its pages and its reference."""
    (folder / "docs").mkdir(parents=True)
    for name, text in pages.items():
        (folder / "docs" / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / "docs" / "style.css").write_text("", encoding="utf-8")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = config[: config.index("\nnav:\n") + 1]
    for old, new in {
        "docs_dir: docs": f"docs_dir: {folder / 'docs'}",
        "site_dir: out/site": f"site_dir: {folder / 'site'}",
        "docs/_site/hooks.py": str(ROOT / "docs" / "_site" / "hooks.py"),
    }.items():
        assert config.count(old) == 1
        config = config.replace(old, new)
    assert "strict: true" in config
    (folder / "mkdocs.yml").write_text(config, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(folder / "mkdocs.yml")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder, {"index": GOOD})
    assert done.returncode == 0, done.stderr
    assert not (folder / "was-run").exists()
    return (folder / "site" / "index.html").read_text(encoding="utf-8")


def words(html: str) -> str:
    return re.sub(r"<[^>]+>", "", html)


def test_output_is_shown_below_its_code(good: str) -> None:
    assert "the answer is 42" in words(good)
    assert "0ne" in words(good)
    results = [words(r).strip() for r in re.findall(r'<div class="result">(.*?)</div>\s*</div>', good, re.DOTALL)]
    assert results == ["the answer is 42", "0ne\nmodels"]  # and none for the block that printed nothing
    assert "<td>1</td>" in good
    assert "6 * 7" in words(good)
    assert '"| a | b |' not in words(good)


def test_what_is_not_run_is_shown_and_says_so(good: str) -> None:
    assert "Not run here: needs a cluster" in good
    assert "srun --nodes 8 touch was-run" in words(good)


def test_formulas_and_figures_are_in_the_page(good: str) -> None:
    assert good.count("<math ") == 2
    assert "<mfrac>" in good
    assert "<msqrt>" in good
    assert "arithmatex" not in good
    (image,) = re.findall(r'<img alt="([^"]*)" width="\d+" src="data:image/png;base64,[\w+/=]{1000,}"', good)
    assert "a line" in image


def test_nothing_is_asked_of_other_machines(good: str) -> None:
    loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="([^"]+)"|<link[^>]*href="([^"]+)"', good)
    for address in filter(None, (a or b for a, b in loaded)):
        assert not re.match(r"(https?:)?//", address), address


def test_every_fault_fails_the_build(tmp_path: Path) -> None:
    done = build(tmp_path, {"index": "# Index\n", **BAD})
    assert done.returncode != 0
    for name, said in SAID.items():
        assert said in done.stderr, name
    found = re.search(r"Aborted with (\d+) warnings", done.stdout + done.stderr)
    assert found is not None
    assert int(found[1]) >= len(BAD)
