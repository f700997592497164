"""Reads a report as a browser would: its elements, its data and its pictures."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


class Page(HTMLParser):
    """A page: `tags` has the name and attributes of every element, `text` what is to be read, `scripts` by id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: dict[str | None, str] = {}
        self._raw: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = []

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.texts.append(data)
        else:
            self._raw.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            last = next(attributes for name, attributes in reversed(self.tags) if name == tag)
            self.scripts[last.get("id", tag)] = "".join(self._raw)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts["data"])

    @property
    def pictures(self) -> dict[str, np.ndarray]:
        """The pictures by name, (h, w, 3)."""
        return {
            name: np.asarray(Image.open(io.BytesIO(base64.b64decode(self.scripts[name]))).convert("RGB"))
            for name in self.picture_names
        }

    @property
    def picture_names(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if attributes.get("type") == "text/plain"]

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attributes[name] for found, attributes in self.tags if found == tag and attributes.get(name)]
