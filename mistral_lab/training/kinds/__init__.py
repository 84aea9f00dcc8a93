"""The kinds of text that the bundled models learn, one file each; `write(scribe)` gives a document and its name."""

from . import arithmetic, chinese, english, french, json_records, python_code

KINDS = {
    "english": english.write,
    "french": french.write,
    "chinese": chinese.write,
    "python": python_code.write,
    "arithmetic": arithmetic.write,
    "json": json_records.write,
}
