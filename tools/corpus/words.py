"""Word lists shared by the corpus genres and the task generators."""

from __future__ import annotations

GIRLS = (
    "Mira Anna Lena Rosa Nora Ella Ida Clara Hanna Ruby Elsa Maya Tilda Jane Vera Olga Lucy Amy "
    "Sofia Greta Zoe Mary Ines Pia Daisy Emma Flora Kate Tess Wanda"
).split()
BOYS = (
    "Tom Ben Otto Karl Finn Leo Max Hugo Paul Sam Jack Oskar Emil Noah Tim Ralf David Peter Ivan "
    "Luis Milo Nils Adam Victor Bruno Ed Frank Gus Harry Walt"
).split()
SURNAMES = (
    "Hill Marsh Berg Stone Rowe Lane Field Brook Ash Wood Frost Vale Holt Reed Penn Dale Moss "
    "Thorn Lund Gray Park Ford Cole Bell Hart Wells Nash Pike Quill Tanner"
).split()

ANIMALS = {
    "dog": ("barks", "a kennel", "bones"),
    "cat": ("meows", "a basket", "fish"),
    "cow": ("moos", "a barn", "grass"),
    "horse": ("neighs", "a stable", "hay"),
    "sheep": ("bleats", "a meadow", "clover"),
    "pig": ("grunts", "a sty", "apples"),
    "duck": ("quacks", "a pond", "weeds"),
    "hen": ("clucks", "a coop", "corn"),
    "owl": ("hoots", "a hollow tree", "mice"),
    "bee": ("buzzes", "a hive", "nectar"),
    "frog": ("croaks", "a swamp", "flies"),
    "lion": ("roars", "a den", "meat"),
    "mouse": ("squeaks", "a hole", "cheese"),
    "wolf": ("howls", "a cave", "deer"),
    "snake": ("hisses", "a burrow", "eggs"),
    "crow": ("caws", "a nest", "seeds"),
    "bear": ("growls", "a forest", "honey"),
    "goat": ("bleats", "a hillside", "leaves"),
    "fox": ("yelps", "a den", "rabbits"),
    "rabbit": ("thumps", "a burrow", "carrots"),
    "squirrel": ("chatters", "an oak", "nuts"),
    "hedgehog": ("snuffles", "a hedge", "worms"),
    "otter": ("whistles", "a river", "crabs"),
    "donkey": ("brays", "a shed", "thistles"),
}

OPPOSITES = {
    "hot": "cold", "big": "small", "tall": "short", "fast": "slow", "happy": "sad",
    "light": "dark", "wet": "dry", "old": "young", "early": "late", "full": "empty",
    "hard": "soft", "clean": "dirty", "strong": "weak", "rich": "poor", "loud": "quiet",
    "open": "closed", "thick": "thin", "wide": "narrow", "high": "low", "near": "far",
    "brave": "afraid", "sharp": "blunt", "sweet": "bitter", "smooth": "rough", "deep": "shallow",
    "cheap": "expensive", "right": "wrong", "first": "last", "up": "down", "inside": "outside",
    "asleep": "awake", "heavy": "weightless", "kind": "cruel", "lazy": "busy", "straight": "bent",
    "safe": "dangerous", "tidy": "messy", "true": "false", "simple": "complicated",
    "ugly": "beautiful", "win": "lose", "begin": "end", "buy": "sell", "push": "pull",
    "give": "take", "day": "night", "friend": "enemy", "summer": "winter", "north": "south",
    "east": "west", "question": "answer", "laugh": "cry", "love": "hate", "above": "below",
    "always": "never", "arrive": "leave", "ask": "reply", "float": "sink", "left": "right side",
    "noisy": "silent", "polite": "rude", "same": "different",
}
OPPOSITES = {k: v for k, v in OPPOSITES.items() if " " not in v and k not in ("heavy", "right")}

PLURALS = {
    "child": "children", "mouse": "mice", "goose": "geese", "foot": "feet", "tooth": "teeth",
    "man": "men", "woman": "women", "leaf": "leaves", "knife": "knives", "wolf": "wolves",
    "loaf": "loaves", "shelf": "shelves", "box": "boxes", "bus": "buses", "dish": "dishes",
    "church": "churches", "fox": "foxes", "glass": "glasses", "baby": "babies", "city": "cities",
    "berry": "berries", "puppy": "puppies", "story": "stories", "lady": "ladies",
    "cherry": "cherries", "potato": "potatoes", "tomato": "tomatoes", "hero": "heroes",
    "dog": "dogs", "cat": "cats", "book": "books", "tree": "trees", "house": "houses",
    "river": "rivers", "star": "stars", "boat": "boats", "lamp": "lamps", "apple": "apples",
    "garden": "gardens", "letter": "letters", "window": "windows", "bridge": "bridges",
    "song": "songs", "stone": "stones", "horse": "horses", "flower": "flowers", "cup": "cups",
    "brush": "brushes", "bench": "benches", "peach": "peaches", "class": "classes",
    "penny": "pennies", "family": "families", "country": "countries", "half": "halves",
    "thief": "thieves", "sheep": "sheep", "fish": "fish", "deer": "deer", "ox": "oxen",
}

PAST = {
    "go": "went", "eat": "ate", "see": "saw", "run": "ran", "take": "took", "give": "gave",
    "make": "made", "come": "came", "find": "found", "write": "wrote", "read": "read",
    "sing": "sang", "swim": "swam", "drink": "drank", "begin": "began", "buy": "bought",
    "bring": "brought", "think": "thought", "catch": "caught", "teach": "taught", "fly": "flew",
    "grow": "grew", "know": "knew", "throw": "threw", "draw": "drew", "break": "broke",
    "speak": "spoke", "choose": "chose", "drive": "drove", "ride": "rode", "rise": "rose",
    "fall": "fell", "feel": "felt", "keep": "kept", "sleep": "slept", "leave": "left",
    "meet": "met", "lose": "lost", "build": "built", "send": "sent", "sit": "sat",
    "stand": "stood", "win": "won", "hear": "heard", "hold": "held", "tell": "told",
    "walk": "walked", "jump": "jumped", "help": "helped", "paint": "painted", "cook": "cooked",
    "play": "played", "open": "opened", "clean": "cleaned", "plant": "planted", "bake": "baked",
    "dance": "danced", "smile": "smiled", "laugh": "laughed", "climb": "climbed",
    "carry": "carried", "cry": "cried", "try": "tried", "stop": "stopped", "hug": "hugged",
}

CATEGORIES = {
    "colour": "red blue green yellow brown white black pink orange purple gray".split(),
    "fruit": "apple pear plum cherry peach grape lemon melon banana fig".split(),
    "vegetable": "carrot potato onion cabbage bean pea leek turnip pumpkin spinach".split(),
    "tool": "hammer saw shovel rake axe drill ladder wrench chisel spade".split(),
    "vehicle": "car bus train boat bicycle truck tram cart plane wagon".split(),
    "instrument": "piano drum flute violin guitar harp trumpet cello horn bell".split(),
    "garment": "coat hat scarf shirt sock glove dress boot belt skirt".split(),
    "bird": "crow owl duck swan robin eagle goose sparrow stork finch".split(),
    "metal": "iron gold silver copper tin lead zinc steel brass bronze".split(),
    "drink": "tea coffee milk water juice cocoa lemonade cider soup broth".split()[:8],
    "flower": "rose tulip daisy lily violet poppy daffodil sunflower orchid iris".split(),
    "tree": "oak birch pine willow maple elm cedar beech poplar chestnut".split(),
    "shape": "circle square triangle star cube oval cross heart diamond ring".split(),
    "insect": "bee ant fly wasp beetle moth butterfly cricket ladybird gnat".split(),
    "dish": "soup stew pie salad pancake omelette porridge dumpling sandwich roast".split(),
    "room": "kitchen bedroom hall cellar attic bathroom library pantry nursery study".split(),
}

JOBS = {
    "baker": ("bakes bread", "a bakery"), "farmer": ("grows corn", "a field"),
    "teacher": ("teaches children", "a school"), "doctor": ("heals the sick", "a clinic"),
    "painter": ("paints pictures", "a studio"), "sailor": ("sails ships", "a harbour"),
    "smith": ("bends iron", "a forge"), "tailor": ("sews clothes", "a workshop"),
    "gardener": ("plants flowers", "a garden"), "miller": ("grinds flour", "a mill"),
    "fisher": ("catches fish", "a boathouse"), "cook": ("makes soup", "a kitchen"),
    "shepherd": ("guards sheep", "a meadow"), "librarian": ("lends books", "a library"),
    "postman": ("brings letters", "a post office"), "carpenter": ("builds tables", "a barn"),
    "singer": ("sings songs", "a theatre"), "pilot": ("flies planes", "a hangar"),
    "judge": ("settles quarrels", "a court"), "clockmaker": ("mends clocks", "a tower"),
}

PLACES = (
    "forest garden village harbour market school river meadow hill beach library station castle "
    "mill farm orchard bridge tower square park museum bakery barn lake island cave field valley"
).split()
TOWNS = (
    "Fernhill Oakport Millbrook Redcliff Ashford Lindale Stonebay Greenwick Marlow Winterby "
    "Southmere Eastholm Birchton Clayfield Dunmore Harrow Kingsley Larkspur Northam Penrose "
    "Quarry Rosedale Silverton Thornley Upton Westbridge"
).split()
OBJECTS = (
    "kite ball book lamp key basket drum hat scarf boat map bell coin flute clock mirror umbrella "
    "wagon blanket puppet cup ring letter box whistle lantern rope bucket spoon necklace"
).split()
COLOURS = CATEGORIES["colour"]
SIZES = "small big tiny large little huge".split()
LOOKS = "old shiny broken wooden round heavy soft striped golden painted".split()
TRAITS = (
    "brave shy clever kind curious patient cheerful stubborn gentle quiet proud careful honest "
    "lonely playful sleepy"
).split()
WEATHER = (
    "The sun was shining", "It was raining", "The wind was strong", "Snow was falling",
    "The sky was gray", "It was a warm day", "Fog lay over the hills", "It was a cold morning",
    "The stars were out", "A storm was coming", "The air smelled of grass",
)
TIMES = (
    "One morning", "One day", "One evening", "On a Monday", "Last spring", "In the summer",
    "One winter day", "Early one Sunday", "Late one afternoon", "On the first day of autumn",
    "Before breakfast one day", "After school one day", "One quiet night",
)
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()

# The little fixed world: every fact is stated the same way everywhere in the corpus.
VILLAGERS = {
    # name: (sex, job, town, pet, favourite colour, favourite food)
    "Anna": ("f", "baker", "Fernhill", "dog", "red", "plums"),
    "Otto": ("m", "smith", "Oakport", "cat", "black", "stew"),
    "Mira": ("f", "teacher", "Millbrook", "owl", "green", "pancakes"),
    "Hugo": ("m", "sailor", "Stonebay", "crow", "blue", "fish"),
    "Greta": ("f", "doctor", "Redcliff", "rabbit", "white", "soup"),
    "Emil": ("m", "miller", "Millbrook", "mouse", "brown", "bread"),
    "Rosa": ("f", "gardener", "Fernhill", "hedgehog", "pink", "cherries"),
    "Karl": ("m", "shepherd", "Lindale", "sheep", "gray", "cheese"),
    "Tilda": ("f", "pilot", "Redcliff", "duck", "orange", "lemons"),
    "Nils": ("m", "fisher", "Stonebay", "otter", "yellow", "crabs"),
    "Vera": ("f", "judge", "Oakport", "horse", "purple", "grapes"),
    "Bruno": ("m", "cook", "Fernhill", "pig", "golden", "dumplings"),
    "Clara": ("f", "painter", "Lindale", "fox", "violet", "figs"),
    "Oskar": ("m", "clockmaker", "Oakport", "squirrel", "silver", "nuts"),
    "Flora": ("f", "librarian", "Millbrook", "frog", "cream", "pears"),
    "Walt": ("m", "postman", "Lindale", "donkey", "navy", "apples"),
}
