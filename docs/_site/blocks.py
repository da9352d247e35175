"""Which code blocks of a page are run, and how that is said to the plugin that runs them (markdown-exec).

Every block marked python, console or sh is run when the site is built, and what it prints is shown below it. One that
cannot be run here says so to its reader, in its title, and to this file, by run="no".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

RUN = {"python": "python", "console": "bash", "sh": "bash"}  # as marked -> as run
NOT_RUN = "Not run here"  # how the title of a block that is not run begins
FENCE = re.compile(r'^```(?P<language>\w*)(?P<options>(?: +[\w-]+="[^"]*")*)[ ]*\n(?P<code>.*?)^```[ ]*$', re.M | re.S)
OPTION = re.compile(r'([\w-]+)="([^"]*)"')
DRAWS = re.compile(r"\bplot_\w+\(|\bplt\.")
FIGURES = '```python exec="on" html="on" session="{session}"\nfrom figures import drawn\nprint(drawn({code!r}))\n```\n'


class Block(NamedTuple):
    """A fenced block as its page has it."""

    language: str
    options: dict[str, str]
    code: str

    @property
    def is_run(self) -> bool:
        """Whether it is run when the site is built."""
        return self.language in RUN and self.options.get("run") != "no"


def blocks_of(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for match in FENCE.finditer(page):
        yield Block(match["language"], dict(OPTION.findall(match["options"])), match["code"])


def faults_of(page: str) -> Iterator[str]:
    """What a page's blocks do not say, a line each: a block that is not run tells its reader."""
    if page.count("\n```") + page.startswith("```") != 2 * len(list(blocks_of(page))):
        yield 'a fence that is not closed, or has options that are not key="value"'
    for language, options, code in blocks_of(page):
        if not language:
            yield f"a block without a language: {code.splitlines()[0] if code else ''}"
        if options.get("run", "no") != "no" or ("run" in options and language not in RUN):
            yield f"run={options['run']!r} of a {language} block"
        if ("run" in options) != options.get("title", "").startswith(NOT_RUN):
            yield f'a block with run="no" and a title that begins with {NOT_RUN!r}, or neither: {code.splitlines()[0]}'


def prepared(page: str, session: str, folder: str) -> str:
    """The page with options for markdown-exec on every block that is run: one session a page, in the folder.

    A block with source="none" is not shown, and what it prints is Markdown.
    """

    def written(match: re.Match[str]) -> str:
        language, options = match["language"], dict(OPTION.findall(match["options"]))
        if language not in RUN:
            return match[0]
        if options.pop("run", "") == "no":
            return f"```bash{_options(options)}\n{match['code']}```"
        hidden = options.pop("source", "") == "none"
        shown = {} if hidden else {"source": "block", "result": "text"}
        run = {"exec": "on", **shown, "session": session, "workdir": folder, **options}
        block = f"```{RUN[language]}{_options(run)}\n{match['code']}```"
        if language == "python" and DRAWS.search(match["code"]):
            block += "\n\n" + FIGURES.format(session=session, code=match["code"])
        return block

    return FENCE.sub(written, page)


def _options(options: dict[str, str]) -> str:
    return "".join(f' {key}="{value}"' for key, value in options.items())
