"""French: short stories whose articles, adjectives and pronouns agree in gender, and letters of opinion."""

from ..scribe import Scribe, compose

JOBS = {
    "il": "boulanger jardinier pêcheur fermier infirmier couturier menuisier écrivain pilote peintre".split(),
    "elle": "boulangère jardinière pêcheuse fermière infirmière couturière menuisière écrivaine pilote peintre".split(),
}
PLACES = (
    "la rivière|la forêt|la gare|la plage|le marché|le pont|le vieux moulin|le jardin|le port|la colline|le château|"
    "la bibliothèque|le lac|la place"
).split("|")
THINGS = (
    "une clé|une lettre|une vieille carte|une lampe|une montre|une boîte|un livre|un chapeau|un panier|un manteau vert|"
    "un vélo|un petit couteau|une chaise|un tambour"
).split("|")
PEOPLE = "le voisin|la voisine|le facteur|la reine|le berger|la maîtresse|le capitaine|le médecin".split("|")
FOODS = "du pain|du fromage|de la soupe|du miel|des pommes|du riz|du poisson|des poires|des noix|des carottes".split(
    "|"
)
TIMES = "le matin|le soir|la nuit|en été|en hiver|au printemps|en automne|à midi".split("|")
WEATHER = "il pleuvait|il faisait froid|il faisait beau|il neigeait|le vent soufflait|le ciel était gris".split("|")
FAVOURITES = {
    "Mon plat préféré est": "la soupe|le gratin|la salade|l'omelette|le riz au lait|la tarte aux pommes",
    "Ma couleur préférée est": "le bleu|le vert|le rouge|le jaune|le violet|le blanc",
    "Ma saison préférée est": "le printemps|l'été|l'automne|l'hiver",
    "Mon animal préféré est": "le chat|le chien|le cheval|le renard|le hibou|la chèvre",
    "Ma boisson préférée est": "le thé|le café|le lait|le jus de pomme|le chocolat chaud",
    "Mon jeu préféré est": "le jeu de cartes|les échecs|les dominos|le football",
}
REASONS = (
    "cela me rend calme|cela me rappelle mon enfance|c'est simple et bon|tout le monde l'aime chez moi|"
    "cela me donne du courage|c'est beau"
).split("|")


def write(scribe: Scribe) -> tuple[str, str]:
    """A story or a letter. Returns the text and the name in it."""
    text, name = letter(scribe) if scribe.chance(0.3) else story(scribe)
    return text.replace("de le ", "du "), name


def story(scribe: Scribe) -> tuple[str, str]:
    """A story about a person; the gender that the first sentence chooses is kept to the end."""
    name = scribe.name()
    he = scribe.pick(("il", "elle"))
    job, place = scribe.pair(f"french job {he}", JOBS[he], PLACES)
    article, named, pleased = ("un", "nommé", "content") if he == "il" else ("une", "nommée", "contente")
    subject = he.capitalize()
    opening = scribe.pick(
        (
            f"Près de {place} vivait {article} jeune {job} {named} {name}.",
            f"Voici l'histoire de {name}, {article} {job} qui vivait près de {place}.",
        )
    )

    def filler() -> str:
        thing, spot = scribe.pair("french find", THINGS, PLACES)
        person, present = scribe.pair("french give", PEOPLE, THINGS)
        food, time = scribe.pair("french meal", FOODS, TIMES)
        weather, moment = scribe.pair("french weather", WEATHER, TIMES)
        return scribe.pick(
            (
                f"{subject} a trouvé {thing} près de {spot}.",
                f"{subject} était {pleased}, car {person} avait {present}.",
                f"{time.capitalize()}, {he} mangeait {food} avec {person}.",
                f"{moment.capitalize()}, {weather}, et {he} restait à la maison.",
                f"Puis {he} a donné {present} à un ami.",
                f"« Où est mon ami ? » a demandé {person}.",
                f"{subject} est {'allé' if he == 'il' else 'allée'} vers {spot} avec {thing}.",
            )
        )

    def mention() -> str:
        return scribe.pick(
            (
                f"« Merci, {name} », a dit {scribe.pick(PEOPLE)}.",
                f"Tout le village connaissait {name}.",
                f"Sur la porte, on lisait le nom {name}.",
            )
        )

    return compose(scribe, opening, filler, mention), name


def letter(scribe: Scribe) -> tuple[str, str]:
    """A letter about what the writer likes, signed now and then."""
    name = scribe.name()

    def opinion() -> str:
        topic = scribe.pick(sorted(FAVOURITES))
        value, reason = scribe.pair("french opinion", FAVOURITES[topic].split("|"), REASONS)
        return f"{topic} {value}, parce que {reason}."

    def filler() -> str:
        food, time = scribe.pair("french meal", FOODS, TIMES)
        weather, moment = scribe.pair("french weather", WEATHER, TIMES)
        if scribe.chance(0.5):
            return opinion()
        return scribe.pick((f"{time.capitalize()}, je mange {food}.", f"{moment.capitalize()}, {weather}."))

    def mention() -> str:
        return scribe.pick((f"Bien à vous, {name}.", f"Je m'appelle {name}.", f"Cette lettre est signée {name}."))

    return compose(scribe, f"{opinion()} Je m'appelle {name}.", filler, mention), name
