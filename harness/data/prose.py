"""From a docstring to paragraphs of plain English: code, tables, directives and signatures out, sentences kept.

The rules are simple and lose some good text; what is left reads as English. Any change of what they, or `extract`, keep
must raise `RULES`, which is part of the cache key of the corpus. Worker processes load this module, so it imports only
the standard library.
"""

from __future__ import annotations

import inspect
import re

RULES = 5

_UNDERLINE = re.compile(r"^\s*([=\-~^\"#*+`_])\1{2,}\s*$")
_TABLE = re.compile(r"^[\s=+\-|:]{3,}$")
_DIRECTIVE = re.compile(r"^\s*\.\.\s+([\w:-]+?)::\s*(.*)$")
_COMMENT = re.compile(r"^\s*\.\.(\s|$)")
_SHELL = re.compile(r"^\s*(\$ |% |# |In \[\d*\]:|Out\[\d*\]:|C:\\)")
_SECTION = re.compile(
    r"^\s*(Args|Arguments|Params|Parameters?|Keyword Args|Keyword Arguments|Returns?|Raises|Yields?|Examples?|Notes?|"
    r"Attributes|Inputs?|Outputs?|Shape|Usage|References?|See also|Warnings?|Tips?)\s*:{0,2}\s*$",
    re.IGNORECASE,
)
_FIELD = re.compile(r"^\s*[:@](param|parameter|arg|argument|key|keyword|raises?|return|returns|yields?|var|ivar|cvar)\b"
                    r"[^:]*:\s*(.*)$")  # fmt: skip
_FIELD_DROPPED = re.compile(r"^\s*:(type|rtype|vartype|meta|copyright|license|author|date|version)\b[^:]*:")
_NUMPY_PARAMETER = re.compile(r"^\s*[*\\`'\w][\w\s,.*`'\\/\[\]-]{0,60}\s:(\s.*)?$")
_TYPED_PARAMETER = re.compile(r"^\s*[*`\\]*[\w.,`/* ]{1,60}?\s*\((?:[^()]|\([^()]*\))*\)\s*:\s*(.*)$")
_PLAIN_PARAMETER = re.compile(r"^\s+[*`\\]*[a-z_][\w.]*`*\s*:(?:\s+(.*))?$")
_BULLET = re.compile(r"^\s*(?:[-*+\u2022]|\(?\d{1,2}[.)]|\(?[a-z]\)|#\.)\s+(.*)$")
_LONE_NAME = re.compile(r"^\s*[*`\\]*[\w.\[\], |`]{1,40}$")

#: Directives whose text is prose; of every other directive the whole block goes.
_PROSE_DIRECTIVES = (
    "note warning tip important caution attention hint danger deprecated versionadded versionchanged admonition"
)
_DROPPED_SECTIONS = frozenset({"see also", "references", "reference", "methods", "bibliography"})

_ROLE = re.compile(r":[a-zA-Z][\w:+-]*:`[~!.]*([^`]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]*?)\s*<[^`>]*>`_{0,2}")
_MARKDOWN_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)")
_CITATION = re.compile(r"\s*\[[#\w.*-]{1,12}\]_")
_TICKS = re.compile(r"(`{1,3})([^`]+)\1_{0,2}")
_BOLD = re.compile(r"(\*{1,2})(?=[^\s*])([^*]+?)(?<=[^\s*])\1")
_SPACE = re.compile(r"\s+")

_FOLD = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "...",
    "\u00a0": " ", "\u2192": "->",
})  # fmt: skip

_PLAIN_WORD = re.compile(r"^[(\"']*[A-Za-z]+(?:['/-][A-Za-z]+)*(?:\([s]\))?[)\"']*[.,;:!?]*[)\"']*$")
_WORDS = (
    "the a an of to in is are be for and or with by if this that it on as from not at which can will when has have "
    "was were you we should may must its into than then all any each but no"
)
_FUNCTION_WORDS = frozenset(_WORDS.split())
_REFUSED = re.compile(r"https?:|www\.|[\\{}|<>~^@$]|>>>|::|==|__|\+\+|--|[=+]{2}|copyright|license", re.IGNORECASE)


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of English in `docstring`, each on one line, in order; possibly none."""
    found = []
    for block in _blocks(inspect.cleandoc(docstring).expandtabs().splitlines()):
        text = _plain(" ".join(block))
        if is_prose(text):
            found.append(text)
    return found


def is_prose(text: str) -> bool:
    """Whether `text` is ASCII English of five words or more, mostly plain ones, some of them function words."""
    if not text.isascii() or _REFUSED.search(text):
        return False
    words = text.split()
    if len(words) < 5 or not (text[0].isalpha() or text[0] in "\"'("):
        return False
    plain = sum(1 for word in words if _PLAIN_WORD.match(word))
    function = sum(1 for word in words if word.lower().strip(".,;:()") in _FUNCTION_WORDS)
    return plain >= 0.8 * len(words) and function >= 0.12 * len(words)


def skeleton(paragraph: str) -> str:
    """What two paragraphs share when one is a copy of the other with names and numbers changed.

    Words of lower-case letters stay; names (capitals inside the sentence, digits, underscores, dots) become one mark.
    """
    kept = []
    for position, word in enumerate(paragraph.split()):
        bare = word.strip("\"'().,;:!?")
        if position == 0:
            bare = bare[:1].lower() + bare[1:]
        kept.append(bare if bare.isalpha() and bare.islower() else "*")
    return " ".join(kept)


def _plain(text: str) -> str:
    """Inline markup of reStructuredText and Markdown removed, quotes folded, white space normalised."""
    text = text.translate(_FOLD)
    text = _ROLE.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = _MARKDOWN_LINK.sub(r"\1", text)
    text = _CITATION.sub("", text)
    text = _TICKS.sub(r"\2", text)
    text = _BOLD.sub(r"\2", text)
    text = _SPACE.sub(" ", text).strip()
    return text[:-2] + ":" if text.endswith("::") else text


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _blocks(lines: list[str]) -> list[list[str]]:
    """Runs of lines that may be prose. A line that is code, table, heading or signature ends the run it meets."""
    blocks: list[list[str]] = [[]]
    skip_deeper_than: int | None = None  # inside a literal block or a directive that is dropped
    fenced = doctest = dropped_section = False
    for number, line in enumerate(lines):
        stripped = line.strip()
        if stripped.startswith(("```", "~~~")):
            fenced = not fenced
            blocks.append([])
            continue
        if fenced:
            continue
        if not stripped:
            doctest = False
            blocks.append([])
            continue
        if skip_deeper_than is not None:
            if _indent(line) > skip_deeper_than:
                continue
            skip_deeper_than = None
        if doctest or stripped.startswith(">>>"):
            doctest = True
            blocks.append([])
            continue
        if _UNDERLINE.match(line):
            heading = blocks[-1].pop().strip().lower() if blocks[-1] else ""
            dropped_section = heading in _DROPPED_SECTIONS
            blocks.append([])
            continue
        if dropped_section:
            continue
        directive = _DIRECTIVE.match(line)
        if directive or _COMMENT.match(line):
            blocks.append([])
            if directive is None or directive.group(1) not in _PROSE_DIRECTIVES.split():
                skip_deeper_than = _indent(line)
            continue
        following = lines[number + 1] if number + 1 < len(lines) else ""
        text, fresh = _read_line(line, following, starts=not blocks[-1])
        if fresh:
            blocks.append([])
        if text:
            blocks[-1].append(text)
        if stripped.endswith("::"):
            skip_deeper_than = _indent(line)
            blocks.append([])
    return [block for block in blocks if block]


def _read_line(line: str, following: str, starts: bool) -> tuple[str, bool]:
    """The prose of one line (may be empty) and whether it begins a new block."""
    if _TABLE.match(line) or line.count("|") >= 2 or _SHELL.match(line):
        return "", True
    if _SECTION.match(line) or _FIELD_DROPPED.match(line):
        return "", True
    if field := _FIELD.match(line):
        return field.group(2), True
    if bullet := _BULLET.match(line):
        inner = "  " + bullet.group(1)
        typed = _TYPED_PARAMETER.match(inner) or _PLAIN_PARAMETER.match(inner)
        return (typed.group(1) or "" if typed else bullet.group(1)), True
    if typed := _TYPED_PARAMETER.match(line):
        return typed.group(1), True
    if _NUMPY_PARAMETER.match(line):
        return "", True
    if parameter := _PLAIN_PARAMETER.match(line):
        return parameter.group(1) or "", True
    # A name alone above an indented description: the type of a return value, an attribute.
    if starts and _LONE_NAME.match(line) and following.strip() and _indent(following) > _indent(line):
        return "", True
    return line.strip(), False
