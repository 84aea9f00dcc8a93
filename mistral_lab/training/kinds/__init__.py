"""The kinds of text the bundled models learn, a file each. `write(scribe)` gives a document and the name in it."""

from . import arithmetic, chinese, english, french, json_records, python_code

KINDS = {
    "english": english.write,
    "french": french.write,
    "chinese": chinese.write,
    "python": python_code.write,
    "arithmetic": arithmetic.write,
    "json": json_records.write,
}
