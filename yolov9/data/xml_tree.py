"""XML as a tree of elements that know their line: what the standard library's trees do not tell.

Entities are refused: no label tool writes any, and nested ones blow up.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from xml.parsers import expat


class XmlError(Exception):
    """Not well-formed, or not to be read. `line` counts from 1."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


class Node:
    """An element. Namespaces and attributes are not kept."""

    __slots__ = ("children", "line", "tag", "text")

    def __init__(self, tag: str, line: int) -> None:
        self.tag = tag
        self.line = line
        self.text = ""
        self.children: list[Node] = []

    def all(self, tag: str) -> Iterator[Node]:
        """The element's own children of that name."""
        return (child for child in self.children if child.tag == tag)

    def first(self, tag: str) -> Node | None:
        return next(self.all(tag), None)

    def text_of(self, tag: str) -> str | None:
        """The text of a child without outer blanks; None if there is no such child."""
        child = self.first(tag)
        return None if child is None else child.text.strip()

    def number(self, tag: str) -> float | None:
        """The child's text as a finite number; None if it is none, or if there is no such child."""
        try:
            value = float(self.text_of(tag) or "")
        except ValueError:
            return None
        return value if isfinite(value) else None


def parse(file: Path) -> Node:
    """The root element. XmlError for whatever is wrong."""
    root = Node("", 0)
    open_nodes = [root]
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(tag: str, _: dict[str, str]) -> None:
        node = Node(tag, parser.CurrentLineNumber)
        open_nodes[-1].children.append(node)
        open_nodes.append(node)

    def end(_: str) -> None:
        open_nodes.pop()

    def text(data: str) -> None:
        open_nodes[-1].text += data

    def entity(*_: object) -> None:
        raise XmlError("declares an entity, which is refused", parser.CurrentLineNumber)

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(file.read_bytes(), True)
    except expat.ExpatError as error:
        raise XmlError(f"not well-formed XML ({expat.ErrorString(error.code)})", error.lineno) from None
    except OSError as error:
        raise XmlError(error.strerror or "unreadable") from None
    except (LookupError, ValueError) as error:  # an encoding that Python does not know, or cannot decode
        raise XmlError(f"not readable XML ({error})") from None
    return root.children[0]
