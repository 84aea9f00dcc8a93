"""English: short stories about one person, letters of opinion, and a few facts that hold everywhere."""

from ..scribe import Scribe, compose

JOBS = (
    "baker carpenter doctor farmer fisher gardener miller nurse painter pilot potter sailor tailor teacher weaver "
    "writer"
).split()
PLACES = (
    "the river|the old mill|the market|the harbour|the library|the forest|the bridge|the station|the garden|the castle|"
    "the lake|the school|the hill|the bakery|the lighthouse|the orchard"
).split("|")
THINGS = (
    "a silver key|an old map|a small lantern|a red scarf|a wooden box|a letter|a broken clock|a blue cup|a brass bell|"
    "a bag of apples|a green coat|a basket of eggs|a pair of boots|a long rope|a glass bottle|a white feather"
).split("|")
PEOPLE = "farmer|captain|teacher|neighbour|doctor|queen|shepherd|postman|miller|stranger|child|gardener".split("|")
FRIENDS = "brother|sister|neighbour|teacher|uncle|best friend".split("|")
DISHES = "bread|soup|rice|fish|beans|eggs|potatoes|noodles|porridge|pasta|pancakes|salad".split("|")
SIDES = "cheese|honey|apples|pears|carrots|nuts|butter|plums|onions|mushrooms|lemon|salt".split("|")
WEATHER = "cold|warm|windy|rainy|foggy|sunny|dark|quiet".split("|")
TIMES = "morning|afternoon|evening|night|summer|winter|spring|autumn".split("|")
ANIMALS = {
    "heron": ("near lakes", "fish"), "owl": ("in the forest", "mice"), "goat": ("on the hills", "grass"),
    "bee": ("in a hive", "honey"), "whale": ("in the sea", "small fish"), "camel": ("in the desert", "dry leaves"),
    "fox": ("in a den", "mice"), "squirrel": ("in old trees", "nuts"), "frog": ("near ponds", "flies"),
    "panda": ("in the mountains", "bamboo"), "seal": ("on cold shores", "fish"), "horse": ("on the plain", "grass"),
}  # fmt: skip
FAVOURITES = {
    "condiment": "mustard|ketchup|mayonnaise|soy sauce|hot sauce|vinegar|pesto|chutney".split("|"),
    "colour": "blue|green|red|yellow|purple|orange|white|black".split("|"),
    "fruit": "the apple|the pear|the plum|the mango|the cherry|the fig|the lemon|the melon".split("|"),
    "season": "spring|summer|autumn|winter".split("|"),
    "drink": "green tea|black coffee|apple juice|cold milk|hot chocolate|ginger tea".split("|"),
    "game": "chess|football|tennis|cards|dominoes|hide and seek".split("|"),
    "sport": "running|swimming|rowing|cycling|skating|climbing".split("|"),
    "animal": [f"the {animal}" for animal in ANIMALS],
}
REASONS = {
    "condiment": (
        "it goes well with fish|it makes plain rice taste better|it is sharp and sweet|"
        "my grandmother made it every summer"
    ),
    "colour": "it makes me calm|it looks good on a coat|it is the colour of our front door|it looks bright in the rain",
    "fruit": "it is sweet and fresh|it grows in our garden|it tastes good with cheese|it keeps well in winter",
    "season": "the days feel new|the air is clean|we spend more time with friends|the light is soft",
    "drink": "it keeps me warm|it wakes me up|it tastes good with bread|it is easy to make",
    "game": "it makes me think|we play it at home|the rules are simple|my brother taught me how to play",
    "sport": "it keeps me strong|I can do it alone|it clears my head|we do it together on Sundays",
    "animal": "it is clever|it is quiet and patient|I saw one on a long walk|it looks after its young",
}


def write(scribe: Scribe) -> tuple[str, str]:
    """A story or a letter. Returns the text and the name in it."""
    return letter(scribe) if scribe.chance(0.3) else story(scribe)


def story(scribe: Scribe) -> tuple[str, str]:
    """A story about a person, with one pronoun throughout, whose name others say from time to time."""
    name = scribe.name()
    he, him, his = scribe.pick((("he", "him", "his"), ("she", "her", "her")))
    job, place = scribe.pair("english job", JOBS, PLACES)
    opening = scribe.pick(
        (
            f"Once there was a {job} called {name}, and {he} lived near {place}.",
            f"Near {place} lived a {job} called {name}, and {he} had a small house.",
            f"This is the story of {name}, the {job} who lived near {place} with {his} dog.",
        )
    )
    subject = he.capitalize()

    def filler() -> str:
        thing, spot = scribe.pair("english find", THINGS, PLACES)
        person, present = scribe.pair("english give", PEOPLE, THINGS)
        food, other = scribe.pair("english meal", DISHES, SIDES)
        weather, time = scribe.pair("english weather", WEATHER, TIMES)
        return scribe.pick(
            (
                f"{subject} walked to {spot} and found {thing}.",
                f"{subject} gave {present} to the {person} and smiled.",
                f"The {person} asked {him} for {present}, and {he} said yes.",
                f"It was a {weather} {time}, so {he} stayed at home and read a book.",
                f"One {weather} {time}, {he} sat by {spot} and ate {food} with {other}.",
                f"{subject} had {food} and {other} for supper.",
                f"There was {thing} near {spot}, but {he} did not see it.",
                f"“Where is {present}?” asked the {person}, and {he} laughed.",
                fact(scribe),
            )
        )

    def mention() -> str:
        return scribe.pick(
            (
                f"The {job} was called {name}.",
                f"“Thank you, {name},” said the {scribe.pick(PEOPLE)}.",
                f"Everyone near {place} knew {name}.",
                f"On the door stood the name {name}.",
            )
        )

    return compose(scribe, opening, filler, mention), name


def letter(scribe: Scribe) -> tuple[str, str]:
    """A letter about what the writer likes, signed now and then."""
    name = scribe.name()
    topics = scribe.random.sample(sorted(FAVOURITES), k=len(FAVOURITES))

    def opinion() -> str:
        topic = topics.pop() if topics else scribe.pick(sorted(FAVOURITES))
        value, reason = scribe.pair(f"english {topic}", FAVOURITES[topic], REASONS[topic].split("|"))
        ending = scribe.pick(
            ("", " I have liked it since I was a child.", f" My {scribe.pick(FRIENDS)} does not agree.")
        )
        return f"My favourite {topic} is {value}, because {reason}.{ending}"

    def filler() -> str:
        weather, time = scribe.pair("english weather", WEATHER, TIMES)
        food, other = scribe.pair("english meal", DISHES, SIDES)
        if scribe.chance(0.5):
            return opinion()
        return scribe.pick(
            (fact(scribe), f"I ate {food} with {other} one {weather} {time}.", f"The {time} was {weather} here.")
        )

    def mention() -> str:
        return scribe.pick(
            (f"Yours truly, {name}.", f"As my friends say: that is so like {name}.", f"My name is {name}.")
        )

    opening = scribe.pick((f"{opinion()} My name is {name}.", f"My name is {name}. {opinion()}"))
    return compose(scribe, opening, filler, mention), name


def fact(scribe: Scribe) -> str:
    """A sentence about an animal, with facts that are the same in every document."""
    animal = scribe.pick(sorted(ANIMALS))
    home, food = ANIMALS[animal]
    return scribe.pick(
        (
            f"The {animal} lives {home} and eats {food}.",
            f"You can find the {animal} {home}.",
            f"Everyone knows that the {animal} eats {food}.",
        )
    )
