"""English text that every CPython installation carries: the language reference, and docstrings.

Both domains repeat themselves (a fifth of the topics is a copy of another topic), which would leak
evaluation text into calibration. So only the first occurrence of a paragraph is kept.
"""

import ast
import importlib
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from tyr_jax.errors import UserError

# `builtin` alone is this mixture.
DOMAINS = {"topics": 3.0, "docstrings": 1.0}

# Pure-Python modules with much prose that exist in every supported Python; the order is the text's order.
MODULES = """
    _collections_abc _pyio argparse ast asyncio.base_events asyncio.events asyncio.locks
    asyncio.protocols asyncio.streams asyncio.tasks asyncio.transports base64 bdb bz2 cmd code codecs
    collections concurrent.futures._base concurrent.futures.process configparser contextlib datetime
    difflib email._policybase email.charset email.header email.headerregistry email.message email.policy
    enum fileinput fractions ftplib functools heapq http.client http.cookiejar http.cookies http.server
    imaplib importlib.abc importlib.metadata inspect ipaddress json logging logging.handlers lzma
    mailbox mimetypes optparse os pickle pickletools pkgutil platform poplib pydoc queue random re
    shutil site smtplib socket socketserver ssl statistics string subprocess tarfile tempfile textwrap
    threading timeit traceback typing unittest.case unittest.mock urllib.parse urllib.request uuid wave
    wsgiref.handlers xml.etree.ElementTree xml.sax.handler xml.sax.xmlreader xmlrpc.client xmlrpc.server
    zipfile
"""

# Shorter paragraphs ("For example:") recur in any prose, so repeating them leaks nothing.
REPEAT_LENGTH = 80


def builtin_documents(domain: str) -> Iterator[str]:
    """Documents of one of `DOMAINS`, always in the same order for one Python version.

    Raises:
        UserError: this Python was installed without them.
    """
    found = False
    for document in _without_repeats(_topics() if domain == "topics" else _docstrings()):
        found = True
        yield document
    if not found:
        raise UserError(
            f"this Python carries no text for 'builtin:{domain}'; name a text file or a hub dataset instead"
        )


def _topics() -> Iterator[str]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return
    yield from (topics[name] for name in sorted(topics))


def _docstrings() -> Iterator[str]:
    """One document per module. The sources are parsed, never imported, so none of their code is executed."""
    root = Path(sysconfig.get_path("stdlib"))
    for module in MODULES.split():
        stem = root.joinpath(*module.split("."))
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                yield "\n\n".join(_docstrings_of(path.read_bytes()))
                break


def _docstrings_of(source: bytes) -> Iterator[str]:
    """Docstrings of a module, its classes and its functions, in the order of the source."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(source))


def _without_repeats(documents: Iterable[str]) -> Iterator[str]:
    """Documents without paragraphs that occurred before. A document left empty is dropped."""
    seen: set[str] = set()
    for document in documents:
        kept = []
        for paragraph in document.split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) < REPEAT_LENGTH or words not in seen:
                kept.append(paragraph)
                seen.add(words)
        text = "\n\n".join(kept).strip()
        if text:
            yield text
