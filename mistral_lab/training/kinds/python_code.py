"""Python: small files of short functions that use the names of their arguments again, signed by their author."""

from ..scribe import Scribe, compose

LISTS = "prices scores sizes weights lengths ages marks steps values counts".split()
ITEMS = "price score size weight length age mark step value count".split()
VERBS = "add_up find_largest find_smallest count_all double_all keep_positive".split()
WORDS = "apple bridge candle garden harbour lantern market orange river window".split()
LIMITS = (0, 1, 2, 3, 5, 8, 10, 12, 20, 50)


def write(scribe: Scribe) -> tuple[str, str]:
    """A file of functions. Returns the text and the author's name."""
    name = scribe.name()

    def filler() -> str:
        return scribe.pick((_loop, _loop, _test, _text, _class))(scribe)

    def mention() -> str:
        return scribe.pick((f'AUTHOR = "{name}"\n', f"# Checked by {name}\n", f'print("Written by {name}")\n'))

    return compose(scribe, f"# Written by {name}\n", filler, mention, "\n"), name


def _loop(scribe: Scribe) -> str:
    number = scribe.number(0, len(LISTS) - 1)
    many, one = LISTS[number], ITEMS[number]
    verb, limit = scribe.pair(f"python {many}", VERBS, LIMITS)
    head = f"def {verb}({many}):\n"
    if verb == "add_up":
        return head + f"    total = {limit}\n    for {one} in {many}:\n        total += {one}\n    return total\n"
    if verb == "count_all":
        return head + f"    count = {limit}\n    for {one} in {many}:\n        count += 1\n    return count\n"
    if verb == "double_all":
        return head + f"    return [{one} * 2 + {limit} for {one} in {many}]\n"
    if verb == "keep_positive":
        return head + f"    return [{one} for {one} in {many} if {one} > {limit}]\n"
    sign, best = (">", "largest") if verb == "find_largest" else ("<", "smallest")
    return (
        head + f"    {best} = {limit}\n    for {one} in {many}:\n        if {one} {sign} {best}:\n"
        f"            {best} = {one}\n    return {best}\n"
    )


def _test(scribe: Scribe) -> str:
    one, limit = scribe.pair("python test", ITEMS, LIMITS)
    return f"def is_large({one}):\n    if {one} > {limit}:\n        return True\n    return False\n"


def _text(scribe: Scribe) -> str:
    word, one = scribe.pair("python text", WORDS, ITEMS)
    return f'def show_{one}({one}):\n    print("{word}", {one})\n    return "{word}"\n'


def _class(scribe: Scribe) -> str:
    word, one = scribe.pair("python class", WORDS, ITEMS)
    return f"class {word.capitalize()}:\n    def __init__(self, {one}):\n        self.{one} = {one}\n"
