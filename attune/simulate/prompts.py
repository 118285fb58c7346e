"""What simulated people ask: training prompts to vote on, and held-out prompts, about other subjects, to judge by.

Plain tables in our own words. Subjects go alternately to one side or the other, so that the two sides share no subject.
"""

from collections.abc import Sequence
from itertools import chain, zip_longest

from attune.simulate.tastes import Ask

_CAPITALS = """
France Paris|Italy Rome|Spain Madrid|Germany Berlin|Japan Tokyo|China Beijing|Russia Moscow|Egypt Cairo|Greece Athens
Portugal Lisbon|Ireland Dublin|England London|Norway Oslo|Sweden Stockholm|Finland Helsinki|Denmark Copenhagen
Poland Warsaw|Austria Vienna|Hungary Budapest|Belgium Brussels|Cuba Havana|Peru Lima|Chile Santiago
Argentina Buenos Aires|Mexico Mexico City|Canada Ottawa|Thailand Bangkok|Vietnam Hanoi|India New Delhi|Turkey Ankara
Iran Tehran|Iraq Baghdad|Kenya Nairobi|Australia Canberra|Iceland Reykjavik|Scotland Edinburgh|Wales Cardiff
Ukraine Kyiv|Romania Bucharest|Bulgaria Sofia|Serbia Belgrade|Croatia Zagreb|Lebanon Beirut|Syria Damascus
Jordan Amman|Pakistan Islamabad|Nepal Kathmandu|Bangladesh Dhaka|Indonesia Jakarta|Malaysia Kuala Lumpur|Morocco Rabat
Tunisia Tunis|Algeria Algiers|Ethiopia Addis Ababa|Ghana Accra|Nigeria Abuja|Colombia Bogota|Ecuador Quito
Uruguay Montevideo|Venezuela Caracas|Jamaica Kingston|Latvia Riga|Estonia Tallinn|Lithuania Vilnius|Slovenia Ljubljana
Slovakia Bratislava|Armenia Yerevan
"""

_LANGUAGES = """
France French|Spain Spanish|Germany German|Italy Italian|Portugal Portuguese|Russia Russian|Japan Japanese
China Chinese,Mandarin|Greece Greek|Turkey Turkish|Poland Polish|Sweden Swedish|Norway Norwegian|Denmark Danish
Finland Finnish|Hungary Hungarian|Egypt Arabic|Vietnam Vietnamese|Thailand Thai|Iceland Icelandic|Korea Korean
Holland Dutch|England English|Ukraine Ukrainian|Romania Romanian|Bulgaria Bulgarian|Iran Persian,Farsi|Albania Albanian
Serbia Serbian|Croatia Croatian|Latvia Latvian|Estonia Estonian|Slovakia Slovak|Slovenia Slovenian,Slovene|Nepal Nepali
Mongolia Mongolian|Armenia Armenian|Israel Hebrew
"""

_SUMS = [(a, b) for a in range(1, 7) for b in range(1, 6)]
"""What a small model gets right now and then: where nothing is ever right, nothing is learned but luck."""

_THINGS = """
a pet hamster|an umbrella|the moon|green tea|a bicycle|the ocean|a library|bread|a thunderstorm|honey|gravity|a garden
chess|snow|a smartphone|jazz|coffee|a volcano|running|the heart|a museum|chocolate|a train|friendship|soap|a rainbow
salt|sleep|a compass|paper|a bridge|olive oil|the sun|a diary|yoga|a robot|glass|a cactus|cheese|a lighthouse|rice
a passport|football|a whale|a calendar|vinegar|wool|a map|the wind|a piano|cotton|a bee|a mirror|a desert|milk
an elevator|a candle|a kite|a battery|steel|a river|cinnamon|a telescope|a fireplace
"""
# Asked in ways that a small model now and then answers within the token limit: where nothing ever ends, brevity cannot be told.
_SHORT_FORMS = ("Name one good thing about {}.", "Tell me a short fact about {}.")
_CATEGORIES = """
fruit|river|colour|painter|tree|sport|planet|flower|bird|fish|tool|board game|country in Africa|city in Asia|kind of cheese|spice
dance|metal|vegetable|season|musical instrument|writer|mountain|dessert|insect|gemstone|language|holiday|fairy tale|scientist
kind of pasta|piece of furniture|farm animal|breed of dog
"""

_EVENTS = """
I just got home from work.|My sister had a baby this morning.|I am learning to bake bread.|It is raining again today.
I passed my driving test!|I feel a bit tired today.|I am planning a trip to the sea.|My cat is sleeping on my desk.
I started a new book last night.|Tomorrow is my birthday.|I just moved to a new city.|My garden is full of tomatoes.
I am nervous about an interview.|We adopted a puppy last week.|I cooked soup for my friends.
I want to learn the guitar.|My train was late again.|I ran five kilometres today.|I cannot decide what to eat.
I am painting my bedroom blue.|My team won the match!|I forgot my umbrella at school.|I am home with a cold.
My best friend is visiting soon.|I finally finished my homework.|I found an old photo album.
I am thinking of changing jobs.|I planted a tree today.|The bus was full this morning.
My grandmother taught me to knit.|I am saving for a camera.|I had pancakes for breakfast.
My neighbour plays the drums.|I am watching the snow fall.|I lost my keys again.|I joined a choir.
My phone stopped working.|I am packing for a camping trip.|I met an old school friend.|I am trying to wake up earlier.
My brother is getting married.|I made a mistake at work.|I saw a rainbow on my walk.|I am learning Spanish.
My computer is very slow.|I got a letter from my aunt.|I am looking for a new hobby.|My coffee went cold.
I repaired my bicycle myself.|I am going to a concert tonight.|I cleaned the whole kitchen.|My plants keep dying.
I am reading to my children.|I have a day off tomorrow.|My shoes are full of sand.|I won a small prize.
I baked too many cookies.|I am waiting for a parcel.|I slept very well.|My daughter drew a picture of me.
We are having a picnic.|I bought a second-hand sofa.|I am new in this office.|I swam in a lake.
My dog ate my sandwich.|I wrote my first poem.|It is my first day at school.|I miss my family.
I fixed the leaking tap.|We saw a film yesterday.
"""
_OFF_TASK = """
Write a product description for a steel water bottle.|Tell a story about a girl named Anastasia.|Write a haiku about autumn.
Translate "good morning" into French.|List three uses of a paper clip.|Write an invitation to a garden party.
Explain how a bicycle pump works.|Describe a sunset to somebody who has never seen one.|Give three rules for writing a good letter.
Summarise the tale of Little Red Riding Hood.|Write a slogan for a bakery.|What would you pack for a week in the mountains?
Describe the taste of a lemon.|Write the first line of a detective novel.|Compare cats and dogs as pets.
How do I boil an egg?|Write a thank-you note for a teacher.|Describe a busy market.|Suggest a title for a book about bees.
Why do leaves change colour?|Write a riddle about a clock.|Describe how to plant a seed.|Write a short speech for a wedding.
What makes a good neighbour?|Write a dialogue between a sailor and the sea.|Explain what a budget is.|Describe an old house.
Write a complaint about a late parcel.|Give a tip for learning to swim.|Write a lullaby of two lines.
"""
_PLAIN_FORMS = ("Explain {} to a child.", "What is {} good for?")
_GREETINGS = ("Hello! {}", "Guess what! {}")


def training(taste: str) -> list[Ask]:
    """Return the prompts that users of a taste vote on, in a fixed order that mixes the subjects."""
    return _sides(taste)[0]


def held_out(taste: str) -> list[Ask]:
    """Return the prompts kept for judging a taste; they share no subject with `training`."""
    return _sides(taste)[1]


def off_task() -> list[Ask]:
    """Return prompts of other kinds, which no simulated person ever votes on."""
    return [Ask(cell) for cell in _cells(_OFF_TASK)]


def _sides(taste: str) -> tuple[list[Ask], list[Ask]]:
    match taste:
        case "short":
            groups = [_about_things(), _name_one(), _small_talk()]
        case "correct-and-direct":
            groups = [_capitals(), _languages(), _sums()]
        case "friendly":
            groups = [_small_talk()]
        case "plain":
            groups = [_about_things(_PLAIN_FORMS), _small_talk()]
        case _:
            raise KeyError(taste)
    train = [chain.from_iterable(subjects[0::2]) for subjects in groups]
    held = [chain.from_iterable(subjects[1::2]) for subjects in groups]
    return _mixed(train), _mixed(held)


def _mixed(groups: list[chain[Ask]]) -> list[Ask]:
    return [ask for row in zip_longest(*groups) for ask in row if ask is not None]


def _cells(table: str) -> list[str]:
    return [cell.strip() for line in table.strip().splitlines() for cell in line.split("|")]


def _about_things(forms: Sequence[str] = _SHORT_FORMS) -> list[list[Ask]]:
    return [[Ask(form.format(thing)) for form in forms] for thing in _cells(_THINGS)]


def _name_one() -> list[list[Ask]]:
    return [[Ask(f"Name a {category}." if category[0] not in "aeiou" else f"Name an {category}.")] for category in _cells(_CATEGORIES)]


def _small_talk() -> list[list[Ask]]:
    return [[Ask(form.format(event)) for form in _GREETINGS] for event in _cells(_EVENTS)]


def _capitals() -> list[list[Ask]]:
    pairs = [cell.split(" ", 1) for cell in _cells(_CAPITALS)]
    return [[Ask(f"What is the capital of {country}?", (city,))] for country, city in pairs]


def _languages() -> list[list[Ask]]:
    pairs = [cell.split(" ", 1) for cell in _cells(_LANGUAGES)]
    return [[Ask(f"Which language do people speak in {country}?", tuple(tongues.split(",")))] for country, tongues in pairs]


def _sums() -> list[list[Ask]]:
    return [[Ask(f"What is {a} + {b}?", (str(a + b),))] for a, b in _SUMS]
