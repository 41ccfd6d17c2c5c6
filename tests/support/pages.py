"""Reading HTML pages: their elements, text and references."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """All elements, the text, and what the elements refer to."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    @property
    def tags(self):
        return {tag for tag, _ in self.elements}

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def references(self):
        names = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
        return [value for _, attributes in self.elements for name, value in attributes.items() if name in names]


def assert_needs_no_other_file(text):
    """A page refers to nothing but itself, and to nothing in itself that is not there."""
    page = Page(text)
    assert page.references
    assert all(value.startswith(("data:", "#")) for value in page.references)
    assert all(inside.startswith("#") for inside in re.findall(r"url\(['\"]?([^)]*)\)", text))
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert "@import" not in text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    targets = {value[1:] for value in page.references if value.startswith("#")}
    assert targets | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert len(ids) == len(set(ids))
