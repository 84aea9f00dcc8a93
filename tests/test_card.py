"""The model card, measured on few documents: complete, and every table whole."""

import json
import re

from mistral_lab.training import card
from mistral_lab.training.__main__ import BUNDLED


def test_a_small_card_is_complete(monkeypatch):
    for name, count in (("DOCUMENTS", 12), ("RECALL_DOCUMENTS", 12), ("SUMS", 3), ("BASELINE_DOCUMENTS", 30)):
        monkeypatch.setattr(card, name, count)
    runs = json.loads((BUNDLED / "runs.json").read_text(encoding="utf-8"))
    text = card.render(card.measure(BUNDLED), runs)
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    shipped = (BUNDLED / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^#.*", text, re.MULTILINE) == re.findall(r"^#.*", shipped, re.MULTILINE)
    assert "{" not in re.sub(r'".*"', "", text)  # no placeholder is left
